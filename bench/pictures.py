"""Pictures of the tables: dots for rows, curves for rows that differ by a number, and the course of a drill.

The one rule: a picture shows nothing that is not in the table: medians of the rounds, with the range of the rounds.
Scales are logarithmic where a peer is ten times away from another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from bench.report import OURS, Row, digits

COLOURS: Final = {
    "ours": "#c8352b",
    "ProcessPoolExecutor": "#2563a8",
    "Ray": "#d98a1f",
    "Dask": "#7a4fa3",
    "Lithops": "#6b7280",
    "Redis": "#2f8f5b",
    "one process": "#111111",
    "mapped by hand": "#17a2b8",
    "undisturbed": "#2563a8",
    "executors killed": "#c8352b",
}
OTHER: Final = "#8b8b8b"
GREY: Final = "#555555"
DPI: Final = 120
SPEECH: Final = {"µs": "µs (logarithmic)", "calls/s": "calls per second (logarithmic)", "s": "seconds (logarithmic)"}


class Content(Protocol):
    """What can be drawn."""

    def draw(self, figure: Any) -> None:
        """Draw onto an empty figure of matplotlib, whose size it sets."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One file, `NAME.png`."""

    name: str
    content: Content


@dataclass(frozen=True, slots=True)
class Timeline:
    """How many of something had ended when, one line for each run; `marks` are moments, in seconds."""

    title: str
    lines: Mapping[str, Sequence[float]]
    marks: Sequence[float]

    def draw(self, figure: Any) -> None:
        """Draw it."""
        figure.set_size_inches(9, 4.5)
        axes = figure.subplots()
        for number, mark in enumerate(self.marks):
            axes.axvline(mark, color=OTHER, linewidth=0.8, alpha=0.6, label=None if number else "an executor is killed")
        for name, ended in self.lines.items():
            axes.plot(ended, range(1, len(ended) + 1), color=COLOURS.get(name, OTHER), linewidth=2, label=name)
        axes.set_xlabel("seconds")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_title(self.title, loc="left", fontweight="bold")
        axes.legend(frameon=False, loc="lower right")
        plain(axes, "y")


