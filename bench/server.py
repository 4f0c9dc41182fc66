"""One worker's own limit: a load generator in C speed on the other core, 100,000 keys of 256 B, uniform.

The same generator drives every server; redis-benchmark on the same Redis stands beside it, to show that the
generator measures the server and not itself. The note says how busy the two cores were: a figure whose server
was not near 100 % is the generator's limit, or the kernel's.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from statistics import median
from typing import Final

from bench import loadgen
from bench.harness import Sample, Settings, interleave, placed, two_cores
from bench.peers import OPERATIONS, TRANSPORTS, Operation, Request, StoreServer, Transport, connect
from bench.processes import cpu_s, memory_bytes
from bench.report import OURS, Bar, Report, Row
from bench.subjects import started

SUBJECTS: Final = (OURS, "redis-py")
SERVER_NAMES: Final = {OURS: OURS, "redis-py": "redis"}
REFERENCE: Final = "redis-benchmark"
CONNECTIONS: Final = 50
KEYS: Final = 100_000
VALUE_BYTES: Final = 256
BARS: Final = {1: 0.9, 16: 1.5, 100: 1.5}
REFERENCE_RATE: Final = {1: 150_000, 16: 900_000, 100: 1_000_000}


def load(
    server: StoreServer,
    transport: Transport,
    request: Request,
    *,
    depth: int = 16,
    seconds: float = 0.0,
    connections: int = CONNECTIONS,
    sequential: bool = False,
) -> loadgen.Outcome:
    """Run the generator on `server`; raise when a reply was an error or a key was missing."""
    with ExitStack() as stack:
        links = [stack.enter_context(closing(connect(server.address(transport)))) for _ in range(connections)]
        outcome = loadgen.run(
            [link.fileno() for link in links],
            request.template,
            request.digits_at,
            request.protocol,
            depth,
            KEYS,
            seconds,
            stamp_at=request.stamp_at,
            seed=time.monotonic_ns(),
            sequential=sequential,
        )
    if outcome.misses or outcome.errors:
        raise RuntimeError(f"of {outcome.ops:,} replies {outcome.misses:,} were misses, {outcome.errors:,} errors")
    return outcome


def turn(server: StoreServer, transport: Transport, request: Request, depth: int, settings: Settings) -> Sample:
    """Warm up, then measure one run, and how busy the server's core was."""
    load(server, transport, request, depth=depth, seconds=settings.seconds / 10)
    pids = server.pids
    busy = cpu_s(pids)
    outcome = load(server, transport, request, depth=depth, seconds=settings.seconds)
    busy = (cpu_s(pids) - busy) / outcome.seconds
    note = f"{busy:.2f} {outcome.generator_cpu:.2f}"
    return Sample(outcome.rate, outcome.p50_us, outcome.p99_us, note)


def reference_turn(
    server: StoreServer, transport: Transport, operation: Operation, depth: int, settings: Settings
) -> Sample:
    """Run redis-benchmark with the same load on the same core."""
    where = server.address(transport)
    target = ["-s", where] if isinstance(where, str) else ["-h", where[0], "-p", str(where[1])]
    count = max(2000, int(REFERENCE_RATE[depth] * settings.seconds))
    numbers = ["-c", CONNECTIONS, "-P", depth, "-n", count, "-d", VALUE_BYTES, "-r", KEYS]
    test = "get" if operation == "get" else "set"
    command = [REFERENCE, *target, *map(str, numbers), "-t", test, "--csv"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    header, line = (part.replace('"', "").split(",") for part in output.strip().splitlines()[-2:])
    found = dict(zip(header, line))
    p50_us, p99_us = (1000 * float(found[name]) for name in ("p50_latency_ms", "p99_latency_ms"))
    return Sample(float(found["rps"]), p50_us, p99_us)


def busy_note(samples: dict[str, tuple[Sample, ...]]) -> str:
    """Return how busy server and generator were, in the median of the rounds."""
    parts = []
    for name, taken in samples.items():
        shares = [tuple(map(float, sample.note.split())) for sample in taken if sample.note]
        if shares:
            server, generator = (median(share[at] for share in shares) for at in (0, 1))
            parts.append(f"{name} {server:.0%}/{generator:.0%}")
    return f"server/generator busy: {', '.join(parts)}"


def fill(servers: dict[str, StoreServer], transport: Transport) -> None:
    """Write every key once."""
    for server in servers.values():
        request = server.request("put", VALUE_BYTES)
        assert request is not None
        load(server, transport, request, sequential=True)


def memory_row(servers: dict[str, StoreServer]) -> Row:
    """Write all keys into empty servers and return what each key takes, payload included."""
    samples = {}
    for name, server in servers.items():
        before = memory_bytes(server.pids)
        fill({name: server}, "unix")
        samples[SERVER_NAMES[name]] = (Sample((memory_bytes(server.pids) - before) / KEYS),)
    return Row("server", f"memory per key, 16 B key, {VALUE_BYTES} B", "B", samples)


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure memory per key, then both operations at every depth on both transports."""
    place = two_cores()
    load_name = f"{CONNECTIONS} connections, {KEYS:,} keys, {VALUE_BYTES} B"
    report.heading(f"Server: one worker, {load_name}, {place.name}")
    with started(SUBJECTS, settings, report, place.server) as servers, placed(place.client):
        if servers:
            yield memory_row(servers)
        for transport in TRANSPORTS:
            fill(servers, transport)
            for depth, factor in BARS.items():
                for operation in OPERATIONS:
                    yield limit_row(servers, transport, operation, depth, factor, settings)


def limit_row(
    servers: dict[str, StoreServer],
    transport: Transport,
    operation: Operation,
    depth: int,
    factor: float,
    settings: Settings,
) -> Row:
    """Measure one operation at one depth; redis-benchmark takes its turn where Redis does."""
    turns: dict[str, Callable[[], Sample]] = {}
    for name, server in servers.items():
        request = server.request(operation, VALUE_BYTES)
        assert request is not None
        turns[SERVER_NAMES[name]] = partial(turn, server, transport, request, depth, settings)
    if "redis-py" in servers:
        turns[REFERENCE] = partial(reference_turn, servers["redis-py"], transport, operation, depth, settings)
    samples = interleave(settings.rounds, turns)
    return Row(
        area="server",
        name=f"{operation} depth {depth} {transport}",
        unit="ops/s",
        samples=samples,
        bars=(Bar("redis", factor),),
        note=busy_note(samples),
    )
