"""What sessions cost: a read of a cached key at an epoch, a commit of three keys, and how old the epoch is.

Reads are timed inside a function, which reads each of many cached keys, as eventual and in a causal session in turn:
that is a session's own part, without the call around it. A commit is timed at a client of two workers, beside
three plain puts in one pipeline to the same keys.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import anna
import cloudburst as cb
from anna.routing.placement import Placement
from bench.harness import Sample, Settings, interleave, latencies_us, percentile, placed, two_cores
from bench.nodes import Node, wait_settled
from bench.report import OURS, Bar, Report, Row

EVENTUAL: Final = "eventual"
PUTS: Final = "three puts in a pipeline"
READ_BARS: Final = (Bar(EVENTUAL, 1 / 1.3),)
READ_TAIL_BARS: Final = (Bar(EVENTUAL, 1 / 2.5),)
COMMIT_BARS: Final = (Bar(PUTS, 0.5),)
AGE_LIMIT: Final = 4.0
"""The stable epoch may be three epochs old: fewer than four."""
READS: Final = 2000
KEYS: Final = 250
COMMITS: Final = 1000
AGE_S: Final = 6.0
AGE_QUICK_S: Final = 1.0
PUT_EVERY_S: Final = 0.02


def read_times(keys: Sequence[str], rounds: int) -> list[float]:
    """In a function: read each key so many times; return what each read took, in µs, ascending."""
    cb.mget(list(keys))
    each = iter([key for _ in range(rounds) for key in keys])
    return latencies_us(lambda: cb.get(next(each)), rounds * len(keys))


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure reads, commits and the age of the stable epoch."""
    report.heading("Sessions: reads of a cached key, commits, and how old what they read is")
    yield from read_rows(settings)
    directory = settings.directory / "sessions"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        node = Node(directory, two_cores().server, workers=2)
        stack.callback(node.stop)
        wait_settled(node.paths, 1)
        yield commit_row(node, settings)
        yield age_row(node, settings)


def read_rows(settings: Settings) -> Iterator[Row]:
    """Compare reads in a causal session with eventual ones, in one executor."""
    rounds = max(1, min(READS, 4 * settings.latencies) // KEYS)
    keys = [f"hot-{number}" for number in range(KEYS)]
    with cb.up(hosts=1, executors=1, workers=2) as up:
        up.client.register(read_times)
        up.client.mput(dict.fromkeys(keys, 1))

        def turn(level: str) -> Sample:
            taken = up.client.options(session=level, timeout=60).call("read_times", keys, rounds)
            return Sample(percentile(taken, 0.5), percentile(taken, 0.5), percentile(taken, 0.99))

        turns = {OURS: partial(turn, "causal"), EVENTUAL: partial(turn, EVENTUAL)}
        taken = interleave(settings.rounds, turns)
    yield Row("sessions", "read of a cached key in a causal session, p50", "µs", taken, READ_BARS)
    tails = {name: tuple(Sample(one.p99_us or 0.0) for one in found) for name, found in taken.items()}
    yield Row("sessions", "the same, p99", "µs", tails, READ_TAIL_BARS)


def commit_row(node: Node, settings: Settings) -> Row:
    """Compare an atomic commit of three keys with three puts."""
    count = min(COMMITS, settings.latencies)
    with placed(two_cores().client), anna.connect(node.addresses[0][0]) as client:
        keys = keys_on_both(client)

        def puts() -> None:
            with_pipeline = client.pipeline()
            for key in keys:
                with_pipeline.put(key, b"x" * 256)
            with_pipeline.execute()

        def commit() -> None:
            client.commit(dict.fromkeys(keys, b"x" * 256))

        def turn(work: Callable[[], None]) -> Sample:
            taken = latencies_us(work, count)
            return Sample(percentile(taken, 0.5), percentile(taken, 0.5), percentile(taken, 0.99))

        turns = {OURS: partial(turn, commit), PUTS: partial(turn, puts)}
        return Row(
            "sessions", "commit of 3 keys over 2 workers, p50", "µs", interleave(settings.rounds, turns), COMMIT_BARS
        )


def keys_on_both(client: Any) -> list[str]:
    """Return three keys that do not all belong to the same worker."""
    placement = Placement(client.view)
    names = [f"together-{number}" for number in range(64)]
    by_owner: dict[int, list[str]] = {}
    for name in names:
        by_owner.setdefault(placement.owners_of(name.encode())[0], []).append(name)
    first, second = (by_owner[owner] for owner in sorted(by_owner)[:2])
    return [*first[:2], second[0]]


def age_row(node: Node, settings: Settings) -> Row:
    """Measure how old the stable epoch is while there is a little work."""
    with placed(two_cores().client), anna.connect(node.addresses[0][0]) as client:
        samples = []
        for _ in range(settings.rounds):
            end = time.monotonic() + (AGE_QUICK_S if settings.quick else AGE_S / settings.rounds)
            while time.monotonic() < end:
                client.put("now and then", b"x")
                threading.Event().wait(PUT_EVERY_S)
            figures = client.status()
            samples.append(Sample(max(float(one["stable_age_p99"]) for one in figures)))
        middle = max(one["stable_age_p50"] for one in figures)
    note = f"p50 {middle} epochs of 10 ms"
    return Row("sessions", "age of the stable epoch, p99", "epochs", {OURS: tuple(samples)}, limit=AGE_LIMIT, note=note)
