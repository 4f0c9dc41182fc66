"""Many calls at once: no-ops, and tasks of 1 ms of processor time, sent without waiting between them.

What tasks of 1 ms should take is known: their processor time divided by the executors. On a machine whose processors
others use as well it cannot be reached, so the processor time beyond the tasks' own is a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.driver import Measured
from bench.harness import Settings, two_cores
from bench.peers import dask_cluster, process_pool, ray_cluster
from bench.report import Bar, Report, Row
from bench.turns import RUNTIMES, Question, Taken, p50, processor, take_turns
from bench.work import TASK_US

SPAWNS: Final = (1_000, 10_000)
SPAWNS_QUICK: Final = (200, 1_000)
SPAWN_BARS: Final = (Bar(process_pool.NAME, 1.2), Bar(ray_cluster.NAME, 8.0), Bar(dask_cluster.NAME, 30.0))
OVER_IDEAL_MAX: Final = 1.05
WARM: Final = 20
"""Tasks that come first and are not looked at: every process has loaded the function after them."""


def title(calls: int, microseconds: int) -> str:
    """Return what a row is called."""
    return f"{calls:,} no-ops" if not microseconds else f"{calls:,} tasks of {microseconds / 1000:g} ms"


def ideal_s(calls: int, microseconds: int, processors: int) -> float:
    """Return the seconds that so many tasks take when nothing but them uses the processors."""
    return calls * microseconds / 1e6 / processors


def question(calls: int, microseconds: int) -> Question:
    """Return one burst, once."""
    return Question(title(calls, microseconds), "burst", (calls, microseconds), warm=False)


def seconds(measured: Measured) -> float:
    """Return how long a burst took."""
    return p50(measured) / 1e6


def task_rows(taken: Taken, calls: int, bar: bool) -> Iterator[Row]:
    """Return the rows of tasks that use a processor."""
    place = two_cores()
    ideal = ideal_s(calls, TASK_US, len(place.server | place.client))
    name = title(calls, TASK_US)
    limit = OVER_IDEAL_MAX * ideal if bar else None
    yield Row("burst", name, "s", taken.samples(name, seconds), limit=limit, note=f"ideal {ideal:g} s")
    beyond = taken.samples(name, lambda one: max(0.01, processor(one) / calls - TASK_US))
    yield Row("burst", f"{name}, processor time beyond a task's own", "µs", beyond)


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure bursts of both kinds; the largest of tasks once only, for it takes long."""
    report.heading("Bursts: calls without waiting between them, two cores for each runtime")
    few, many = SPAWNS_QUICK if settings.quick else SPAWNS
    questions = (question(few, 0), question(many, 0), question(WARM, TASK_US), question(few, TASK_US))
    taken = take_turns("burst", RUNTIMES, questions, settings, report)
    for calls in (few, many):
        samples = taken.samples(title(calls, 0), lambda one, calls=calls: calls / seconds(one))  # type: ignore[misc]
        yield Row("burst", title(calls, 0), "calls/s", samples, SPAWN_BARS if calls == many else ())
        spent = taken.samples(title(calls, 0), lambda one, calls=calls: processor(one) / calls)  # type: ignore[misc]
        yield Row("burst", f"{title(calls, 0)}, processor time of a call", "µs", spent)
    yield from task_rows(taken, few, bar=True)
    if not settings.quick:
        largest = (question(WARM, TASK_US), question(many, TASK_US))
        yield from task_rows(take_turns("burst", RUNTIMES, largest, settings, report, rounds=1), many, bar=False)
