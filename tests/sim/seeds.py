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
from tests.sim.swarm import plan_of

CHUNK_SEEDS = 10


class Tally(NamedTuple):
    """What is known of one seed."""

    seed: int
    digest: str
    checkers: list[str]
    entries: int
    succeeded: int
    events: int


def run_seed(seed: int, planted: tuple[str, ...]) -> Tally:
    """Run one seed."""
    outcome = simulate(plan_of(seed, planted))
    return Tally(seed, outcome.digest, outcome.checkers, outcome.entries, outcome.succeeded, outcome.events)


def run_seeds(first: int, count: int, planted: tuple[str, ...]) -> list[Tally]:
    """Run some seeds in this process."""
    return [run_seed(seed, planted) for seed in range(first, first + count)]


def tallies(first: int, count: int, workers: int, planted: tuple[str, ...]) -> Iterator[Tally]:
    """Yield the tally of each seed, in order."""
    chunks = [(at, min(CHUNK_SEEDS, first + count - at)) for at in range(first, first + count, CHUNK_SEEDS)]
    if workers == 1:
        for at, size in chunks:
            yield from run_seeds(at, size, planted)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_seeds, at, size, planted) for at, size in chunks]
        for future in futures:
            yield from future.result()
