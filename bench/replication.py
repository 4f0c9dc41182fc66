"""What a second copy of each key costs, on two local nodes: until a write is seen there, processor time, and messages.

The one rule: a write counts as seen when the other node answers with it, and as paid for when both nodes' processor
time is counted. "one copy" is the same two nodes' software with a factor of 1: one node, same load.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from anna.config import EPOCH_US
from bench.harness import Sample, Settings, interleave, percentile, placed, two_cores
from bench.nodes import ACK_ONE, Line, Node, put_request, wait_settled
from bench.peers.ours import Ours
from bench.processes import cpu_s
from bench.report import OURS, Bar, Report, Row
from bench.scaling import CONNECTIONS, VALUE_BYTES, flights
from bench.subjects import available

ONE_COPY: Final = "one copy"
COST_BAR: Final = Bar(ONE_COPY, 0.5)
VISIBLE_LIMIT_US: Final = 20_000.0
LOOK_S: Final = 0.0002
SEED: Final = 11
GIVE_UP_S: Final = 5.0
CELLS_LIMIT: Final = 1.1
DRAIN_S: Final = 0.1
IDLE_LIMIT_PERCENT: Final = 1.0
IDLE_S: Final = 10.0
IDLE_QUICK_S: Final = 1.0
IDLE_SETTLE_S: Final = 3.0


@contextmanager
def two_nodes(settings: Settings, cpus: frozenset[int], name: str) -> Iterator[tuple[Node, Node]]:
    """Run two nodes of one worker that both hold every key."""
    directory = settings.directory / name
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        first = Node(directory / "a", cpus, factor=2)
        stack.callback(first.stop)
        second = Node(directory / "b", cpus, join=first.seed)
        stack.callback(second.stop)
        wait_settled([*first.paths, *second.paths], 2)
        yield first, second


def seen_after_us(writer: Line, reader: Line, count: int) -> list[float]:
    """Return how long each of `count` writes took to be seen at the other node, ascending."""
    taken = []
    moments = random.Random(SEED)
    for number in range(count):
        time.sleep(moments.random() * 2 * EPOCH_US / 1e6)
        value = b"%08d" % number
        begun = time.perf_counter()
        writer.put(b"seen", value, ACK_ONE)
        while not (reader.get(b"seen") or b"").endswith(value):
            if time.perf_counter() - begun > GIVE_UP_S:
                raise RuntimeError(f"write {number} was not seen at the other node within {GIVE_UP_S:g} s")
            time.sleep(LOOK_S)
        taken.append((time.perf_counter() - begun) * 1e6)
    return sorted(taken)


def visible_row(first: Node, second: Node, settings: Settings) -> Row:
    """Measure how long a write takes to the other node."""
    count = max(20, settings.latencies // 4)
    with placed(two_cores().client), Line(first.paths[0]) as writer, Line(second.paths[0]) as reader:
        samples = []
        for _ in range(settings.rounds):
            taken = seen_after_us(writer, reader, count)
            samples.append(Sample(percentile(taken, 0.99), percentile(taken, 0.5), percentile(taken, 0.99)))
    note = f"{count} writes a round"
    return Row("replication", "write to seen elsewhere, p99", "µs", {OURS: tuple(samples)}, (), VISIBLE_LIMIT_US, note)


def cost_turn(path: str, pids: list[int], seconds: float) -> Sample:
    """Return the processor time of a write in µs, of all `pids` together."""
    request = put_request(VALUE_BYTES)
    used = cpu_s(pids)
    outcome = flights([path], None, request, CONNECTIONS, seconds)
    time.sleep(DRAIN_S)  # the last epochs' deltas are under way
    return Sample((cpu_s(pids) - used) * 1e6 / outcome.ops, outcome.p50_us, outcome.p99_us)


def cost_row(first: Node, second: Node, single: Node, settings: Settings) -> Row:
    """Measure the processor time of a write, with and without its second copy."""
    turns = {
        OURS: partial(cost_turn, first.paths[0], [*first.pids, *second.pids], settings.seconds),
        ONE_COPY: partial(cost_turn, single.paths[0], single.pids, settings.seconds),
    }
    samples = interleave(settings.rounds, turns)
    note = "uniform keys, ack=1; 0.5 is twice the cost"
    return Row("replication", "processor time of a write, all nodes", "µs", samples, (COST_BAR,), note=note)


def cells_row(name: str, node: Node, connections: int, settings: Settings) -> Row:
    """Measure how many cells one hot key sends to the other node in an epoch."""
    request = put_request(VALUE_BYTES)
    samples = []
    with Line(node.paths[0]) as line:
        for _ in range(settings.rounds):
            before = line.status()["deltas_sent"]
            outcome = flights([node.paths[0]], [bytes(4)], request, connections, settings.seconds)
            time.sleep(DRAIN_S)
            epochs = outcome.seconds * 1e6 / EPOCH_US + 1
            samples.append(Sample((line.status()["deltas_sent"] - before) / epochs, note=f"{outcome.rate:.0f}"))
    rates = ", ".join(f"{float(sample.note):,.0f}" for sample in samples[:1])
    note = f"{rates} writes/s"
    title = f"cells of a hot key an epoch, {name}"
    return Row("replication", title, "cells", {OURS: tuple(samples)}, limit=CELLS_LIMIT, note=note)


def idle_row(first: Node, second: Node, settings: Settings) -> Row:
    """Measure what the two nodes use while nobody asks for anything."""
    seconds = IDLE_QUICK_S if settings.quick else IDLE_S
    time.sleep(IDLE_SETTLE_S)
    pids = [*first.pids, *second.pids]
    used = cpu_s(pids)
    time.sleep(seconds)
    share = 100 * (cpu_s(pids) - used) / seconds
    note = f"of one core, over {seconds:g} s, {len(pids)} processes"
    return Row("replication", "idle: both nodes", "%", {OURS: (Sample(share),)}, (), IDLE_LIMIT_PERCENT, note)


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure the two nodes: at rest first, then under load."""
    report.heading("Replication: two nodes of one worker, two copies of each key")
    if not available((Ours(),), settings, report):
        return
    cpus = frozenset(os.sched_getaffinity(0))
    with two_nodes(settings, cpus, "replication") as (first, second):
        yield idle_row(first, second, settings)
        yield visible_row(first, second, settings)
        yield cells_row("1 connection", first, 1, settings)
        yield cells_row(f"{CONNECTIONS} connections", first, CONNECTIONS, settings)
        directory = settings.directory / "single"
        single = Node(directory, cpus)
        try:
            yield cost_row(first, second, single, settings)
        finally:
            single.stop()
            shutil.rmtree(directory, ignore_errors=True)
