"""What a built file does when it is run: `./wc run`, `./wc test`, `./wc info`, and the commands of `cb`.

The one rule: what the file cannot have here is said before anything starts: a secret that it needs and that is not in
the environment ends it with exit code 3. `info` imports next to nothing, because it is what a shell waits for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cloudburst.build.manifest import MANIFEST, SOURCES, Manifest, directory, file, parse
from cloudburst.commandline import ENVIRONMENT, FAILED, OK, USAGE

HELP: Final = """usage: {program} COMMAND …

{name} {version}, built by `cb build` from {main}. It needs nothing but Python {python}.

  run [FUNCTION] …    call a function of it ({functions}), main if none is named; its parameters are options
  test [NAME …]       run what it was packed with to be tested, on a node of its own
  info [--json]       what it was made of
  up [INPUT …]        run nodes with its functions, here or elsewhere; with INPUT: {stage}
  call NAME …         call a function that it declares, where `up` runs; else on a node that starts for it
  map, down, hosts, scale, status, functions, logs, doctor, selftest, …
                      the commands of cb, with what is in this file: {program} map --help

examples:
  {program} test
  {program} up --hosts 3 --idle-stop 10m       then, in another shell: {program} call NAME ARG
  {program} up --hosts 2 --on ssh:hosts.toml
{pipe}
exit codes: 0 ok, 1 a task failed, 2 usage, 3 wrong Python or something missing here, 4 machines not obtained,
5 deadline or cost limit, 130 cancelled
"""
PIPE: Final = "  {program} up in/* | ./another up > out.jsonl\n"
NOT_PACKED: Final = ("build", "demo")
USES_IT: Final = ("run", "test", "call", "up")
"""Commands that load the application."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of a built file; return its exit code."""
    place = directory()
    if place is None:
        sys.stderr.write("this is no built file; cb build makes one\n")
        return USAGE
    os.environ.pop("PYTHONPATH", None)  # what it needs is in it; modules of the machine's would come before them
    words = list(sys.argv[1:] if arguments is None else arguments)
    manifest = parse((place / MANIFEST).read_text())
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in ("--help", "-h"):
        print(helped(manifest), end="")
        return OK if words else USAGE
    if command == "info":
        return _info(manifest, rest)
    if command in NOT_PACKED:
        sys.stderr.write(f"{manifest.name}: `{command}` is not in a built file; it is a command of cb\n")
        return USAGE
    return _run_command(manifest, place, command, rest)


def helped(manifest: Manifest) -> str:
    """Return what the file can do, for people."""
    named = program()
    stage = f"call {manifest.stage} for each, as a stage of a pipe" if manifest.stage else "it has no `stage` for that"
    return HELP.format(
        program=named, name=manifest.name, version=manifest.version, main=manifest.main, python=manifest.python,
        functions=", ".join(manifest.functions) or "it has none", stage=stage,
        pipe=PIPE.format(program=named) if manifest.stage else "",
    )  # fmt: skip


def program() -> str:
    """Return what the file is called where people type it."""
    name = Path(sys.argv[0] if file() is None else str(file())).name
    return f"./{name}" if Path(name).exists() else name


def _info(manifest: Manifest, words: Sequence[str]) -> int:
    if words not in ([], ["--json"]):
        sys.stderr.write(f"{manifest.name} info: {' '.join(words)!r} was not expected; there is --json\n")
        return USAGE
    print("\n".join(described(manifest)) if not words else manifest.as_json(), end="\n" if not words else "")
    return OK


def described(manifest: Manifest) -> list[str]:
    """Return the lines that tell a person what a file was made of."""
    tests = sum(name.startswith("test-data/") for name in manifest.files)
    git = manifest.git
    lines = [
        f"{manifest.name} {manifest.version}, cloudburst {manifest.runtime}, digest {manifest.digest[:16]}",
        f"runs on    Python {manifest.python}, {manifest.platform}",
        f"sources    {len(manifest.files) - tests} files, {tests} of test data; {manifest.main} with"
        f" {', '.join(manifest.functions) or 'no functions'}",
    ]
    if git is not None:
        lines.append(f"commit     {git['commit']}{', and changes' if git['changed'] else ''}")
    if manifest.settings:
        lines.append(f"set        {' '.join(f'{name}={value}' for name, value in manifest.settings.items())}")
    if manifest.secrets:
        lines.append(f"secrets    {', '.join(manifest.secrets)} (from the environment)")
    if manifest.stage:
        lines.append(f"stage      {manifest.stage}, for the inputs of up")
    lines += [f"brings     {one['name']} {one['version']}" for one in manifest.distributions]
    return lines


