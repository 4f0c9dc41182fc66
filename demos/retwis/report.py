"""What a run leaves behind: the numbers (`result.json`), the table on the terminal and the chart, from one
`Result`.

Percentiles are taken within each repeat over every call of all clients (nearest rank), and the table shows
the median of the repeats; `result.json` keeps each repeat, so that the spread can be seen.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from demos.retwis.workload import Measured

PERCENTILES = (50, 90, 99)
HEADINGS = ("timeline p50", "p99", "post p50", "p99", "calls /s", "orphan replies", "bytes per key")
COLOURS = {"timeline": "#2563a8", "post": "#d97a2b"}


@dataclass(slots=True)
class Repeat:
    """One turn of one backend: operations per second, counts, and milliseconds of each operation by
    percentile.
    """

    operations_per_second: float
    counts: dict[str, int]
    milliseconds: dict[str, dict[str, float]]


@dataclass(slots=True)
class Row:
    """One backend over all repeats; `bytes_per_key` is the growth of its servers' memory per key that they
    hold.
    """

    name: str
    title: str
    bytes_per_key: float | None = None
    repeats: list[Repeat] = field(default_factory=list)

    def milliseconds(self, operation: str, percentile: int) -> float | None:
        """Return the median over the repeats, None when the operation never ran."""
        return middle(
            [r.milliseconds[operation][f"p{percentile}"] for r in self.repeats if operation in r.milliseconds]
        )

    def operations_per_second(self) -> float | None:
        """Return the median over the repeats."""
        return middle([repeat.operations_per_second for repeat in self.repeats])

    def count(self, name: str) -> int:
        """Return the sum over the repeats."""
        return sum(repeat.counts.get(name, 0) for repeat in self.repeats)


@dataclass(slots=True)
class Result:
    """Everything that a run found; `notes` are the lines under the table."""

    parameters: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write `result.json`: the fields above, and for each row the medians that the table shows."""
        document = asdict(self)
        for row, data in zip(self.rows, document["rows"]):
            operations = sorted({name for repeat in row.repeats for name in repeat.milliseconds})
            data["median"] = {
                "operations_per_second": row.operations_per_second(),
                "milliseconds": {
                    name: {f"p{p}": row.milliseconds(name, p) for p in PERCENTILES} for name in operations
                },
            }
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def middle(values: Sequence[float]) -> float | None:
    """Return the median, None of nothing."""
    return statistics.median(values) if values else None


def summarise(measured: Measured) -> Repeat:
    """Return the percentiles and rates of one turn."""
    milliseconds = {name: percentiles(times) for name, times in sorted(measured.times.items())}
    operations = sum(len(times) for times in measured.times.values())
    return Repeat(operations / measured.seconds if measured.seconds else 0.0, dict(measured.counts), milliseconds)


def percentiles(nanoseconds: array[int]) -> dict[str, float]:
    """Return nearest-rank percentiles, mean and maximum in milliseconds, and how many there were."""
    ordered = sorted(nanoseconds)
    ranks = {f"p{p}": ordered[math.ceil(len(ordered) * p / 100) - 1] / 1e6 for p in PERCENTILES}
    return ranks | {"max": ordered[-1] / 1e6, "mean": statistics.fmean(ordered) / 1e6, "count": len(ordered)}


def machine() -> dict[str, Any]:
    """Describe where this runs, as far as it matters for the figures."""
    cores = len(os.sched_getaffinity(0))
    return {
        "system": platform.system(),
        "processor": processor(),
        "cores": cores,
        "load_average": round(os.getloadavg()[0], 2),
    }


def processor() -> str:
    """Return the processor's name as Linux tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def table(result: Result) -> Table:
    """Return the table that the run ends with; it fits 80 columns."""
    made = Table(
        title="Retwis: milliseconds for a call, as its client sees it",
        title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    made.add_column("", no_wrap=True)
    for heading in HEADINGS:
        made.add_column(heading.replace(" ", "\n"), justify="right", vertical="bottom", no_wrap=True)
    for row in result.rows:
        made.add_row(row.title, *cells(row))
    made.caption = "\n".join(result.notes)
    return made


def cells(row: Row) -> list[str]:
    """Return a row's cells under `HEADINGS`, for the terminal and the page."""
    times = [row.milliseconds(name, p) for name in ("timeline", "post") for p in (50, 99)]
    others = [row.operations_per_second(), row.count("orphans") if row.repeats else None, row.bytes_per_key]
    shown = [f"{value:.3f}" if value is not None else "–" for value in times]
    return shown + [f"{value:,.0f}" if value is not None else "–" for value in others]


def chart(result: Result, path: Path) -> bool:
    """Draw latencies and rates into a PNG; False when matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in result.rows if row.repeats]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10.5, 1.9 + 0.6 * len(rows)), width_ratios=(2.1, 1), sharey=True, layout="constrained"
    )
    draw_latencies(left, rows)
    draw_rates(right, rows)
    figure.suptitle("Retwis: a Twitter clone on a real follow graph", x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel("\n".join(result.notes[:3]), x=0.01, ha="left", fontsize=8, color="#555555")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def draw_latencies(axes: Any, rows: Sequence[Row]) -> None:
    """One line per operation and row, from p50 (dot) to p99 (tick), on a logarithmic axis."""
    from matplotlib import ticker

    for place, row in enumerate(rows):
        for offset, name in ((-0.16, "timeline"), (0.16, "post")):
            p50, p99 = row.milliseconds(name, 50), row.milliseconds(name, 99)
            if p50 is None or p99 is None:
                continue
            style = {"color": COLOURS[name], "linewidth": 4, "solid_capstyle": "butt", "alpha": 0.45}
            axes.plot((p50, p99), (place + offset,) * 2, **style)
            axes.plot(
                p50,
                place + offset,
                "o",
                color=COLOURS[name],
                markersize=7,
                label=name if place == 0 else None,
            )
            axes.plot(p99, place + offset, "|", color=COLOURS[name], markersize=11, markeredgewidth=2)
            axes.annotate(
                f"{p50:.2f}",
                (p50, place + offset),
                (-7, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=8,
            )
            axes.annotate(
                f"{p99:.2f}",
                (p99, place + offset),
                (7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.6, high * 1.6)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=10)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_title("latency, ms: dot p50, tick p99", loc="left", fontsize=10)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9, borderaxespad=0.1)
    tidy(axes)


def draw_rates(axes: Any, rows: Sequence[Row]) -> None:
    """One bar per row."""
    rates = [row.operations_per_second() or 0.0 for row in rows]
    bars = axes.barh(
        range(len(rows)),
        rates,
        height=0.5,
        color=["#2563a8" if row.name.startswith("ours") else "#9aa4b1" for row in rows],
    )
    axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=4, fontsize=9)
    axes.set_xlim(0, max(rates, default=1.0) * 1.28 or 1.0)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title("calls per second", loc="left", fontsize=10)
    tidy(axes)


def tidy(axes: Any) -> None:
    """Take away what is not data."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
