"""Function calls: one warm no-op at a time, and many at once, against Python's own pool and Ray.

Every runtime may use the same two cores and lives in a process of its own. Ray is started anew for each of
its turns and stopped after it, because its daemons would take a share of everybody else's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from bench.driver import Driver
from bench.harness import Sample, Settings, interleave, percentile, placed, two_cores
from bench.peers import our_runtime, process_pool, ray_cluster
from bench.report import Bar, Report, Row

RUNTIMES: Final = (our_runtime, process_pool, ray_cluster)
FRESH: Final = frozenset({ray_cluster.NAME})
SPAWNS: Final = 10_000
SPAWNS_QUICK: Final = 1_000
CALL_BARS: Final = (Bar(process_pool.NAME, 1.0), Bar(ray_cluster.NAME, 8.0))
SPAWN_BARS: Final = (Bar(process_pool.NAME, 1.0), Bar(ray_cluster.NAME, 8.0))


def available(settings: Settings, report: Report) -> list[ModuleType]:
    """Return the wanted runtimes that are installed."""
    found: list[ModuleType] = []
    for runtime in RUNTIMES:
        how = runtime.missing() if settings.wants(runtime.NAME) else "not among --only"
        if how is not None:
            report.skip(runtime.NAME, how)
        else:
            report.versions.setdefault(runtime.NAME, runtime.version())
            found.append(runtime)
    return found


@dataclass(frozen=True, slots=True)
class Taken:
    """What one turn gave: p50 of warm calls in µs, spawned calls/s, seconds to the first result."""

    call: Sample
    spawn: Sample
    start: Sample


class Turns:
    """Takes one runtime's turns; keeps its child between them unless it must not idle beside others."""

    def __init__(self, runtime: ModuleType, settings: Settings, stack: ExitStack) -> None:
        self.runtime = runtime
        self.settings = settings
        self.spawns = SPAWNS_QUICK if settings.quick else SPAWNS
        self.kept: Driver | None = None
        if runtime.NAME not in FRESH:
            self.kept = self.driver()
            stack.callback(self.kept.stop)

    def driver(self) -> Driver:
        """Start a child that runs it."""
        directory = self.settings.directory / "functions"
        directory.mkdir(exist_ok=True)
        return Driver(self.runtime.__name__, self.runtime.environment(directory))

    def take(self) -> Taken:
        """Measure warm calls one after the other, then many at once."""
        driver = self.kept or self.driver()
        try:
            driver.call(max(20, self.settings.latencies // 10))
            called = driver.call(self.settings.latencies)
            driver.spawn(self.spawns // 10)
            rate = self.spawns / driver.spawn(self.spawns)
        finally:
            if self.kept is None:
                driver.stop()
        p50 = percentile(called, 0.50)
        return Taken(Sample(p50, p50, percentile(called, 0.99)), Sample(rate), Sample(driver.start_s))


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure warm calls, spawns, and what it takes to get to the first result."""
    place = two_cores()
    cpus = place.server | place.client
    report.heading(f"Functions: no-ops, warm, {len(cpus)} cores for each runtime")
    with ExitStack() as stack:
        stack.enter_context(placed(cpus))
        runtimes = {runtime.NAME: Turns(runtime, settings, stack) for runtime in available(settings, report)}
        taken = interleave(settings.rounds, {name: turns.take for name, turns in runtimes.items()})
    count = SPAWNS_QUICK if settings.quick else SPAWNS
    calls = {name: tuple(one.call for one in found) for name, found in taken.items()}
    spawned = {name: tuple(one.spawn for one in found) for name, found in taken.items()}
    starts = {name: tuple(one.start for one in found) for name, found in taken.items()}
    yield Row("functions", "call, one at a time, p50", "µs", calls, CALL_BARS)
    yield Row("functions", f"spawn {count:,}", "calls/s", spawned, SPAWN_BARS)
    yield Row("functions", "import, start, first result", "s", starts)
