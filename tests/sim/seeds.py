"""Running seeds, on one process or on several.

The one rule: what comes back of a seed is small, and in the order of the seeds; a failed one is run again where it is
explained.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

from tests.sim.run import simulate
from tests.sim.swarm import Plan, plan_of

CHUNK_SEEDS = 10


class Choice(NamedTuple):
    """What all seeds of a run have in common: faults planted in the protocol, the kinds of faults."""

    planted: tuple[str, ...] = ()
    kinds: tuple[str, ...] | None = None
    deletes: bool = True
    long: bool = True

    def plan(self, seed: int) -> Plan:
        """Return the plan of a seed."""
        return plan_of(seed, *self)


class Tally(NamedTuple):
    """What is known of one seed."""

    seed: int
    digest: str
    checkers: list[str]
    entries: int
    succeeded: int
    events: int


def run_seed(seed: int, choice: Choice) -> Tally:
    """Run one seed."""
    outcome = simulate(choice.plan(seed))
    return Tally(seed, outcome.digest, outcome.checkers, outcome.entries, outcome.succeeded, outcome.events)


def run_seeds(first: int, count: int, choice: Choice) -> list[Tally]:
    """Run some seeds in this process."""
    return [run_seed(seed, choice) for seed in range(first, first + count)]


def tallies(first: int, count: int, workers: int, choice: Choice) -> Iterator[Tally]:
    """Yield the tally of each seed, in order."""
    chunks = [(at, min(CHUNK_SEEDS, first + count - at)) for at in range(first, first + count, CHUNK_SEEDS)]
    if workers == 1:
        for at, size in chunks:
            yield from run_seeds(at, size, choice)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_seeds, at, size, choice) for at, size in chunks]
        for future in futures:
            yield from future.result()