@dataclass(frozen=True, slots=True)
class Curves:
    """Rows that differ by a number: a part for each series, a line for each subject."""

    title: str
    rows: Sequence[Row]
    axis: str
    logarithmic: bool

    def draw(self, figure: Any) -> None:
        """Draw it."""
        series = list(dict.fromkeys(row.point[0] for row in self.rows if row.point))
        figure.set_size_inches(5.2 * len(series), 4.8)
        parts = figure.subplots(1, len(series), sharey=True, squeeze=False)[0]
        for axes, name in zip(parts, series):
            chosen = [row for row in self.rows if row.point and row.point[0] == name]
            for subject in subjects(self.rows):
                self.line(axes, chosen, subject)
            axes.set_yscale("log")
            if self.logarithmic:
                axes.set_xscale("log")
            axes.set_xlabel(f"{name}: {self.axis}")
            plain(axes)
        parts[0].set_ylabel("µs, p50 (logarithmic)")
        handles, labels = parts[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
        figure.suptitle(self.title, x=0.01, ha="left", fontweight="bold")

    def line(self, axes: Any, rows: Sequence[Row], subject: str) -> None:
        """Draw one subject's medians, and the range of its rounds behind them; a name for it even if it has none."""
        found = [(row.point[1], row.figure(subject)) for row in rows if row.point and row.samples.get(subject)]
        at = [x for x, _ in found]
        spreads = [spread for _, spread in found if spread is not None]
        colour = COLOURS.get(subject, OTHER)
        width = 2.6 if subject == OURS else 1.4
        axes.plot(at, [one.median for one in spreads], "o-", color=colour, linewidth=width, markersize=4, label=subject)
        axes.fill_between(at, [one.low for one in spreads], [one.high for one in spreads], color=colour, alpha=0.15)


@dataclass(frozen=True, slots=True)
class Dots:
    """Rows of one unit: for each a line for each subject, from the least to the greatest of the rounds."""

    title: str
    rows: Sequence[Row]

    def draw(self, figure: Any) -> None:
        """Draw it."""
        lines = [(row, name) for row in self.rows for name in row.samples if row.samples[name]]
        figure.set_size_inches(9, 1.4 + 0.3 * (len(lines) + len(self.rows)))
        axes = figure.subplots()
        place, ticks, labels = 0.0, [], []
        for row in self.rows:
            heading = axes.text(0.01, place, row.name, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
            heading.set(color=GREY, style="italic", in_layout=False)
            place += 1
            for name in row.samples:
                if (found := row.figure(name)) is None:
                    continue
                colour = COLOURS.get(name, OTHER)
                axes.plot((found.low, found.high), (place, place), color=colour, linewidth=4, alpha=0.4)
                axes.plot(found.median, place, "o", color=colour)
                shown = (found.median, place), (8, 0)
                axes.annotate(digits(found.median), *shown, textcoords="offset points", va="center", fontsize=8)
                ticks.append(place)
                labels.append(name)
                place += 1
        axes.set_xscale("log")
        axes.margins(x=0.12)
        axes.set_yticks(ticks, labels)
        axes.set_ylim(place - 0.4, -0.7)
        axes.set_xlabel(SPEECH.get(self.rows[0].unit, self.rows[0].unit))
        axes.set_title(self.title, loc="left", fontweight="bold")
        plain(axes)


@dataclass(frozen=True, slots=True)
class Series:
    """Lines over a number, each with its points in order; what is published by others is dashed."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    axis: str
    unit: str

    def draw(self, figure: Any) -> None:
        """Draw it."""
        figure.set_size_inches(9, 5)
        axes = figure.subplots()
        shades = ("#f0b8b3", "#e38f88", "#d5635a", "#c8352b")
        ours = [name for name in self.lines if "published" not in name]
        weak = [name for name in ours if name.startswith("eventual")]
        for name, points in self.lines.items():
            colour = shades[weak.index(name) % len(shades)] if name in weak else "#2563a8" if name in ours else OTHER
            style = "o-" if name in ours else "--" if name.startswith("Anna") else ":"
            axes.plot(*zip(*points), style, color=colour, linewidth=2, markersize=4, label=name)
        axes.set_xlabel(self.axis)
        axes.set_ylabel(self.unit)
        axes.set_ylim(bottom=-0.3)
        axes.set_title(self.title, loc="left", fontweight="bold")
        axes.legend(frameon=False)
        plain(axes, "y")


def subjects(rows: Sequence[Row]) -> list[str]:
    """Return all subjects of `rows`, ours first."""
    names = list(dict.fromkeys(name for row in rows for name in row.samples))
    return sorted(names, key=lambda name: name != OURS)


def plain(axes: Any, lines: str = "x") -> None:
    """Leave out what is no data, but for lines across one axis."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=lines, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


AXES: Final = {"shapes": ("steps", False), "locality": ("bytes in all", True)}
"""What the numbers of a table's rows are, and whether their scale is logarithmic."""
TITLES: Final = {
    "functions": "Calls, one at a time",
    "composition": "square(increment(x))",
    "shapes": "Chains and fans of no-ops",
    "burst": "Many calls at once",
    "locality": "The sum of ten arrays",
    "aggregation": "The mean of ten actors",
}


def pictures_of(area: str, rows: Sequence[Row]) -> list[Picture]:
    """Return the pictures of one table's rows: curves where they differ by a number, and dots for each unit."""
    if area not in TITLES:
        return []
    points = [row for row in rows if row.point]
    if points:
        return [Picture(area, Curves(TITLES[area], points, *AXES[area]))]
    units = [unit for unit in SPEECH if any(row.unit == unit for row in rows)]
    named = {unit: area if number == 0 else f"{area}-{unit.replace('/', '-per-')}" for number, unit in enumerate(units)}
    return [Picture(named[unit], Dots(TITLES[area], [row for row in rows if row.unit == unit])) for unit in units]


def draw(pictures: Sequence[Picture], directory: Path) -> list[Path]:
    """Write each picture into `directory`; return the files, none when matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in pictures:
        figure = pyplot.figure(layout="constrained")
        picture.content.draw(figure)
        written.append(directory / f"{picture.name}.png")
        figure.savefig(written[-1], dpi=DPI)
        pyplot.close(figure)
    return written
