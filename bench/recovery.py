"""How soon a node is back with its keys, and what readers notice while a new node takes over its share.

The one rule: a node is back when a client has read one of its keys, measured from the start of its process; and of all
reads during a move each must find its key, or the run is broken.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import anna
from bench import loadgen
from bench.harness import Sample, Settings, percentile
from bench.nodes import ACK_DISK, ACK_ONE, Line, Node, load_key, put_request
from bench.peers import connect
from bench.peers.ours import Ours
from bench.processes import POLL_S
from bench.report import OURS, Bar, Report, Row
from bench.subjects import available

KEYS: Final = 1_000_000
KEYS_QUICK: Final = 20_000
VALUE_BYTES: Final = 100
BACK_LIMIT_S: Final = 5.0
GIVE_UP_S: Final = 120.0
FILL_CONNECTIONS: Final = 8
FILL_DEPTH: Final = 32

MOVED_KEYS: Final = 100_000
MOVED_KEYS_QUICK: Final = 5_000
NORMAL_S: Final = 2.0
NORMAL: Final = "before"
MOVE_BAR: Final = Bar(NORMAL, 1 / 3)
SEED: Final = 5


def fill(node: Node, keys: int, ack: int) -> None:
    """Write `keys` keys, each once."""
    request = put_request(VALUE_BYTES, ack)
    with ExitStack() as stack:
        links = [stack.enter_context(closing(connect(node.paths[0]))) for _ in range(FILL_CONNECTIONS)]
        outcome = loadgen.run(
            [link.fileno() for link in links],
            request.template,
            request.digits_at,
            request.protocol,
            FILL_DEPTH,
            keys,
            0.0,
            stamp_at=request.stamp_at,
            sequential=True,
        )
    if outcome.errors:
        raise RuntimeError(f"of {outcome.ops:,} writes {outcome.errors:,} were refused")


def back_after_s(directory: Path, data: Path, keys: int) -> tuple[Node, float]:
    """Start a node on `data`; return it, and the seconds until it has answered with the last key of `keys`."""
    cpus = os.sched_getaffinity(0)
    begun = time.monotonic()
    node = Node(directory, cpus, data=data)
    with Line(node.paths[0]) as line:
        while line.get(load_key(keys - 1)) is None:
            if time.monotonic() - begun > GIVE_UP_S:
                raise RuntimeError(f"the node did not have its keys within {GIVE_UP_S:g} s")
            time.sleep(POLL_S)
        taken = time.monotonic() - begun
        found = line.status()["keys"]
    if found < keys:
        node.stop()
        raise RuntimeError(f"{found:,} of {keys:,} keys came back")
    return node, taken


def restart_rows(settings: Settings) -> Iterator[Row]:
    """Measure restarts after an ordinary stop and after a crash."""
    keys = KEYS_QUICK if settings.quick else KEYS
    directory = settings.directory / "recovery"
    data = directory / "data"
    starts = 0

    def start() -> tuple[Node, float]:
        nonlocal starts
        starts += 1
        return back_after_s(directory / f"start-{starts}", data, keys)

    try:
        node = Node(directory / "first", os.sched_getaffinity(0), data=data)
        fill(node, keys, ACK_DISK)
        samples: dict[str, list[Sample]] = {"stop": [], "crash": []}
        for _ in range(min(settings.rounds, 3)):
            for how, taken in samples.items():
                (node.stop if how == "stop" else node.kill)()
                node, seconds = start()
                taken.append(Sample(seconds))
        node.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    for how, taken in samples.items():
        name = f"{keys:,} keys of {VALUE_BYTES} B back after a {how}"
        yield Row("recovery", name, "s", {OURS: tuple(taken)}, limit=BACK_LIMIT_S)


class Reader:
    """A thread that reads keys, one after the other, and keeps how long each took."""

    def __init__(self, address: str, keys: int) -> None:
        self.keys = keys
        self.taken: list[float] = []
        self.failure: BaseException | None = None
        self.stopping = False
        self.client = anna.connect(address)
        self.thread = threading.Thread(target=self.run, name="reader")
        self.thread.start()

    def run(self) -> None:
        """Read until it is told to stop; a key that is not there ends it."""
        numbers = random.Random(SEED)
        names = [load_key(number).decode() for number in range(self.keys)]
        clock = time.perf_counter
        try:
            while not self.stopping:
                key = names[numbers.randrange(self.keys)]
                begun = clock()
                self.client.get(key)
                self.taken.append((clock() - begun) * 1e6)
        except BaseException as error:
            self.failure = error

    def since(self, begin: int) -> tuple[int, list[float]]:
        """Return how many reads there were, and those since `begin`, ascending. Raises what ended the reader."""
        if self.failure is not None:
            raise RuntimeError("a read failed while keys moved") from self.failure
        end = len(self.taken)
        return end, sorted(self.taken[begin:end])

    def stop(self) -> None:
        """End the thread."""
        self.stopping = True
        self.thread.join()
        self.client.close()


def move_rows(settings: Settings) -> Iterator[Row]:
    """Let a node join one that has all keys, under reads, and wait until its share has moved."""
    keys = MOVED_KEYS_QUICK if settings.quick else MOVED_KEYS
    cpus = os.sched_getaffinity(0)
    directory = settings.directory / "move"
    before, during, moved, seconds = [], [], [], []
    for number in range(min(settings.rounds, 3)):
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            first = Node(directory / f"a-{number}", cpus)
            stack.callback(first.stop)
            fill(first, keys, ACK_ONE)
            reader = Reader(f"unix:{first.paths[0]}", keys)
            stack.callback(reader.stop)
            time.sleep(NORMAL_S / (10 if settings.quick else 1))
            at, normal = reader.since(0)
            begun = time.monotonic()
            second = Node(directory / f"b-{number}", cpus, join=first.seed)
            stack.callback(second.stop)
            took = wait_moved(first, second, keys)
            seconds.append(Sample(time.monotonic() - begun))
            _, busy = reader.since(at)
            before.append(Sample(percentile(normal, 0.99)))
            during.append(Sample(percentile(busy, 0.99), percentile(busy, 0.5), percentile(busy, 0.99)))
            moved.append(took)
    samples = {OURS: tuple(during), NORMAL: tuple(before)}
    note = f"{moved[-1]:,} of {keys:,} keys moved, every read found its key"
    yield Row("recovery", "p99 of reads while a node joins", "µs", samples, (MOVE_BAR,), note=note)
    yield Row("recovery", f"a node joins and has its share of {keys:,} keys", "s", {OURS: tuple(seconds)})


def wait_moved(first: Node, second: Node, keys: int) -> int:
    """Return how many keys the second node has when the first has dropped all that it does not own any more."""
    deadline = time.monotonic() + GIVE_UP_S
    with Line(first.paths[0]) as old, Line(second.paths[0]) as new:
        while time.monotonic() < deadline:
            stay, gone = old.status()["keys"], new.status()["keys"]
            if gone and stay + gone == keys:
                return int(gone)
            time.sleep(POLL_S)
    raise RuntimeError(f"after {GIVE_UP_S:g} s the nodes have {stay:,} and {gone:,} of {keys:,} keys")


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure restarts, then a join."""
    report.heading("Recovery: a node comes back, and a node comes new")
    if available((Ours(),), settings, report):
        yield from restart_rows(settings)
        yield from move_rows(settings)
