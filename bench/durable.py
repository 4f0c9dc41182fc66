"""Writes that are on the disk before they are acknowledged, against Redis with its append-only file on the same disk.

The one rule: everybody's files lie beside each other, and a turn is long enough for the disk to be the limit and not a
cache in front of it. Redis answers as `appendfsync` says: `always` after the fsync, as we do with ack="disk";
`everysec` before it, and may lose a second.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Final

from bench import loadgen
from bench.harness import Sample, Settings, interleave, placed, two_cores
from bench.nodes import ACK_DISK, Node, put_request
from bench.peers import LOAD_KEY, Request, ServerProcess, connect
from bench.peers.ours import Ours
from bench.peers.redis_server import Redis
from bench.processes import cpu_s
from bench.report import OURS, Bar, Report, Row
from bench.server import CONNECTIONS, KEYS, VALUE_BYTES, busy_note
from bench.subjects import available

POLICIES: Final = {"redis always": "always", "redis everysec": "everysec"}
BARS: Final = (Bar("redis always", 3.0), Bar("redis everysec", 1.0))
DEPTHS: Final = (1, 16)
TURN_FACTOR: Final = 8
"""A turn is so many times as long as those of tables without a disk."""


class AppendingRedis(ServerProcess):
    """A private redis-server with an append-only file."""

    def __init__(self, directory: Path, cpus: Iterable[int], policy: str) -> None:
        self.path = str(directory / "redis.sock")
        argv = ["redis-server", "--port", "0", "--unixsocket", self.path, "--save", "", "--daemonize", "no"]
        super().__init__([*argv, "--appendonly", "yes", "--appendfsync", policy], directory, cpus)
        self.wait_ready(self.path)


def flights(path: str, request: Request, depth: int, seconds: float) -> loadgen.Outcome:
    """Keep `CONNECTIONS × depth` writes under way; raise when one was refused."""
    with ExitStack() as stack:
        links = [stack.enter_context(closing(connect(path))) for _ in range(CONNECTIONS)]
        outcome = loadgen.run(
            [link.fileno() for link in links],
            request.template,
            request.digits_at,
            request.protocol,
            depth,
            KEYS,
            seconds,
            stamp_at=request.stamp_at,
        )
    if outcome.errors:
        raise RuntimeError(f"of {outcome.ops:,} writes {outcome.errors:,} were refused")
    return outcome


def turn(server: ServerProcess, path: str, request: Request, depth: int, seconds: float) -> Sample:
    """Warm up, then measure one run, and how busy the server's core was."""
    flights(path, request, depth, seconds / 10)
    pids = server.pids
    busy = cpu_s(pids)
    outcome = flights(path, request, depth, seconds)
    busy = (cpu_s(pids) - busy) / outcome.seconds
    return Sample(outcome.rate, outcome.p50_us, outcome.p99_us, f"{busy:.3f} {outcome.generator_cpu:.2f}")


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure acknowledged writes a second, at both depths."""
    place = two_cores()
    report.heading(f"Durable: writes of {VALUE_BYTES} B, {CONNECTIONS} connections, the log on, {place.name}")
    seconds = settings.seconds * TURN_FACTOR
    names = {peer.name for peer in available((Ours(), Redis()), settings, report)}
    with ExitStack() as stack:
        stack.enter_context(placed(place.client))
        directory = settings.directory / "durable"
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        servers: dict[str, tuple[ServerProcess, str, Request]] = {}
        if OURS in names:
            node = Node(directory / "ours", place.server, data=directory / "ours-data")
            stack.callback(node.stop)
            servers[OURS] = (node, node.paths[0], put_request(VALUE_BYTES, ACK_DISK))
        for name, policy in POLICIES.items() if "redis-py" in names else ():
            redis = AppendingRedis(directory / policy, place.server, policy)
            stack.callback(redis.stop)
            request = resp_put(VALUE_BYTES)
            servers[name] = (redis, redis.path, request)
        for depth in DEPTHS:
            turns: dict[str, Callable[[], Sample]] = {
                name: partial(turn, server, path, request, depth, seconds)
                for name, (server, path, request) in servers.items()
            }
            samples = interleave(settings.rounds, turns)
            bars = BARS if depth == 16 else ()
            yield Row("durable", f"put depth {depth}", "ops/s", samples, bars, note=busy_note(samples))
            yield Row("durable", f"put depth {depth}, processor time of a write", "µs", cost(samples))


def cost(samples: Mapping[str, tuple[Sample, ...]]) -> dict[str, tuple[Sample, ...]]:
    """Return the processor time of a write in µs: it says more than a rate where others use the processors, too."""
    return {
        name: tuple(Sample(1e6 * float(sample.note.split()[0]) / sample.figure) for sample in taken)
        for name, taken in samples.items()
    }


def resp_put(value_bytes: int) -> Request:
    """Return the load generator's SET."""
    head = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n" % (len(LOAD_KEY), LOAD_KEY)
    template = b"%b$%d\r\n%b\r\n" % (head, value_bytes, b"x" * value_bytes)
    return Request(loadgen.RESP, template, template.index(LOAD_KEY) + len(LOAD_KEY) - 8)
