"""Fair comparison: the same placement, alternating turns, medians with their spread.

The one rule: a figure is only quoted beside a peer's figure of the same run. Every round gives each subject
one turn, in an order that rotates from round to round, so that a noisy second hurts all of them; the ratio is
taken within each round, and its median over the rounds is what meets or misses a bar. Which rounds count is
decided by what other processes did meanwhile, never by a figure.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from bench.processes import machine_busy_s, own_busy_s

T = TypeVar("T")

QUIET_SHARE_MAX = 0.05
"""Share of the machine that other processes may take before a round, or a table, is called disturbed."""

ROUNDS_HELD_MAX = 3
"""How many times as many rounds as were asked for are held at most, to find enough quiet ones."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How much to measure. `only` names the subjects that take part (None: all that are installed)."""

    rounds: int
    seconds: float
    latencies: int
    quick: bool
    directory: Path
    only: frozenset[str] | None = None

    def wants(self, name: str) -> bool:
        """Tell whether the subject called `name` takes part."""
        return self.only is None or name in self.only


@dataclass(frozen=True, slots=True)
class Placement:
    """Which processors the server's and the client's side may use."""

    name: str
    server: frozenset[int]
    client: frozenset[int]


def one_core() -> Placement:
    """Client and server share one processor: what one core can do for both."""
    cpu = frozenset({max(os.sched_getaffinity(0))})
    return Placement("one core", cpu, cpu)


def two_cores() -> Placement:
    """The server has one processor, the client another (the same one where there is no second)."""
    cpus = sorted(os.sched_getaffinity(0))
    name = "two cores" if len(cpus) > 1 else "one core, there is no second"
    return Placement(name, frozenset({cpus[0]}), frozenset({cpus[-1]}))


@contextmanager
def placed(cpus: Iterable[int]) -> Iterator[None]:
    """Run the calling thread on `cpus` inside the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cpus))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn of one subject: the figure that is compared, and latencies in µs where they apply."""

    figure: float
    p50_us: float | None = None
    p99_us: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the least and the greatest."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median, least and greatest of `values`, which are not empty."""
    return Spread(median(values), min(values), max(values))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the element of the ascending `ordered` below which `share` of them lie."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def interleave(rounds: int, turns: Mapping[str, Callable[[], T]], until: float = math.inf) -> dict[str, tuple[T, ...]]:
    """Give every subject one turn in each round, A B C, B C A, C A B …, and return what it gave by round.

    A round in which other processes took more than QUIET_SHARE_MAX of the machine is held again, up to
    ROUNDS_HELD_MAX times as many in all; the `rounds` least disturbed ones are kept. No round but the first begins
    that would end after `until`, on the clock of `time.monotonic`, if it took as long as the last; so there may be
    fewer.
    """
    held: list[tuple[float, dict[str, T]]] = []
    names = list(turns)
    while names and len(held) < rounds * ROUNDS_HELD_MAX:
        at = len(held) % len(names)
        watch, began = Watch(), time.monotonic()
        found = {name: turn_of(turns[name]) for name in names[at:] + names[:at]}
        held.append((watch.taken_by_others(), found))
        now = time.monotonic()
        if sum(share <= QUIET_SHARE_MAX for share, _ in held) >= rounds or now + (now - began) >= until:
            break
    kept = [found for _, found in sorted(held, key=lambda round_: round_[0])[:rounds]]
    return {name: tuple(found[name] for found in kept) for name in names}


def turn_of(take: Callable[[], T]) -> T:
    """Take one turn, with the garbage of the last one collected before it."""
    gc.collect()
    return take()


class Watch:
    """Notices which share of the machine goes to processes that are not ours."""

    def __init__(self) -> None:
        self.began, self.busy, self.own = time.monotonic(), machine_busy_s(), own_busy_s()

    def taken_by_others(self) -> float:
        """Return that share since the watch began, 1 being all processors; known to about 10 ms."""
        others = (machine_busy_s() - self.busy) - (own_busy_s() - self.own)
        return max(0.0, others / (time.monotonic() - self.began) / (os.cpu_count() or 1))


def rate(one_pass: Callable[[], int], seconds: float) -> float:
    """Return operations per second of running `one_pass`, which returns how many it did, for `seconds`."""
    one_pass()
    done = 0
    start = time.perf_counter()
    deadline = start + seconds
    while True:
        done += one_pass()
        now = time.perf_counter()
        if now >= deadline:
            return done / (now - start)


def latencies_us(call: Callable[[], object], count: int) -> list[float]:
    """Return the durations of `count` calls in µs, ascending."""
    clock = time.perf_counter_ns
    taken = []
    for _ in range(count):
        start = clock()
        call()
        taken.append((clock() - start) / 1000)
    return sorted(taken)
