"""The command `anna`: serve a store, and use one from a shell.

The one rule: a command prints its result on standard output and nothing else; what went wrong is one line on standard
error and an exit code: 0 ok, 1 the request failed, 2 usage, 3 the environment does not fit, 5 a deadline passed,
130 interrupted. With `--json` results and errors are JSON objects on standard output.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from anna import commands as run
from anna import keycommands
from anna.ack import ack_number
from anna.commands import FAILED, OK, print_json
from anna.config import TIMEOUT_S
from anna.errors import AnnaError, ProtocolError, RequestTimeout
from anna.rundir import BadDirectory

USAGE, ENVIRONMENT, DEADLINE, INTERRUPTED = 2, 3, 5, 130

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    parsed = _parse(arguments)
    command: Command = parsed.command
    try:
        return command(parsed)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (AnnaError, ValueError, OSError) as error:
        return _report(error, parsed)


def _report(error: Exception, parsed: argparse.Namespace) -> int:
    kind = type(error).__name__
    if parsed.json:
        definite = getattr(error, "definite", True)
        print_json({"error": {"type": kind, "message": str(error), "definite": definite}})
    else:
        sys.stderr.write(f"anna {parsed.name}: {' '.join(str(error).split())} ({kind})\n")
    return _exit_code(error)


def _exit_code(error: Exception) -> int:
    from anna.keys import BadKeys
    from anna.listening import CannotListen, NotLocal
    from anna.spelling import BadSpelling

    if isinstance(error, RequestTimeout):
        return DEADLINE
    if isinstance(error, BadDirectory | CannotListen | ProtocolError):
        return ENVIRONMENT
    if isinstance(error, NotLocal | BadSpelling | BadKeys) or not isinstance(error, AnnaError):
        return USAGE
    return FAILED


# -- the command line

DESCRIPTION: Final = """A key-value store whose values are lattices: writes join, so they never conflict.
Without --at (or $ANNA_ADDRESS) commands use the local cluster of this user, at $ANNA_DIR if that is set."""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, also with values after options (`merge KEY --type T VALUE`), which argparse alone does not understand."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(parsed, "values") or any(re.match(r"-[^\d.]", word) for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.values += rest
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="anna", description=DESCRIPTION, formatter_class=_Formatter)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_key_commands(commands)
    _add_cluster_commands(commands)
    _add_operating_commands(commands)
    about = _add(commands, "keys", keycommands.run, keycommands.SUMMARY, keycommands.EXAMPLE.format(program="anna"))
    keycommands.describe(about)
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with the examples as they were written."""


def _add(commands: Any, name: str, command: Command, summary: str, example: str) -> argparse.ArgumentParser:
    """Add one command with `--json`, its summary, and an example at the end of its help."""
    lines = "\n".join(f"  {line}" for line in example.splitlines())
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, epilog=f"example:\n{lines}", formatter_class=_Formatter
    )
    added.add_argument("--json", action="store_true", help="print JSON")
    added.set_defaults(command=command, name=name)
    return added


def _add_client(commands: Any, name: str, command: Command, summary: str, example: str) -> argparse.ArgumentParser:
    added = _add(commands, name, command, summary, example)
    added.add_argument("--at", metavar="ADDRESS", help="any worker: unix:PATH or tcp://HOST:PORT")
    _add_keys(added)
    added.add_argument(
        "--timeout", metavar="SECONDS", type=_positive_float, default=TIMEOUT_S, help="deadline of a call"
    )
    added.add_argument("--allow-pickle", action="store_true", help="load values that only pickle can carry")
    return added


