"""What a key takes in memory: on a plain node, on each of two that hold copies, with a log, and in Redis.

The one rule: the growth of the server's memory while it is filled, divided by the keys, the payload included. Files
that are mapped (the log's, of a node with data) are counted apart: the kernel takes them back when it needs the room.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final

from bench import loadgen
from bench.harness import Sample, Settings
from bench.nodes import ACK_DISK, ACK_ONE, Line, Node, put_request
from bench.peers import Request, connect
from bench.peers.ours import Ours
from bench.peers.redis_server import Redis, RedisServer
from bench.processes import POLL_S, memory_bytes
from bench.replication import two_nodes
from bench.report import OURS, Report, Row
from bench.subjects import available

KEYS: Final = 100_000
VALUE_BYTES: Final = 256
DEPTH: Final = 32
ARRIVE_TIMEOUT_S: Final = 60.0


def fill(path: str, request: Request) -> None:
    """Write every key once."""
    with connect(path) as link:
        outcome = loadgen.run(
            [link.fileno()],
            request.template,
            request.digits_at,
            request.protocol,
            DEPTH,
            KEYS,
            0.0,
            stamp_at=request.stamp_at,
            sequential=True,
        )
    if outcome.errors:
        raise RuntimeError(f"of {outcome.ops:,} writes {outcome.errors:,} were refused")


def growth(pids: list[int], write: Callable[[], None], kind: str = "Pss") -> Sample:
    """Return by how many bytes a key `pids` grow while `write` writes all keys."""
    before = memory_bytes(pids, kind)
    write()
    return Sample((memory_bytes(pids, kind) - before) / KEYS)


def plain_row(settings: Settings, with_redis: bool) -> Row:
    """Compare a plain node with Redis."""
    cpus = os.sched_getaffinity(0)
    directory = settings.directory / "memory"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        node = Node(directory / "plain", cpus)
        stack.callback(node.stop)
        samples = {OURS: (growth(node.pids, partial(fill, node.paths[0], put_request(VALUE_BYTES))),)}
        if with_redis:
            redis = RedisServer(directory / "redis", cpus)
            stack.callback(redis.stop)
            asked = redis.request("put", VALUE_BYTES)
            samples["redis"] = (growth(redis.pids, partial(fill, redis.path, asked)),)
    return Row("memory", "plain node", "B", samples)


def copies_row(settings: Settings) -> Row:
    """Measure two nodes that both hold every key; the figure is that of one copy."""
    with two_nodes(settings, frozenset(os.sched_getaffinity(0)), "memory-copies") as (first, second):
        pids = [*first.pids, *second.pids]

        def write() -> None:
            fill(first.paths[0], put_request(VALUE_BYTES, ACK_ONE))
            deadline = time.monotonic() + ARRIVE_TIMEOUT_S
            with Line(second.paths[0]) as line:
                while line.status()["keys"] < KEYS:
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"{line.status()['keys']:,} of {KEYS:,} keys came to the other node")
                    time.sleep(POLL_S)

        both = growth(pids, write)
    return Row("memory", "two copies, each", "B", {OURS: (Sample(both.figure / 2),)})


def logged_rows(settings: Settings) -> Iterator[Row]:
    """Measure a node with a log."""
    directory = settings.directory / "memory-log"
    for name, kind in (("with a log, its own memory", "Pss_Anon"), ("with a log, mapped files too", "Pss")):
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            node = Node(directory / "node", os.sched_getaffinity(0), data=directory / "data")
            stack.callback(node.stop)
            sample = growth(node.pids, partial(fill, node.paths[0], put_request(VALUE_BYTES, ACK_DISK)), kind)
        yield Row("memory", name, "B", {OURS: (sample,)})


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure each kind of node."""
    report.heading(f"Memory: bytes a key, {KEYS:,} keys of 16 B with {VALUE_BYTES} B")
    names = {peer.name for peer in available((Ours(), Redis()), settings, report)}
    if OURS in names:
        yield plain_row(settings, "redis-py" in names)
        yield copies_row(settings)
        yield from logged_rows(settings)
