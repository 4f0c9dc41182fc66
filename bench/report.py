"""Rows, bars and how they are shown: a line a row as it is measured, the missed bars at the end, and JSON.

The one rule: a bar is met by the median of the ratios of the rounds, ratio meaning "times better than the
peer" whether more or less is better. A subject that was skipped shows its reason, and its bars count as not
measured, never as met.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from bench.harness import QUIET_SHARE_MAX, Sample, Settings, Spread, spread

if TYPE_CHECKING:
    from bench.pictures import Picture

OURS = "ours"
Area = Callable[[Settings, "Report"], Iterator["Row"]]


@dataclass(frozen=True, slots=True)
class Bar:
    """Ours must be at least `factor` times better than `peer`."""

    peer: str
    factor: float


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. `limit` is a bar on our figure itself; `unit` is ops/s, µs, s, MiB, %, B, × or none.

    `point` is the curve that the row belongs to, and where on it.
    """

    area: str
    name: str
    unit: str
    samples: Mapping[str, tuple[Sample, ...]]
    bars: tuple[Bar, ...] = ()
    limit: float | None = None
    note: str = ""
    point: tuple[str, float] | None = None

    @property
    def more_is_better(self) -> bool:
        """Tell whether a greater figure wins: only rates do."""
        return self.unit.endswith("/s")

    def figure(self, name: str) -> Spread | None:
        """Return the spread of the figures of subject `name`, None when it was skipped."""
        samples = self.samples.get(name)
        return spread([sample.figure for sample in samples]) if samples else None

    def ratio(self, peer: str) -> Spread | None:
        """Return how many times better ours was than `peer`, round by round; None when either was skipped."""
        ours, theirs = self.samples.get(OURS), self.samples.get(peer)
        if not ours or not theirs:
            return None
        ratios = [mine.figure / other.figure for mine, other in zip(ours, theirs)]
        return spread(ratios if self.more_is_better else [1 / ratio for ratio in ratios])

    def verdicts(self) -> list[Verdict]:
        """Return one verdict for each bar of the row."""
        found = []
        for bar in self.bars:
            ratio = self.ratio(bar.peer)
            reached = None if ratio is None else ratio.median
            met = None if reached is None else reached >= bar.factor
            found.append(Verdict(self, f"{bar.factor:.3g} × {bar.peer}", reached, met))
        if self.limit is not None:
            ours = self.figure(OURS)
            reached = None if ours is None else ours.median
            met = None if reached is None else reached < self.limit
            found.append(Verdict(self, f"below {self.limit:g} {self.unit}".rstrip(), reached, met))
        return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one bar was met; `met` is None when it could not be measured."""

    row: Row
    bar: str
    reached: float | None
    met: bool | None


def scale(value: float, unit: str) -> tuple[float, str]:
    """Return what to divide by, and the unit that is then shown: rates in thousands or millions."""
    if unit.endswith("/s"):
        for factor, letter in ((1e6, "M/s"), (1e3, "k/s")):
            if value >= factor:
                return factor, letter
    return 1.0, unit


def digits(value: float) -> str:
    """Return `value` with three digits, more when it has more before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show_figure(value: float, unit: str) -> str:
    """Return `value` with its unit: `310 k/s`, `4.21 µs`."""
    factor, shown = scale(value, unit)
    return f"{digits(value / factor)} {shown}".rstrip()


def show_spread(found: Spread, unit: str) -> str:
    """Return the least and the greatest in the unit of the median: `[301–322]`."""
    factor, _ = scale(found.median, unit)
    return f"[{digits(found.low / factor)}–{digits(found.high / factor)}]"


def latency_note(samples: tuple[Sample, ...]) -> str:
    """Return ` p50/p99 3.1/5.0 µs` from the medians of the rounds, nothing when latencies were not taken."""
    p50 = [sample.p50_us for sample in samples if sample.p50_us is not None]
    p99 = [sample.p99_us for sample in samples if sample.p99_us is not None]
    return f" p50/p99 {digits(median(p50))}/{digits(median(p99))} µs" if p50 and p99 else ""