def _add_serve(commands: Any) -> None:
    serve = _add(
        commands,
        "serve",
        run.serve,
        "Run a node until Ctrl-C or SIGTERM.",
        "anna serve --workers 2 --listen tcp://127.0.0.1:6450\n"
        "anna serve --dir /tmp/second --listen tcp://127.0.0.1:6550 --join tcp://127.0.0.1:6450 --factor 2\n"
        "anna serve --data /var/lib/anna\n"
        "anna keys new ~/keys; anna serve --keys ~/keys --listen tcp://10.0.0.5:6450\n"
        "anna get greeting --at tcp://127.0.0.1:6450",
    )
    serve.add_argument(
        "--join",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="join the cluster of the worker there; give several, they are tried in turn",
    )
    serve.add_argument("--data", metavar="DIR", help="log writes there, so that they outlive the node (ack='disk')")
    serve.add_argument("--tier", choices=("memory", "disk"), default="memory", help="where values are (disk: DIR)")
    serve.add_argument("--memory", metavar="BYTES", help="what keys and values may take of it, such as 512M")
    serve.add_argument("--factor", metavar="K", type=_positive_int, help="copies of each key, of the whole cluster")
    serve.add_argument("--disk-factor", metavar="K", type=_count, help="and so many more on disk nodes (default: none)")
    serve.add_argument("--cluster", metavar="NAME", default="anna", help="nodes of different names refuse each other")
    serve.add_argument("--workers", metavar="N", type=_positive_int, help="worker processes (default: one per core)")
    serve.add_argument(
        "--listen",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="listen here too: tcp://HOST:PORT (one port up for each further worker; 0: any) or unix:PATH",
    )
    serve.add_argument("--dir", metavar="DIR", help="private directory of the sockets (default: $ANNA_DIR)")
    _add_keys(serve)
    serve.add_argument("--insecure", action="store_true", help="listen without keys where other machines can connect")
    serve.add_argument("--metrics", metavar="HOST:PORT", help="serve Prometheus metrics there (port 0: any)")
    _add_log_format(serve)


def _add_key_commands(commands: Any) -> None:
    get = _add_client(commands, "get", run.get, "Print the value under a key.", "anna get greeting")
    get.add_argument("key")
    put = _add_client(
        commands,
        "put",
        run.put,
        "Write a value: a last-writer-wins register, or the lattice that --type names.",
        "anna put cart milk eggs --type orset\nanna put seat-7 mine --if-stamp 0 --ttl 60 --ack 2",
    )
    put.add_argument("key")
    put.add_argument("values", metavar="VALUE", nargs="*", help="JSON, or else text")
    _add_type(put, required=False)
    _add_conditions(put)
    merge = _add_client(
        commands,
        "merge",
        run.put,
        "Join a lattice into a key and print what the key holds then.",
        "anna merge visits +1 --type counter",
    )
    merge.add_argument("key")
    merge.add_argument("values", metavar="VALUE", nargs="*", help="JSON, or else text")
    _add_type(merge, required=True)
    _add_conditions(merge)
    delete = _add_client(commands, "delete", run.delete, "Forget a key.", "anna delete greeting")
    delete.add_argument("key")

    scan = _add_client(commands, "scan", run.scan, "Print the keys with a prefix, in order.", "anna scan user:")
    scan.add_argument("prefix", nargs="?", default="", help="text (default: all keys)")
    scan.add_argument("--limit", metavar="N", type=_positive_int, help="at most so many")
    watch = _add_client(
        commands,
        "watch",
        run.watch,
        "Print the value under a key, and again whenever it changes.",
        "anna watch best\nanna watch best --count 2 --until 60",
    )
    watch.add_argument("key")
    watch.add_argument("--count", metavar="N", type=_positive_int, help="end after so many values")
    watch.add_argument("--until", metavar="SECONDS", type=_positive_float, help="end when nothing changes for so long")


def _add_conditions(command: argparse.ArgumentParser) -> None:
    command.add_argument("--ack", metavar="LEVEL", type=_ack, help="be as safe as: memory, a number of copies, disk")
    command.add_argument("--ttl", metavar="SECONDS", type=_positive_float, help="live for so long")
    command.add_argument(
        "--if-stamp",
        metavar="STAMP",
        type=int,
        help="only if the register has this stamp (0: none)",
    )


def _ack(text: str) -> str | int:
    level = int(text) if text.isdecimal() else text
    try:
        ack_number(level)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return level


