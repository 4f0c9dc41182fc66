"""What encryption costs between hosts: the same store and client over TCP, plain and under mutual TLS 1.3.

The one rule: both are measured in turns within one run, over loopback, and each row says which is which. "ours" is
plain, as all other areas are; "encrypted" is what other hosts get: without keys a node does not listen to them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import anna
from anna import authority
from bench import farcalls
from bench.harness import Sample, Settings, interleave, percentile, placed, two_cores
from bench.nodes import Node
from bench.peers.ours import Ours
from bench.processes import cpu_s
from bench.report import OURS, Report, Row
from bench.subjects import available

ENCRYPTED: Final = "encrypted"
SIZES: Final = {"64 B": 64, "1 KiB": 1 << 10, "64 KiB": 1 << 16, "1 MiB": 1 << 20}
FLIGHT: Final = 64
CONNECTIONS: Final = 20


def turn(call: Callable[[], object], seconds: float, operations: int = 1) -> Sample:
    """Return operations a second, and the percentiles of one call in µs."""
    taken = []
    begun = now = time.perf_counter()
    while now - begun < seconds:
        call()
        before, now = now, time.perf_counter()
        taken.append((now - before) * 1e6)
    taken.sort()
    return Sample(len(taken) * operations / (now - begun), percentile(taken, 0.5), percentile(taken, 0.99))


def call_of(kvs: anna.Client, operation: str, value: bytes) -> Callable[[], object]:
    """Return a call that makes one operation."""
    return partial(kvs.get, "k") if operation == "get" else partial(kvs.put, "k", value)


def flight(kvs: anna.Client, operation: str, value: bytes) -> Callable[[], object]:
    """Return a call that makes FLIGHT operations in one flight."""

    def fly() -> None:
        with kvs.pipeline() as pipe:
            for number in range(FLIGHT):
                if operation == "put":
                    pipe.put(f"flight{number}", value)
                else:
                    pipe.get(f"flight{number}")

    return fly


def connecting(address: str, keys: Path | None, pids: list[int]) -> Sample:
    """Return the processor time, in µs, of a client that connects, asks for the view and goes: of both sides."""
    used = cpu_s([*pids, os.getpid()])
    begun = time.perf_counter()
    for _ in range(CONNECTIONS):
        anna.connect(address, keys=keys).close()
    taken = (time.perf_counter() - begun) * 1e6 / CONNECTIONS
    return Sample((cpu_s([*pids, os.getpid()]) - used) * 1e6 / CONNECTIONS, taken, taken)


def of_both(settings: Settings, name: str, both: Sequence[Callable[[], Sample]], unit: str = "ops/s") -> Row:
    """Measure the plain and the sealed one in turns."""
    samples = interleave(settings.rounds, dict(zip((OURS, ENCRYPTED), both)))
    return Row("encrypted", name, unit, samples, note="plain TCP beside mutual TLS 1.3, loopback")


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure gets and puts of each size, one at a time and in flights, and what a connection costs."""
    report.heading("Encryption: one worker over TCP, plain and under TLS 1.3")
    if not available((Ours(),), settings, report):
        return
    cores, directory = two_cores(), settings.directory / "encrypted"
    directory.mkdir(parents=True)
    keys = directory / "keys"
    authority.found(keys)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        nodes = [Node(directory / "plain", cores.server), Node(directory / "sealed", cores.server, keys=keys)]
        for node in nodes:
            stack.callback(node.stop)
        stack.enter_context(placed(cores.client))
        plain, sealed = (
            stack.enter_context(anna.connect(node.seed, keys=shown)) for node, shown in zip(nodes, (None, keys))
        )
        for size, count in SIZES.items():
            value = b"x" * count
            for kvs in (plain, sealed):
                kvs.put("k", value)
            for operation in ("get", "put"):
                calls = [call_of(kvs, operation, value) for kvs in (plain, sealed)]
                both = [partial(turn, call, settings.seconds) for call in calls]
                yield of_both(settings, f"{operation} {size}", both)
        for operation in ("put", "get"):
            calls = [flight(kvs, operation, b"x" * 1024) for kvs in (plain, sealed)]
            both = [partial(turn, call, settings.seconds, FLIGHT) for call in calls]
            yield of_both(settings, f"{operation} 1 KiB, {FLIGHT} in one flight", both)
        both = [partial(connecting, node.seed, shown, node.pids) for node, shown in zip(nodes, (None, keys))]
        yield of_both(settings, "processor time of connecting", both, unit="µs")
        yield from _from_another_host(settings, keys, stack)


def _from_another_host(settings: Settings, keys: Path, stack: ExitStack) -> Iterator[Row]:
    """Measure calls of functions, small and large, from a host without a node."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cb-")))  # short enough for sockets
    stack.callback(os.environ.__setitem__, "CLOUDBURST_DIR", os.environ.get("CLOUDBURST_DIR", ""))
    stack.callback(os.environ.__setitem__, farcalls.HOST, os.environ.get(farcalls.HOST, ""))
    os.environ["CLOUDBURST_DIR"], os.environ[farcalls.HOST] = str(directory / "g"), "bench"
    plain = farcalls.calls(stack.enter_context(farcalls.client(directory / "p", None)))
    sealed = farcalls.calls(stack.enter_context(farcalls.client(directory / "s", keys)))
    for name, call in plain.items():
        yield of_both(settings, name, [partial(turn, one, settings.seconds) for one in (call, sealed[name])])
