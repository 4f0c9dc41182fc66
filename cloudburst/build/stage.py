"""`./OUT up INPUTS…`: a stage of a pipeline, which calls a function of the application for each input.

The one rule: nobody guesses from a terminal. `up` is a stage when inputs are named, `-` among them; and when nothing is
said but the application has a function for it, and standard input is a pipe or a file. Anything else keeps nodes until
it is ended, as `cb up`. The first stage says where all run; the others run where their input is.
Source: SURFACE (./a up … | ./b up); decision record 0046.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloudburst.build.manifest import PACKED, SOURCES, Manifest
from cloudburst.commandline import Usage

if TYPE_CHECKING:
    from cloudburst.burst.tasks.code import Code
    from cloudburst.burst.tasks.tokens import Token
    from cloudburst.client import Client

WHAT: Final = """Without INPUT: run several nodes until interrupted, or until a limit, with the functions of {name}.
With INPUT: call {stage} of {main} for each input, on the executors of all hosts; print what it
returns, or pass that on to a stage that reads it."""
EXAMPLE: Final = """examples:
  {program} up --hosts 3 --idle-stop 5m
  {program} up in/*.gz > out.jsonl
  {program} up in/*.gz | ./another up | ./a-third up > out.jsonl
  find in -name '*.gz' | {program} up --on ssh:hosts.toml - --out results --resume
"""
WHERE: Final = ("hosts", "executors", "on", "ready_in", "ttl", "idle_stop", "max_cost", "price", "insecure", "plan")
NO_STAGE: Final = '{main} has no function for inputs: write def stage(path): …, or [tool.cloudburst] stage = "NAME"'


def parser_of(manifest: Manifest, program: str) -> argparse.ArgumentParser:
    """Return what understands the words after `up`; exits with 2 when they are wrong."""
    from cloudburst.burst.commands import add_up_options
    from cloudburst.burst.tasks.command import add_options

    stage = f"`{manifest.stage}`" if manifest.stage else "a function (there is none yet: def stage(path): …)"
    parser = argparse.ArgumentParser(
        prog=f"{program} up", description=WHAT.format(name=manifest.name, main=manifest.main, stage=stage),
        epilog=EXAMPLE.format(program=program), formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--dir", metavar="DIR", help="the node's directory (default: this user's own)")
    add_up_options(parser.add_argument_group("where"))
    parser.set_defaults(hosts=None, on=None)
    add_options(parser.add_argument_group("for inputs"))
    return parser


def is_one(manifest: Manifest, parsed: argparse.Namespace) -> bool:
    """Whether these words mean a stage."""
    from cloudburst.burst.tasks.pipes import is_a_stream

    if parsed.inputs:
        return not parsed.plan
    said = parsed.dir or any(getattr(parsed, name) not in (None, False) for name in WHERE)
    return bool(manifest.stage) and not said and is_a_stream(0)


def run(manifest: Manifest, place: Path, parsed: argparse.Namespace) -> int:
    """Run the stage; return its exit code. Raises Usage, and what starting nodes does."""
    from cloudburst.burst.tasks.command import run_stage

    if not manifest.stage:
        raise Usage(NO_STAGE.format(main=manifest.main))
    code = _code(manifest, place)
    names = f"{manifest.name} {manifest.digest}:{manifest.stage}"
    with ExitStack() as ends:
        return run_stage(parsed, f"{manifest.name} up", names, code, lambda leave: _client(parsed, leave, ends))


def _code(manifest: Manifest, place: Path) -> Code:
    """Return where the function is; load it, so that what is wrong with it is said before anything starts."""
    from cloudburst import loading
    from cloudburst.burst.tasks.code import Code
    from cloudburst.burst.tasks.hand import takes
    from cloudburst.burst.tasks.items import identity_of

    main_file = place / SOURCES / manifest.main
    try:
        takes(loading.function_of(loading.load(main_file), manifest.stage))
    except TypeError as fault:
        raise Usage(str(fault)) from None
    inside = f"{PACKED}/{SOURCES}/{manifest.main}"
    return Code(sys.executable, str(main_file), inside, identity_of(str(main_file)), manifest.stage, manifest.settings)


def _client(parsed: argparse.Namespace, leave: Token | None, ends: ExitStack) -> Client:
    """Return a client of the nodes that are meant; those that are started for it end with `ends`."""
    from cloudburst.build.entry import entrance
    from cloudburst.entry import connect
    from cloudburst.errors import RequestError

    chosen = [f"--{name.replace('_', '-')}" for name in WHERE if getattr(parsed, name) not in (None, False)]
    if leave is not None:
        if chosen:
            raise RequestError(f"{', '.join(chosen)} is for the first stage: this one runs where its input is")
        return connect(f"unix:{leave.directory}")
    if chosen:
        from cloudburst.burst.commands import started

        return ends.enter_context(started(parsed, command=False)).client
    directory = parsed.dir or entrance()
    return connect(f"unix:{Path(directory).absolute()}") if directory else connect()