def _add_type(command: argparse.ArgumentParser, required: bool) -> None:
    from anna.spelling import TYPES

    command.add_argument(
        "--type",
        metavar="TYPE",
        type=lambda name: name.lower().replace("-", "").replace("_", ""),
        choices=tuple(TYPES),
        required=required,
        default="lww",
        help=", ".join(TYPES),
    )
    command.add_argument("--remove", metavar="VALUE", action="append", default=[], help="remove from an orset")
    command.add_argument("--limit", metavar="N", type=_positive_int, help="an orderedset keeps the N greatest")


def _add_cluster_commands(commands: Any) -> None:
    _add_client(commands, "status", run.status, "Print each worker's figures.", "anna status --json")
    where = _add_client(commands, "where", run.where, "Print where a key lives, and why there.", "anna where greeting")
    where.add_argument("key")
    replicate = _add_client(
        commands,
        "replicate",
        run.replicate,
        "Give keys a number of copies of their own, on nodes with memory and on nodes with disks. They move meanwhile.",
        "anna replicate cart:7 --memory 3\nanna replicate report:2019 report:2020 --memory 0 --disk 2\n"
        "anna replicate cart:7 --default",
    )
    replicate.add_argument("keys", metavar="KEY", nargs="+")
    for tier in ("memory", "disk"):
        replicate.add_argument(f"--{tier}", metavar="K", type=_count, default=0, help=f"copies on {tier} nodes")
    replicate.add_argument("--default", action="store_true", help="as many as all other keys have")
    bench = _add_client(
        commands,
        "bench",
        run.bench,
        "Measure puts and gets from this machine.",
        "anna bench --clients 2 --depth 16 --value-bytes 1024",
    )
    bench.add_argument("--seconds", type=_positive_float, default=1.0, help="time for each operation (default: 1)")
    bench.add_argument("--clients", type=_positive_int, default=1, help="client processes (default: 1)")
    bench.add_argument("--value-bytes", type=_positive_int, default=256, help="size of a value (default: 256)")
    bench.add_argument("--depth", type=_positive_int, default=1, help="operations in one flight (default: 1)")


def _add_operating_commands(commands: Any) -> None:
    backup = _add_client(
        commands,
        "backup",
        run.backup,
        "Write the state of all keys, as it is at one epoch, to a file.",
        "anna backup monday.anna --at tcp://127.0.0.1:6450",
    )
    backup.add_argument("file", metavar="FILE")
    restore = _add_client(
        commands,
        "restore",
        run.restore,
        "Join a backup into a cluster: what was written since then stays, what was deleted is there again.",
        "anna restore monday.anna --at tcp://127.0.0.1:6450 --ack disk",
    )
    restore.add_argument("file", metavar="FILE")
    restore.add_argument("--ack", metavar="LEVEL", type=_ack, help="be as safe as: memory, a number of copies, disk")
    router = _add(
        commands,
        "router",
        run.router,
        "Tell newcomers who is in the cluster, at an address that stays, until Ctrl-C or SIGTERM.",
        "anna router --join tcp://127.0.0.1:6450 --listen tcp://127.0.0.1:6400",
    )
    for name, told in (
        ("--join", "learn from the worker there; give several, they are tried in turn"),
        ("--listen", "be asked there: tcp://HOST:PORT (port 0: any) or unix:PATH"),
    ):
        router.add_argument(name, metavar="ADDRESS", action="append", required=True, help=told)
    _add_keys(router)
    router.add_argument("--insecure", action="store_true", help="listen without keys where other machines can connect")
    _add_log_format(router)


def _add_keys(command: argparse.ArgumentParser) -> None:
    told = "encrypt what goes by TCP, and show the keys there (default: $ANNA_KEYS); see `anna keys --help`"
    command.add_argument("--keys", metavar="DIR", dest="keys_shown", help=told)


def _add_log_format(command: argparse.ArgumentParser) -> None:
    command.add_argument("--log-format", choices=("text", "json"), default="text", help="lines for people or programs")


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return number


def _positive_float(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


if __name__ == "__main__":
    sys.exit(main())
