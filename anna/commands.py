"""What each command of `anna` does: keys and the cluster, from a shell.

The one rule: a command takes its parsed arguments and returns its exit code; it prints its result on standard output,
as JSON where that is asked for, and what goes wrong it raises.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from anna.client import Client
from anna.errors import KeyNotFound, NoWorkers
from anna.local import Lease, ensure, join
from anna.rundir import default_directory

OK, FAILED = 0, 1


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
        self._keys = parsed.keys_shown

    def client(self, system: bool = False) -> Client:
        """Return a new client; the cluster is kept by this connection, not by the client."""
        return Client(
            (self.address,), timeout=self._timeout, allow_pickle=self._allow_pickle, system=system, keys=self._keys
        )

    def warn_if_passing(self, name: str) -> None:
        """Say so when what was written will be gone at once."""
        if self.lease is not None and self.lease.started:
            told = "the local cluster was started for this command and ends with it; `anna serve` starts one that stays"
            sys.stderr.write(f"anna {name}: {told}\n")


# -- commands on keys


def get(parsed: argparse.Namespace) -> int:
    from anna.spelling import plain, text_of

    connection = _Connection(parsed, start=False)
    with connection.client() as client:
        state = client.get_lattice(parsed.key, None)
        if state is None:
            raise KeyNotFound(f"no value is stored under {parsed.key!r}")
        value = state.read(parsed.allow_pickle)
    if parsed.json:
        print_json({"key": parsed.key, "type": type(state).__name__.lower(), "value": plain(value)})
    else:
        _print_text(text_of(value))
    return OK


def put(parsed: argparse.Namespace) -> int:
    from anna.spelling import lattice_of

    state = lattice_of(parsed.type, parsed.values, parsed.remove, parsed.limit)
    connection = _Connection(parsed, start=True)
    with connection.client() as client:
        ack = client.put(parsed.key, state, ack=parsed.ack, ttl=parsed.ttl, if_stamp=parsed.if_stamp)
        if parsed.name == "merge":
            return _print_merged(client, parsed)
    if parsed.json:
        written = {"replicas": ack.replicas, "durable": ack.durable, "stamp": ack.stamp}
        print_json({"key": parsed.key, "type": parsed.type, **written})
    connection.warn_if_passing(parsed.name)
    return OK


def _print_merged(client: Client, parsed: argparse.Namespace) -> int:
    from anna.spelling import plain, text_of

    value = client.get(parsed.key)
    if parsed.json:
        print_json({"key": parsed.key, "type": parsed.type, "value": plain(value)})
    else:
        _print_text(text_of(value))
    return OK


def delete(parsed: argparse.Namespace) -> int:
    connection = _Connection(parsed, start=False)
    with connection.client() as client:
        existed = client.delete(parsed.key)
    if not existed:
        raise KeyNotFound(f"no value is stored under {parsed.key!r}")
    if parsed.json:
        print_json({"key": parsed.key, "deleted": True})
    return OK


def scan(parsed: argparse.Namespace) -> int:
    from anna.spelling import plain

    connection = _Connection(parsed, start=False)
    with connection.client() as client:
        for key in client.scan(parsed.prefix, parsed.limit):
            if parsed.json:
                print_json({"key": plain(key)})
            else:
                _print_text(key if isinstance(key, str) else key + b"\n")
    return OK


def watch(parsed: argparse.Namespace) -> int:
    from anna.spelling import plain, text_of

    connection = _Connection(parsed, start=False)
    with connection.client() as client, client.watch(parsed.key, timeout=parsed.until) as values:
        for count, value in enumerate(values, 1):
            if parsed.json:
                print_json({"key": parsed.key, "value": plain(value)})
            else:
                _print_text(text_of(value))
            if count == parsed.count:
                break
    return OK


# -- commands on the cluster


def where(parsed: argparse.Namespace) -> int:
    from anna.whereabouts import print_where, where_of

    connection = _Connection(parsed, start=False)
    with connection.client() as client:
        found = where_of(client, parsed.key)
    if parsed.json:
        print_json(found)
    else:
        print_where(found)
    return OK


def replicate(parsed: argparse.Namespace) -> int:
    connection = _Connection(parsed, start=False)
    with connection.client() as client:
        client.replicate(*parsed.keys, memory=parsed.memory, disk=parsed.disk, default=parsed.default)
        version = client.view.version
    if parsed.json:
        copies = None if parsed.default else {"memory": parsed.memory, "disk": parsed.disk}
        print_json({"keys": parsed.keys, "vector": copies, "view": version})
    return OK


def status(parsed: argparse.Namespace) -> int:
    from anna.operating import print_status, status_of

    connection = _Connection(parsed, start=False)
    with connection.client() as client:
        status = status_of(client, parsed.timeout)
    if parsed.json:
        print_json({"at": connection.address, **status})
    else:
        print_status(status, _print_table)
    return FAILED if any("error" in worker for worker in status["workers"]) else OK


def backup(parsed: argparse.Namespace) -> int:
    from anna.operating import write_backup

    with _Connection(parsed, start=False).client() as client:
        done = write_backup(client, Path(parsed.file))
    if parsed.json:
        print_json(done)
    else:
        print(f"{done['keys']:,} keys, {done['bytes']:,} bytes, as of epoch {done['epoch']}, are in {done['file']}")
    return OK


def restore(parsed: argparse.Namespace) -> int:
    from anna.operating import read_backup

    connection = _Connection(parsed, start=True)
    with connection.client(system=True) as client:
        done = read_backup(client, Path(parsed.file), parsed.ack)
    if parsed.json:
        print_json(done)
    else:
        late = f"; {done['late']:,} had outlived their time" if done["late"] else ""
        print(f"{done['keys']:,} keys of epoch {done['epoch']} were joined in{late}")
    connection.warn_if_passing(parsed.name)
    return OK


def router(parsed: argparse.Namespace) -> int:
    from anna.router import RouterOptions, serve_router

    return serve_router(
        RouterOptions(
            join=tuple(parsed.join),
            listen=tuple(parsed.listen),
            insecure=parsed.insecure,
            keys=parsed.keys_shown,
            as_json=parsed.json,
            log_format=parsed.log_format,
        )
    )


def bench(parsed: argparse.Namespace) -> int:
    from anna.quickbench import Load, measure

    connection = _Connection(parsed, start=True)
    load = Load(parsed.seconds, parsed.clients, parsed.value_bytes, parsed.depth)
    rows = measure(load, connection.client)
    if parsed.json:
        shape = {"seconds": load.seconds, "clients": load.clients, "depth": load.depth, "value_bytes": load.value_bytes}
        print_json({**shape, "rows": rows})
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


def serve(parsed: argparse.Namespace) -> int:
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
            keys=parsed.keys_shown,
            as_json=parsed.json,
            metrics=parsed.metrics,
            log_format=parsed.log_format,
        )
    )


# -- printing


def print_json(data: dict[str, Any]) -> None:
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