def _run_command(manifest: Manifest, place: Path, command: str, rest: list[str]) -> int:
    from cloudburst import cli

    main_file = place / SOURCES / manifest.main
    asks = bool({"--help", "-h"} & set(rest[:1]))
    missing = absent_secrets(manifest, os.environ) if command in USES_IT and not asks else []
    if missing:
        sys.stderr.write(
            f"{manifest.name}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in the environment,"
            f" and needed: {' '.join(f'{name}=…' for name in missing)} {manifest.name} {command}\n"
        )
        return ENVIRONMENT
    if command == "run":
        return cli.main(["run", *target(manifest, main_file, rest)])
    if command == "test":
        from cloudburst.build import trial

        return trial.main(manifest, place, rest)
    if command == "call" and not asks:
        return _call(manifest, main_file, rest)
    if command == "up":
        return _up(manifest, place, rest)
    return cli.main([command, *rest])


def _up(manifest: Manifest, place: Path, words: list[str]) -> int:
    """Keep nodes with the functions of the application, or be a stage of a pipeline."""
    from cloudburst import cli, loading
    from cloudburst.build import stage

    parsed = stage.parser_of(manifest, program()).parse_args(words)
    if not stage.is_one(manifest, parsed):
        loading.load(place / SOURCES / manifest.main)  # what it declares is registered once the nodes are there
        return cli.main(["up", *words])
    parsed.name, parsed.command, parsed.record = "up", lambda parsed: stage.run(manifest, place, parsed), None
    return cli.obey(parsed, manifest.name)


def absent_secrets(manifest: Manifest, environment: Mapping[str, str]) -> list[str]:
    """Return the names of secrets that are needed and that the environment does not have."""
    return [name for name in manifest.secrets if not environment.get(name)]


def target(manifest: Manifest, main_file: Path, words: Sequence[str]) -> list[str]:
    """Return the words of `cb run`: the file, its function, and what was set for it when it was built."""
    rest = list(words)
    options = [f"--set={name}={value}" for name, value in manifest.settings.items()]
    while rest and rest[0] in ("--json", "--help", "-h", "--dir"):  # of the command; the function's come later
        options += [rest.pop(0) for _ in rest[: 1 + (rest[0] == "--dir")]]
    function = rest.pop(0) if rest and rest[0] in manifest.functions else "main"
    return [*options, f"{main_file}:{function}", *rest]


def _call(manifest: Manifest, main_file: Path, words: list[str]) -> int:
    """Run `cb call` with the functions registered that the application's file declares."""
    import cloudburst as cb
    from cloudburst import cli, loading

    directory = words[words.index("--dir") + 1] if "--dir" in words[:-1] else entrance()
    if directory:
        os.environ["CLOUDBURST_DIR"] = str(Path(directory).absolute())
    loading.load(main_file)
    try:
        cb.default()  # joined or started, and told of the functions
        known = {one["name"] for one in cb.functions()}
    except cb.CloudburstError as fault:
        sys.stderr.write(f"{manifest.name} call: {fault} ({type(fault).__name__})\n")
        return ENVIRONMENT if isinstance(fault, cb.EnvironmentMismatch) else FAILED
    name = next((word for at, word in enumerate(words) if _is_name(word, words[at - 1] if at else "")), "")
    if name in manifest.functions and name not in known:
        sys.stderr.write(
            f"{manifest.name} call: {name} is in {manifest.main}, and not declared: write @cb.function above it and"
            f" build again, or run it here: {manifest.name} run {name}\n"
        )
        return USAGE
    return cli.main(["call", *words])


def _is_name(word: str, before: str) -> bool:
    """Whether a word of `call` is neither an option nor its value, so that the first one is the function's name."""
    return not word.startswith("--") and before not in ("--dir", "--timeout", "--retries")


def entrance() -> Path | None:
    """Return where the one `up` is that runs, when no node of this user's own does; None when there is not just one."""
    from cloudburst import local, running

    if os.environ.get("CLOUDBURST_DIR"):
        return None
    own = local.join(local.default_directory())
    if own is not None:
        own.close()
        return None
    found = running.entrances()
    return found[0] if len(found) == 1 else None
