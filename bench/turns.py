"""Runtimes take turns at the same questions: which they are asked, and how rows come of their answers.

The one rule: in each round every subject is asked the same questions for the same time, one subject after the other;
those that would take a share of the others' processors while they wait are started for their turn and stopped after
it. What a subject cannot do is reported as broken, and its figure left out; ours that dies breaks the table.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Final

from bench.driver import Driver, Measured, Refused, driving, offers
from bench.harness import Sample, Settings, interleave, percentile, placed, two_cores
from bench.peers import dask_cluster, lithops_local, our_runtime, process_pool, ray_cluster
from bench.report import OURS, Bar, Report, Row

FRESH: Final = frozenset({ray_cluster.NAME, dask_cluster.NAME, lithops_local.NAME})
"""Runtimes whose daemons are busy while nobody asks for anything."""

TABLE_S: Final = 100.0
TABLE_QUICK_S: Final = 10.0
"""How long one table may take: no round is begun that would end later, but for the first."""

WARM_SHARE: Final = 10
"""One warm run for each so many that count."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A runtime under the name that it has in the rows; `instead` says which of its works answers a question."""

    name: str
    runtime: ModuleType
    instead: Mapping[str, str] = field(default_factory=dict)

    def answers(self, what: str) -> bool:
        """Tell whether it can be asked for `what`."""
        return offers(self.runtime, self.instead.get(what, what))


def subject(runtime: ModuleType, name: str | None = None, **instead: str) -> Subject:
    """Return `runtime` as a subject, by default under its own name."""
    return Subject(name or runtime.NAME, runtime, instead)


