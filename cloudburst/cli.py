"""The command `cb`: run demos, call functions, and see what a node is doing.

The one rule: a command prints its result on standard output and nothing else; what went wrong is one line on standard
error (for a user's exception, its traceback) and an exit code: 0 ok, 1 a task failed, 2 usage, 3 environment mismatch,
4 machines not obtained, 5 deadline or cost limit, 130 cancelled. With `--json` results and errors are JSON on standard
output.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cloudburst.burst.tasks import command as mapping
from cloudburst.commandline import (
    CANCELLED,
    ENVIRONMENT,
    FAILED,
    LIMIT,
    NOT_OBTAINED,
    OK,
    USAGE,
    Add,
    Command,
    Usage,
    joined,
    print_json,
)

EXAMPLES: Final = """examples:
  cb demo retwis --quick              a Twitter clone on a real follow graph, in 15 s
  cb run wordcount.py --n 5           call main() of a file; its parameters are options
  cb call square 12                   call a registered function; arguments are JSON where they can be
  cb status                           what the node of this user is doing
"""

LOG_FIELDS: Final = ("number", "time", "node", "executor", "invocation", "function", "text")

def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    return obey(_parse(arguments), "cb")


def obey(parsed: argparse.Namespace, program: str) -> int:
    """Run the command that was parsed, of a program with this name; return its exit code."""
    command: Command = parsed.command
    if parsed.record:
        os.environ["CLOUDBURST_RECORD"] = parsed.record
    try:
        return command(parsed)
    except KeyboardInterrupt:
        return CANCELLED
    except BrokenPipeError:
        with suppress(OSError):
            sys.stdout.close()
        return OK
    except Usage as fault:
        sys.stderr.write(f"{program} {parsed.name}: {fault}\n")
        return USAGE
    except Exception as fault:  # a line says what it was, whatever it was
        return _report(fault, parsed, program)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cb",
        description="Functions that run next to their data.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--record", metavar="FILE", help="append a history of the command's sessions, for cb check")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("--dir", metavar="DIR", help="the node's directory (default: this user's own)")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    words = sys.argv[1:] if arguments is None else arguments

    def add(name: str, command: Command, what: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=what, description=what, epilog=f"example:\n  {example}", parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        added.set_defaults(command=command)
        return added

    if words[:1] == ["map"]:  # a pipe has several of it, which begin at once: what the others need takes them time
        mapping.add_to(add)
    else:
        _add_all(add)
    return parser.parse_args(words)


def _add_all(add: Add) -> None:
    """Add all commands."""
    from anna import keycommands
    from cloudburst import fitness
    from cloudburst.build import command as building
    from cloudburst.burst import commands as burst
    from cloudburst.judge import command as judging

    demo = add("demo", _demo, "run a demonstration; without NAME, list them", "cb demo retwis --quick")
    demo.add_argument("demo", nargs="?", metavar="NAME")
    demo.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="the demonstration's own options")
    run = add("run", _run, "call a function of a file, main by default", "cb run wordcount.py:count --path a.txt")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter that is not given")
    run.add_argument("target", metavar="FILE[:FN]")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="its parameters, by place or by --name")
    call = add("call", _call, "call a registered function on a running node", "cb call post alice '\"hello\"' parent=7")
    call.add_argument("function", metavar="NAME")
    call.add_argument("arguments", nargs="*", metavar="ARG", help="JSON, or text; NAME=VALUE for a keyword")
    call.add_argument("--timeout", type=float, metavar="S", help="seconds until the call is given up")
    call.add_argument("--retries", type=int, metavar="N", help="how often it is repeated when it fails")
    mapping.add_to(add)
    add("status", _status, "show what a running node is doing", "cb status --json")
    add("functions", _functions, "list the functions that are registered on a running node", "cb functions")
    logs = add("logs", _logs, "show what the executors of all nodes have printed", "cb logs -f --function square")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with each line as it is printed")
    logs.add_argument("--invocation", metavar="ID", help="only what this invocation has printed")
    logs.add_argument("--function", metavar="NAME", help="only what invocations of this function have printed")
    node = add("node", _node, "run a node in the foreground until it is interrupted", "cb node --executors 4")
    node.add_argument("--executors", type=int, metavar="N", help="how many (default: one for each core)")
    node.add_argument("--min-executors", type=int, metavar="N", help="how few, when there is nothing to do; 0 for none")
    node.add_argument("--max-executors", type=int, metavar="N", help="how many, when there is much to do")
    node.add_argument("--sandbox", metavar="KIND", help="where user code runs: none, bwrap, bwrap,net")
    node.add_argument("--join", metavar="ADDRESS", help="be one more node beside this: unix:DIR or tcp://HOST:PORT")
    node.add_argument("--workers", type=int, metavar="N", help="workers of its store (default: one per core)")
    node.add_argument("--listen", metavar="ADDRESS", help="let nodes on other hosts join: tcp://HOST:PORT (0: any)")
    node.add_argument("--secret", metavar="FILE", help="what the nodes share (default: a new one, in the directory)")
    node.add_argument("--token-file", metavar="FILE", help="get keys with a join token (cb keys token); - for stdin")
    node.add_argument("--keys", metavar="DIR", help="keys of right admin, instead of a secret (default: $ANNA_KEYS)")
    node.add_argument("--factor", type=int, metavar="K", help="copies of each key, of the whole cluster")
    node.add_argument("--insecure", action="store_true", help="allow addresses that other machines can reach")
    burst.add_to(add)
    check = add("check", judging.run, judging.WHAT, judging.EXAMPLE)
    judging.add_options(check)
    building.add_to(add)
    fitness.add_to(add)
    example = keycommands.EXAMPLE.format(program="cb").replace("\n", "\n  ")
    keycommands.describe(add("keys", keycommands.run, keycommands.SUMMARY, example))


def _report(fault: Exception, parsed: argparse.Namespace, program: str) -> int:
    from anna.errors import RequestTimeout
    from cloudburst.errors import CostLimit, EnvironmentMismatch, FunctionError, FunctionTimeout, MachinesNotObtained

    if parsed.json:
        definite = bool(getattr(fault, "definite", True))
        print_json({"error": {"type": type(fault).__name__, "message": str(fault), "definite": definite}})
    else:
        if isinstance(fault, FunctionError) and fault.remote_traceback:
            sys.stderr.write(fault.remote_traceback.rstrip() + "\n")
        sys.stderr.write(f"{program} {parsed.name}: {' '.join(str(fault).split())} ({type(fault).__name__})\n")
    if isinstance(fault, EnvironmentMismatch):
        return ENVIRONMENT
    if isinstance(fault, MachinesNotObtained):
        return NOT_OBTAINED
    late = isinstance(fault, (FunctionTimeout, RequestTimeout, CostLimit)) and not isinstance(fault, FunctionError)
    return LIMIT if late else FAILED


# -- commands


def _demo(parsed: argparse.Namespace) -> int:
    if parsed.demo is None:
        found = _demos()
        if parsed.json:
            print_json(found)
        else:
            print("\n".join(found))
        return OK
    try:
        module = importlib.import_module(f"demos.{parsed.demo}.__main__")
    except ModuleNotFoundError as fault:
        if not (fault.name or "").startswith("demos"):
            raise
        raise Usage(f"there is no demonstration {parsed.demo!r}; there are {', '.join(_demos())}") from None
    given = ["--json", *parsed.arguments] if parsed.json else parsed.arguments
    return int(module.main(given) or OK)


def _demos() -> list[str]:
    import demos

    places = [Path(place) for place in demos.__path__]
    return sorted(found.parent.name for place in places for found in place.glob("*/__main__.py"))


def _run(parsed: argparse.Namespace) -> int:
    from cloudburst import loading

    file, _, name = parsed.target.partition(":")
    try:
        function = loading.function_of(loading.load(Path(file)), name or "main")
    except loading.NotThere as fault:
        raise Usage(str(fault)) from None
    args, kwargs = bind(function, parsed.arguments, _settings(parsed.set))
    if parsed.dir:
        joined(parsed)
    result = function(*args, **kwargs)
    _print_result(result, parsed)
    return OK


def _settings(words: list[str]) -> dict[str, str]:
    for word in words:
        if "=" not in word:
            raise Usage(f"--set {word}: it is NAME=VALUE")
    return dict(word.split("=", 1) for word in words)


def _call(parsed: argparse.Namespace) -> int:
    args, kwargs = _split(parsed.arguments)
    chosen = {name: getattr(parsed, name) for name in ("timeout", "retries") if getattr(parsed, name) is not None}
    with joined(parsed) as client:
        _print_result(client.options(**chosen).call(parsed.function, *args, **kwargs), parsed)
    return OK


def _print_result(result: object, parsed: argparse.Namespace) -> None:
    if parsed.json:
        print_json(result)
    elif isinstance(result, str):
        print(result)
    elif result is not None:
        print(repr(result))


def _status(parsed: argparse.Namespace) -> int:
    with joined(parsed) as client:
        status = client.status()
    if parsed.json:
        print_json(status)
        return OK
    print(f"node {status['pid']} in {status['directory']}, up {status['up_s']:.0f} s, {len(status['clients'])} clients")
    print(f"store {', '.join(status['store']) or 'not there yet'}")
    if status["nodes"]:
        print(f"beside {len(status['nodes'])} other nodes (cb hosts)")
    for line in _reads(status["reads"]):
        print(line)
    for row in status["executors"]:
        line = f"executor {row['slot']:<3} pid {row['pid']:<8} {row['state']:<8} {row['calls']:>9,} calls"
        if "function" in row:
            done, total = row["progress"]
            line += f"  {row['function']} for {row['running_s']:.1f} s, {row['remaining_s']:.1f} s left"
            line += f", {done:,} of {total:,}" if total else ""
        print(line + (f", {row['waiting']:,} waiting" if row["waiting"] else ""))
    return OK


def _reads(figures: dict[str, Any]) -> Iterator[str]:
    """Say how fresh what the node reads is, and how much of it is there already."""
    read = figures.get("hits", 0) + figures.get("misses", 0)
    if read:
        there = f"{figures['hits'] / read:.0%} of {read:,} reads"
        yield f"cache {figures['keys']:,} keys, {figures['bytes']:,} bytes, has answered {there}"
    read = figures.get("hits_at", 0) + figures.get("misses_at", 0)
    if figures.get("sessions"):
        there = f", {figures['hits_at'] / read:.0%} of {read:,} reads from the cache" if read else ""
        p50, p99 = figures["session_age_p50"], figures["session_age_p99"]
        behind = f"read {p50} epochs behind (p50), {p99} (p99)" if p99 else "have read while nobody wrote"
        yield f"sessions {figures['sessions']:,}, {behind}{there}"


def _functions(parsed: argparse.Namespace) -> int:
    with joined(parsed) as client:
        found = client.functions()
    if parsed.json:
        print_json(found)
        return OK
    for one in found:
        refused = f"  refused: {one['poison']}" if one["poison"] else ""
        print(f"{one['name']}{one['signature']}  version {one['version']}  {one['doc']}{refused}".rstrip())
    return OK


def _logs(parsed: argparse.Namespace) -> int:
    with joined(parsed) as client, suppress(KeyboardInterrupt):
        status = client.status()
        several = bool(status["nodes"]) or bool(status["gateway"])
        for line in client.logs(parsed.follow, invocation=parsed.invocation, function=parsed.function):
            if line.dropped:
                sys.stderr.write(f"cb logs: {line.dropped:,} lines came faster than they were read\n")
            if parsed.json:
                print_json({name: getattr(line, name) for name in LOG_FIELDS})
            else:
                at = time.strftime("%H:%M:%S", time.localtime(line.time)) + f".{int(line.time % 1 * 1000):03}"
                who = f"{line.function} {line.invocation}" if line.invocation else "-"
                several = several or line.node != status["name"]
                where = f"{line.node} {line.executor:>3}" if several else f"{line.executor:>3}"
                print(f"{at} {where} {who} | {line.text}", flush=parsed.follow)
    return OK


def _node(parsed: argparse.Namespace) -> int:
    from cloudburst.foreground import main as serve

    chosen = ["--dir", parsed.dir] if parsed.dir else []
    for name in (
        "executors", "min_executors", "max_executors", "sandbox", "join", "workers", "listen", "secret", "token_file",
        "keys", "factor",
    ):  # fmt: skip
        given = getattr(parsed, name)
        if given is not None:
            chosen += [f"--{name.replace('_', '-')}", str(given)]
    return serve([*chosen, "--insecure"] if parsed.insecure else chosen)


# -- arguments of functions


def bind(
    function: Callable[..., Any], words: list[str], settings: Mapping[str, str] | None = None
) -> tuple[list[Any], dict[str, Any]]:
    """Return (args, kwargs) for `function` from words: values by place, `--name value`, `--name=value`, `--flag`.

    A parameter annotated str, int, float or bool gets that; any other gets JSON, or else text. One of `settings` is
    for a parameter that no word is for. Raises Usage.
    """
    signature = inspect.signature(function, eval_str=True)
    places = [one for one in signature.parameters.values() if one.kind is not one.KEYWORD_ONLY]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and len(word) > 2:
            name, equals, text = word[2:].replace("-", "_").partition("=")
            parameter = signature.parameters.get(name)
            if equals:
                text = word.partition("=")[2]
            elif parameter is not None and parameter.annotation is bool:
                text = "true"
            elif rest:
                text = rest.pop(0)
            else:
                raise Usage(f"--{name} needs a value")
            kwargs[name] = _convert(text, parameter)
        else:
            place = places[min(len(args), len(places) - 1)] if places else None
            args.append(_convert(word, place))
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
        for name, text in (settings or {}).items():
            if name in signature.parameters and name not in given:
                kwargs[name] = _convert(text, signature.parameters[name])
        signature.bind(*args, **kwargs)
    except TypeError as fault:
        raise Usage(f"{function.__name__}{signature}: {fault}") from None
    return args, kwargs


def _convert(text: str, parameter: inspect.Parameter | None) -> Any:
    wanted = parameter.annotation if parameter is not None else None
    if wanted is str:
        return text
    value = _value(text)
    if wanted is float and isinstance(value, int):
        return float(value)
    if wanted in (int, float, bool) and not isinstance(value, wanted):
        raise Usage(f"{text!r} is no {wanted.__name__}")
    return value


def _split(words: list[str]) -> tuple[list[Any], dict[str, Any]]:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if equals and name.isidentifier():
            kwargs[name] = _value(text)
        else:
            args.append(_value(word))
    return args, kwargs


def _value(text: str) -> Any:
    """Return what `text` is as JSON, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
