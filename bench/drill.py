"""Executors are killed while 5,000 calls run: does every call end, rightly, and how much slower are they?

A call is 2 ms of processor time, and every 200 ms the next executor is killed (SIGKILL). The bar on throughput is
against the same calls when nobody is killed, in the same round. What went wrong is counted over all rounds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.driver import Driver, driving
from bench.harness import Sample, Settings, interleave, placed, two_cores
from bench.peers import our_runtime
from bench.pictures import Picture, Timeline
from bench.report import OURS, Bar, Report, Row
from bench.turns import TABLE_QUICK_S, TABLE_S, available, subject

CALLS: Final = 5_000
CALLS_QUICK: Final = 500
KILL_EVERY_S: Final = 0.2
ATTEMPTS_MAX: Final = 3
UNDISTURBED: Final = "undisturbed"
BARS: Final = (Bar(UNDISTURBED, 0.6),)


@dataclass(frozen=True, slots=True)
class Course:
    """What became of one run's calls, as the child tells it."""

    calls: int
    seconds: float
    ended: Sequence[float]
    kills: Sequence[float]
    wrong: int
    failed: int
    errors: Sequence[str]
    attempts: int
    again: int

    @property
    def unfinished(self) -> int:
        """How many calls never ended."""
        return self.calls - len(self.ended)


def course(driver: Driver, calls: int, kill_every_s: float) -> Course:
    """Run the calls once."""
    found: dict[str, Any] = driver.find("drill", calls, kill_every_s)
    return Course(calls, **found)


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Run undisturbed and with kills, in turns."""
    calls = CALLS_QUICK if settings.quick else CALLS
    report.heading(f"Drill: {calls:,} calls, an executor killed every {KILL_EVERY_S * 1000:g} ms, two cores")
    if not available((subject(our_runtime),), settings, report):
        return
    place = two_cores()
    until = time.monotonic() + (TABLE_QUICK_S if settings.quick else TABLE_S)
    directory = settings.directory / "drill"
    directory.mkdir(exist_ok=True)
    with placed(place.server | place.client), driving(our_runtime, our_runtime.environment(directory)) as driver:
        turns = {OURS: lambda: course(driver, calls, KILL_EVERY_S), UNDISTURBED: lambda: course(driver, calls, 0.0)}
        taken = interleave(settings.rounds, turns, until)
    report.picture(picture(taken[OURS][0], taken[UNDISTURBED][0]))
    yield from verdicts(taken[OURS], taken[UNDISTURBED])


def verdicts(killed: Sequence[Course], undisturbed: Sequence[Course]) -> Iterator[Row]:
    """Return the rows of these runs: the throughput, and everything that may not happen, the worst of all rounds."""
    kills = sum(len(one.kills) for one in killed)
    samples = {
        name: tuple(Sample(one.calls / one.seconds) for one in found)
        for name, found in ((OURS, killed), (UNDISTURBED, undisturbed))
    }
    again = sum(one.again for one in killed)
    note = f"{kills} kills, {again} calls begun again"
    yield Row("drill", "calls while executors are killed", "calls/s", samples, BARS, note=note)
    errors = sorted({error for one in killed for error in one.errors})
    yield bound("calls that did not end", max(one.unfinished for one in killed), 1)
    yield bound("calls that failed", max(one.failed for one in killed), 1, "; ".join(errors[:2]))
    yield bound("wrong answers", max(one.wrong for one in killed), 1)
    yield bound("attempts of a call, the most", max(one.attempts for one in killed), ATTEMPTS_MAX + 1)


def bound(name: str, found: int, limit: int, note: str = "") -> Row:
    """Return a row of a count that must be below `limit`."""
    return Row("drill", name, "", {OURS: (Sample(float(found)),)}, limit=float(limit), note=note)


def picture(killed: Course, undisturbed: Course) -> Picture:
    """Return how many calls had ended when, with a mark for each kill."""
    lines = {"executors killed": list(killed.ended), UNDISTURBED: list(undisturbed.ended)}
    return Picture("drill", Timeline("Calls that have ended", lines, list(killed.kills)))