def subject_text(row: Row, name: str) -> Text:
    """Return what a line says about one subject."""
    figure = row.figure(name)
    if figure is None:
        return Text(f"{name} skipped", style="yellow")
    text = Text(f"{name} {show_figure(figure.median, row.unit)}")
    text.append(f" {show_spread(figure, row.unit)}{latency_note(row.samples[name])}", style="dim")
    bars = {bar.peer: bar.factor for bar in row.bars}
    ratio = row.ratio(name) if name != OURS else None
    if ratio is not None:
        text.append(f"  {ratio.median:.2f}×", style="bold")
        text.append(f" [{ratio.low:.2f}–{ratio.high:.2f}]", style="dim")
    if name in bars and ratio is not None:
        met = ratio.median >= bars[name]
        text.append(f" (bar {bars[name]:.3g}) ")
        text.append("ok" if met else "MISSED", style="green" if met else "bold red")
    if name == OURS and row.limit is not None:
        met = figure.median < row.limit
        text.append(f" (bar < {row.limit:g} {row.unit}".rstrip() + ") ")
        text.append("ok" if met else "MISSED", style="green" if met else "bold red")
    return text


def row_text(row: Row) -> Text:
    """Return the line of one row: its name, ours, then each peer behind a bar."""
    text = Text(f"{row.name:<34} ")
    names = [OURS, *(name for name in row.samples if name != OURS)]
    names += [bar.peer for bar in row.bars if bar.peer not in names]
    for at, name in enumerate(names):
        text.append(" | " if at else "").append_text(subject_text(row, name))
    if row.note:
        text.append(f" | {row.note}", style="dim")
    return text


@dataclass(slots=True)
class Report:
    """Collects rows while they are shown, and writes the summary."""

    console: Console
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    disturbed: dict[str, float] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)

    def heading(self, title: str) -> None:
        """Begin a table."""
        self.console.print(Text(f"\n{title}", style="bold"))

    def skip(self, name: str, reason: str) -> None:
        """Say once that subject `name` does not take part, and how to get it."""
        if name not in self.skipped:
            self.skipped[name] = reason
            self.console.print(Text(f"{name}: skipped, {reason}", style="yellow"), soft_wrap=True)

    def add(self, rows: Iterable[Row]) -> None:
        """Show each of `rows` as it comes."""
        for row in rows:
            self.rows.append(row)
            self.console.print(row_text(row), soft_wrap=True)

    def picture(self, made: Picture) -> None:
        """Have a picture drawn at the end that does not follow from the rows."""
        self.pictures.append(made)

    def disturbance(self, area: str, share: float) -> None:
        """Note which share of the machine other processes took during all rounds of `area`."""
        self.disturbed[area] = share
        if share > QUIET_SHARE_MAX:
            line = f"{area}: other processes took {share:.0%} of the machine; the quietest rounds were kept"
            self.console.print(Text(line, style="yellow"), soft_wrap=True)

    def summary(self) -> None:
        """Say how many bars were met, and name each one that was missed or not measured."""
        verdicts = [verdict for row in self.rows for verdict in row.verdicts()]
        met = [verdict for verdict in verdicts if verdict.met]
        missed = [verdict for verdict in verdicts if verdict.met is False]
        open_bars = [verdict for verdict in verdicts if verdict.met is None]
        open_count = f"{len(open_bars)} not measured"
        self.heading(f"{len(met)} of {len(verdicts)} bars met, {len(missed)} missed, {open_count}")
        for verdict in missed:
            where = f"{verdict.row.area}: {verdict.row.name}"
            line = f"MISSED  {where}: {verdict.reached:.3g}, the bar is {verdict.bar}"
            self.console.print(Text(line, style="red"), soft_wrap=True)
        for (area, bar), count in Counter((verdict.row.area, verdict.bar) for verdict in open_bars).items():
            line = f"not measured  {area}: {bar}, in {count} rows"
            self.console.print(Text(line, style="yellow"), soft_wrap=True)
        for area, reason in self.broken.items():
            self.console.print(Text(f"BROKEN  {area}: {reason}", style="bold red"), soft_wrap=True)

    def write_json(self, path: Path) -> None:
        """Write every sample, ratio and verdict."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")

    def as_dict(self) -> dict[str, object]:
        """Return the report as plain values."""
        return {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine(),
            "versions": self.versions,
            "skipped": self.skipped,
            "broken": self.broken,
            "taken_by_others": self.disturbed,
            "rows": [row_dict(row) for row in self.rows],
        }


def row_dict(row: Row) -> dict[str, object]:
    """Return one row as plain values."""
    peers = [name for name in row.samples if name != OURS]
    ratios = {name: row.ratio(name) for name in peers}
    return {
        "area": row.area,
        "name": row.name,
        "unit": row.unit,
        "note": row.note,
        "subjects": {name: [asdict(sample) for sample in samples] for name, samples in row.samples.items()},
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items() if ratio is not None},
        "bars": [{"bar": verdict.bar, "reached": verdict.reached, "met": verdict.met} for verdict in row.verdicts()],
    }


def machine() -> dict[str, object]:
    """Return what a reader needs to know of the machine."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "processors": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }
