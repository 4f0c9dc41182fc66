"""The command `anna`: serve a store, and use one from a shell.

The one rule: a command prints its result on standard output and nothing else; what went wrong is one line on standard
error and an exit code: 0 ok, 1 the request failed, 2 usage, 3 the environment does not fit, 5 a deadline passed,
130 interrupted. With `--json` results and errors are JSON objects on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from anna.ack import ack_number
from anna.client import Client
from anna.config import TIMEOUT_S
from anna.errors import AnnaError, KeyNotFound, NoWorkers, ProtocolError, RequestTimeout
from anna.local import Lease, ensure, join
from anna.rundir import BadDirectory, default_directory

OK, FAILED, USAGE, ENVIRONMENT, DEADLINE, INTERRUPTED = 0, 1, 2, 3, 5, 130

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
        _print_json({"error": {"type": kind, "message": str(error), "definite": definite}})
    else:
        sys.stderr.write(f"anna {parsed.name}: {' '.join(str(error).split())} ({kind})\n")
    return _exit_code(error)


def _exit_code(error: Exception) -> int:
    from anna.listening import CannotListen, NotLocal
    from anna.spelling import BadSpelling

    if isinstance(error, RequestTimeout):
        return DEADLINE
    if isinstance(error, BadDirectory | CannotListen | ProtocolError):
        return ENVIRONMENT
    if isinstance(error, NotLocal | BadSpelling) or not isinstance(error, AnnaError):
        return USAGE
    return FAILED


# -- reaching a cluster


class _Connection:
    """A client, and what to tell about how it was reached."""

    def __init__(self, parsed: argparse.Namespace, start: bool) -> None:
        """Connect to `--at`, `$ANNA_ADDRESS`, or the local cluster, which is started if need be and `start` says so."""
        address = parsed.at or os.environ.get("ANNA_ADDRESS")
        self.lease: Lease | None = None
        if address is None:
            self.lease = ensure() if start else join()
            if self.lease is None:
                raise NoWorkers(f"no cluster runs in {default_directory()}; `anna serve` starts one that stays")
            address = self.lease.address
        self.address: str = address
        self._timeout: float = parsed.timeout
        self._allow_pickle: bool = parsed.allow_pickle

    def client(self, system: bool = False) -> Client:
        """Return a new client; the cluster is kept by this connection, not by the client."""
        return Client((self.address,), timeout=self._timeout, allow_pickle=self._allow_pickle, system=system)

    def warn_if_passing(self, name: str) -> None:
        """Say so when what was written will be gone at once."""
        if self.lease is not None and self.lease.started:
            told = "the local cluster was started for this command and ends with it; `anna serve` starts one that stays"
            sys.stderr.write(f"anna {name}: {told}\n")


# -- commands on keys


def _get(parsed: argparse.Namespace) -> int:
    from anna.spelling import plain, text_of

    connection = _Connection(parsed, start=False)
    with connection.client() as client:
        state = client.get_lattice(parsed.key, None)
        if state is None:
            raise KeyNotFound(f"no value is stored under {parsed.key!r}")
        value = state.read(parsed.allow_pickle)
    if parsed.json:
        _print_json({"key": parsed.key, "type": type(state).__name__.lower(), "value": plain(value)})
    else:
        _print_text(text_of(value))
    return OK


def _put(parsed: argparse.Namespace) -> int:
    from anna.spelling import lattice_of

    state = lattice_of(parsed.type, parsed.values, parsed.remove, parsed.limit)
    connection = _Connection(parsed, start=True)
    with connection.client() as client:
        ack = client.put(parsed.key, state, ack=parsed.ack, ttl=parsed.ttl, if_stamp=parsed.if_stamp)
        if parsed.name == "merge":
            return _print_merged(client, parsed)
    if parsed.json:
        written = {"replicas": ack.replicas, "durable": ack.durable, "stamp": ack.stamp}
        _print_json({"key": parsed.key, "type": parsed.type, **written})
    connection.warn_if_passing(parsed.name)
    return OK


def _print_merged(client: Client, parsed: argparse.Namespace) -> int:
    from anna.spelling import plain, text_of

    value = client.get(parsed.key)
    if parsed.json:
        _print_json({"key": parsed.key, "type": parsed.type, "value": plain(value)})
    else:
        _print_text(text_of(value))
    return OK


def _delete(parsed: argparse.Namespace) -> int:
    connection = _Connection(parsed, start=False)
    with connection.client() as client:
        existed = client.delete(parsed.key)
    if not existed:
        raise KeyNotFound(f"no value is stored under {parsed.key!r}")
    if parsed.json:
        _print_json({"key": parsed.key, "deleted": True})
    return OK


def _scan(parsed: argparse.Namespace) -> int:
    from anna.spelling import plain

    connection = _Connection(parsed, start=False)
    with connection.client() as client:
        for key in client.scan(parsed.prefix, parsed.limit):
            if parsed.json:
                _print_json({"key": plain(key)})
            else:
                _print_text(key if isinstance(key, str) else key + b"\n")
    return OK


def _watch(parsed: argparse.Namespace) -> int:
    from anna.spelling import plain, text_of

    connection = _Connection(parsed, start=False)
    with connection.client() as client, client.watch(parsed.key, timeout=parsed.until) as values:
        for count, value in enumerate(values, 1):
            if parsed.json:
                _print_json({"key": parsed.key, "value": plain(value)})
            else:
                _print_text(text_of(value))
            if count == parsed.count:
                break
    return OK


# -- commands on the cluster


def _where(parsed: argparse.Namespace) -> int:
    from anna.whereabouts import print_where, where_of

    connection = _Connection(parsed, start=False)
    with connection.client() as client:
        found = where_of(client, parsed.key)
    if parsed.json:
        _print_json(found)
    else:
        print_where(found)
    return OK


def _replicate(parsed: argparse.Namespace) -> int:
    connection = _Connection(parsed, start=False)
    with connection.client() as client:
        client.replicate(*parsed.keys, memory=parsed.memory, disk=parsed.disk, default=parsed.default)
        version = client.view.version
    if parsed.json:
        copies = None if parsed.default else {"memory": parsed.memory, "disk": parsed.disk}
        _print_json({"keys": parsed.keys, "vector": copies, "view": version})
    return OK


def _status(parsed: argparse.Namespace) -> int:
    from anna.operating import print_status, status_of

    connection = _Connection(parsed, start=False)
    with connection.client() as client:
        status = status_of(client, parsed.timeout)
    if parsed.json:
        _print_json({"at": connection.address, **status})
    else:
        print_status(status, _print_table)
    return FAILED if any("error" in worker for worker in status["workers"]) else OK


def _backup(parsed: argparse.Namespace) -> int:
    from anna.operating import write_backup

    with _Connection(parsed, start=False).client() as client:
        done = write_backup(client, Path(parsed.file))
    if parsed.json:
        _print_json(done)
    else:
        print(f"{done['keys']:,} keys, {done['bytes']:,} bytes, as of epoch {done['epoch']}, are in {done['file']}")
    return OK


def _restore(parsed: argparse.Namespace) -> int:
    from anna.operating import read_backup

    connection = _Connection(parsed, start=True)
    with connection.client(system=True) as client:
        done = read_backup(client, Path(parsed.file), parsed.ack)
    if parsed.json:
        _print_json(done)
    else:
        late = f"; {done['late']:,} had outlived their time" if done["late"] else ""
        print(f"{done['keys']:,} keys of epoch {done['epoch']} were joined in{late}")
    connection.warn_if_passing(parsed.name)
    return OK


def _router(parsed: argparse.Namespace) -> int:
    from anna.router import RouterOptions, serve_router

    return serve_router(
        RouterOptions(
            join=tuple(parsed.join),
            listen=tuple(parsed.listen),
            insecure=parsed.insecure,
            as_json=parsed.json,
            log_format=parsed.log_format,
        )
    )


def _bench(parsed: argparse.Namespace) -> int:
    from anna.quickbench import Load, measure

    connection = _Connection(parsed, start=True)
    load = Load(parsed.seconds, parsed.clients, parsed.value_bytes, parsed.depth)
    rows = measure(load, connection.client)
    if parsed.json:
        shape = {"seconds": load.seconds, "clients": load.clients, "depth": load.depth, "value_bytes": load.value_bytes}
        _print_json({**shape, "rows": rows})
        return OK
    clients = f"{load.clients} client{'s' * (load.clients != 1)}"
    print(f"{clients}, {load.depth} at a time, values of {load.value_bytes:,} bytes, {load.seconds:g} s each")
    flight = "" if load.depth == 1 else " of a flight"
    header = ("operation", "ops/s", f"p50 µs{flight}", f"p99 µs{flight}")
    _print_table(
        header,
        [(r["operation"], f"{r['ops_s']:,}", f"{r['p50_us']:,.1f}", f"{r['p99_us']:,.1f}") for r in rows],
    )
    return OK


def _serve(parsed: argparse.Namespace) -> int:
    from anna.serve import Options, serve

    return serve(
        Options(
            directory=parsed.dir,
            workers=parsed.workers,
            listen=tuple(parsed.listen),
            join=tuple(parsed.join),
            data=parsed.data,
            tier=parsed.tier,
            memory=parsed.memory,
            factor=parsed.factor,
            disk_factor=parsed.disk_factor,
            cluster=parsed.cluster,
            insecure=parsed.insecure,
            as_json=parsed.json,
            metrics=parsed.metrics,
            log_format=parsed.log_format,
        )
    )


# -- printing


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, ensure_ascii=False), flush=True)


def _print_text(text: str | bytes) -> None:
    """Text ends with a newline; bytes are written as they are."""
    if isinstance(text, bytes):
        sys.stdout.buffer.write(text)
    else:
        print(text)
    sys.stdout.flush()


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """The first column to the left, figures to the right; a row shorter than the header is a remark."""
    full = [row for row in (header, *rows) if len(row) == len(header)]
    widths = [max(len(row[column]) for row in full) for column in range(len(header))]
    for row in (header, *rows):
        if len(row) < len(header):
            print("  ".join((row[0].ljust(widths[0]), *row[1:])))
        else:
            print("  ".join((row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:])))))


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
    added.add_argument(
        "--timeout", metavar="SECONDS", type=_positive_float, default=TIMEOUT_S, help="deadline of a call"
    )
    added.add_argument("--allow-pickle", action="store_true", help="load values that only pickle can carry")
    return added


def _add_serve(commands: Any) -> None:
    serve = _add(
        commands,
        "serve",
        _serve,
        "Run a node until Ctrl-C or SIGTERM.",
        "anna serve --workers 2 --listen tcp://127.0.0.1:6450\n"
        "anna serve --dir /tmp/second --listen tcp://127.0.0.1:6550 --join tcp://127.0.0.1:6450 --factor 2\n"
        "anna serve --data /var/lib/anna\n"
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
    serve.add_argument("--insecure", action="store_true", help="allow addresses that other machines can reach")
    serve.add_argument("--metrics", metavar="HOST:PORT", help="serve Prometheus metrics there (port 0: any)")
    _add_log_format(serve)


def _add_key_commands(commands: Any) -> None:
    get = _add_client(commands, "get", _get, "Print the value under a key.", "anna get greeting")
    get.add_argument("key")
    put = _add_client(
        commands,
        "put",
        _put,
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
        _put,
        "Join a lattice into a key and print what the key holds then.",
        "anna merge visits +1 --type counter",
    )
    merge.add_argument("key")
    merge.add_argument("values", metavar="VALUE", nargs="*", help="JSON, or else text")
    _add_type(merge, required=True)
    _add_conditions(merge)
    delete = _add_client(commands, "delete", _delete, "Forget a key.", "anna delete greeting")
    delete.add_argument("key")

    scan = _add_client(commands, "scan", _scan, "Print the keys that begin with a prefix, in order.", "anna scan user:")
    scan.add_argument("prefix", nargs="?", default="", help="text (default: all keys)")
    scan.add_argument("--limit", metavar="N", type=_positive_int, help="at most so many")
    watch = _add_client(
        commands,
        "watch",
        _watch,
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
    _add_client(commands, "status", _status, "Print each worker's figures.", "anna status --json")
    where = _add_client(commands, "where", _where, "Print where a key lives, and why there.", "anna where greeting")
    where.add_argument("key")
    replicate = _add_client(
        commands,
        "replicate",
        _replicate,
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
        _bench,
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
        _backup,
        "Write the state of all keys, as it is at one epoch, to a file.",
        "anna backup monday.anna --at tcp://127.0.0.1:6450",
    )
    backup.add_argument("file", metavar="FILE")
    restore = _add_client(
        commands,
        "restore",
        _restore,
        "Join a backup into a cluster: what was written since then stays, what was deleted is there again.",
        "anna restore monday.anna --at tcp://127.0.0.1:6450 --ack disk",
    )
    restore.add_argument("file", metavar="FILE")
    restore.add_argument("--ack", metavar="LEVEL", type=_ack, help="be as safe as: memory, a number of copies, disk")
    router = _add(
        commands,
        "router",
        _router,
        "Tell newcomers who is in the cluster, at an address that stays, until Ctrl-C or SIGTERM.",
        "anna router --join tcp://127.0.0.1:6450 --listen tcp://127.0.0.1:6400",
    )
    for name, told in (
        ("--join", "learn from the worker there; give several, they are tried in turn"),
        ("--listen", "be asked there: tcp://HOST:PORT (port 0: any) or unix:PATH"),
    ):
        router.add_argument(name, metavar="ADDRESS", action="append", required=True, help=told)
    router.add_argument("--insecure", action="store_true", help="allow addresses that other machines can reach")
    _add_log_format(router)


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