@dataclass(frozen=True, slots=True)
class Question:
    """What each subject that can is asked to do: at most `count` times, for about so many seconds."""

    title: str
    what: str
    arguments: tuple[object, ...] = ()
    count: int = 1
    seconds: float = 0.0
    warm: bool = True

    def ask(self, subject: Subject, driver: Driver) -> Measured:
        """Have it done and measured."""
        warm = max(1, self.count // WARM_SHARE) if self.warm else 0
        what = subject.instead.get(self.what, self.what)
        return driver.measure(what, *self.arguments, warm=warm, count=self.count, seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class Answers:
    """What one subject gave in one turn: by title, and the seconds to its first result."""

    by_title: Mapping[str, Measured]
    start_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """What all subjects gave, round by round."""

    by_subject: Mapping[str, tuple[Answers, ...]]

    def samples(
        self, title: str, figure: Callable[[Measured], float], latencies: bool = False
    ) -> dict[str, tuple[Sample, ...]]:
        """Return what each subject that answered gave, round by round, with its percentiles if they are wanted."""
        found = {}
        for name, answers in self.by_subject.items():
            measured = [one.by_title[title] for one in answers if title in one.by_title]
            if measured and len(measured) == len(answers):
                found[name] = tuple(sample(one, figure(one), latencies) for one in measured)
        return found

    def starts(self) -> dict[str, tuple[Sample, ...]]:
        """Return the seconds to the first result."""
        return {name: tuple(Sample(one.start_s) for one in found) for name, found in self.by_subject.items()}


def p50(measured: Measured) -> float:
    """Return the median duration in µs."""
    return percentile(measured.us, 0.50)


def tail(measured: Measured) -> float:
    """Return how many times the median the 99th percentile is."""
    return percentile(measured.us, 0.99) / percentile(measured.us, 0.50)


def processor(measured: Measured) -> float:
    """Return the processor time of one run in µs, of all the runtime's processes."""
    return max(measured.cpu_us, 0.01)


def sample(measured: Measured, figure: float, latencies: bool) -> Sample:
    """Return one turn's figure, with percentiles when they are wanted."""
    if not latencies:
        return Sample(figure)
    return Sample(figure, percentile(measured.us, 0.50), percentile(measured.us, 0.99))


def available(subjects: Sequence[Subject], settings: Settings, report: Report) -> list[Subject]:
    """Return the wanted subjects that are installed; say in `report` how to get the others."""
    found = []
    for one in subjects:
        how = one.runtime.missing() if settings.wants(one.name) else "not among --only"
        if how is not None:
            report.skip(one.name, how)
        else:
            report.versions.setdefault(one.name, one.runtime.version())
            found.append(one)
    return found


class Turns:
    """Takes one subject's turns; keeps its child between them unless it must not idle beside others."""

    def __init__(self, area: str, one: Subject, settings: Settings, report: Report) -> None:
        self.area, self.subject, self.report = area, one, report
        self.directory = settings.directory / area / one.name.replace(" ", "-")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.kept: Driver | None = None

    @contextmanager
    def driver(self, stack: ExitStack) -> Iterator[Driver]:
        """Have a child within the block; `stack` ends one that is kept."""
        environment = self.subject.runtime.environment(self.directory)
        if self.subject.name in FRESH:
            with driving(self.subject.runtime, environment) as fresh:
                yield fresh
            return
        if self.kept is None:
            self.kept = stack.enter_context(driving(self.subject.runtime, environment))
        yield self.kept

    def take(self, questions: Sequence[Question], stack: ExitStack) -> Answers | None:
        """Ask all questions that the subject answers; None when it broke, which is then in the report."""
        key = f"{self.area}, {self.subject.name}"
        if key in self.report.broken:
            return None
        try:
            with self.driver(stack) as driver:
                asked = [one for one in questions if self.subject.answers(one.what)]
                return Answers(self.answers(asked, driver), driver.start_s)
        except (RuntimeError, OSError) as error:
            if self.subject.name == OURS:
                raise
            traceback.print_exc()
            self.report.broken[key] = f"{type(error).__name__}: {error}"
            return None

    def answers(self, questions: Sequence[Question], driver: Driver) -> dict[str, Measured]:
        """Return the answers by title; a question that is refused is not asked again, and is in the report."""
        found = {}
        for one in questions:
            key = f"{self.area}, {self.subject.name}, {one.title}"
            if key in self.report.broken:
                continue
            try:
                found[one.title] = one.ask(self.subject, driver)
            except Refused as error:
                self.report.broken[key] = str(error)
        return found


def take_turns(
    area: str,
    subjects: Sequence[Subject],
    questions: Sequence[Question],
    settings: Settings,
    report: Report,
    rounds: int | None = None,
) -> Taken:
    """Ask every subject in each round, in rotating order; all may use the same two cores."""
    place = two_cores()
    until = time.monotonic() + (TABLE_QUICK_S if settings.quick else TABLE_S)
    with ExitStack() as stack:
        stack.enter_context(placed(place.server | place.client))
        turns = {one.name: Turns(area, one, settings, report) for one in available(subjects, settings, report)}

        def turn(one: Turns) -> Callable[[], Answers | None]:
            return lambda: one.take(questions, stack)

        taken = interleave(rounds or settings.rounds, {name: turn(one) for name, one in turns.items()}, until)
    whole = {name: tuple(one for one in found if one is not None) for name, found in taken.items()}
    return Taken({name: found for name, found in whole.items() if found and len(found) == len(taken[name])})


def p50_row(area: str, taken: Taken, title: str, bars: tuple[Bar, ...] = (), **more: object) -> Row:
    """Return the row of a question's median durations."""
    return Row(area, f"{title}, p50", "µs", taken.samples(title, p50, latencies=True), bars, **more)  # type: ignore[arg-type]


def processor_row(area: str, taken: Taken, title: str) -> Row:
    """Return the row of the processor time that a question took; not of runtimes that start processes for each call."""
    samples = taken.samples(title, processor)
    samples.pop(lithops_local.NAME, None)
    return Row(area, f"{title}, processor time", "µs", samples)


RUNTIMES: Final = (subject(our_runtime), subject(process_pool), subject(ray_cluster), subject(dask_cluster))
"""Those that everything but the locality of data is asked of."""
