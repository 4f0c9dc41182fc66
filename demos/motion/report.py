"""What races come to: costs over time, how fast a cheaper path reaches everybody, what it costs, and pictures of it.

The one rule: everything is computed from the planners' traces and from counters of the processes between them; nothing
is a formula of what ought to have been sent.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demos.motion.experiment import TIMES_S, Outcome, band, family_of

MOMENTS_S = (0.1, 0.3, 1.0, 3.0)
COLORS = {1: "#8a8f98", 10: "#e07a1f", 100: "#1f77b4"}
Steps = list[tuple[float, float]]


def steps(traces: Iterable[Mapping[str, Any]]) -> Steps:
    """Return (seconds since the first planner began, cost) of each moment at which the best path became cheaper."""
    traces = list(traces)
    begun = min(trace["begun_us"] for trace in traces)
    lowest, found = math.inf, []
    for moment, cost in sorted((moment, cost) for trace in traces for moment, cost in trace["found"]):
        if cost < lowest:
            lowest = cost
            found.append(((moment - begun) / 1e6, cost))
    return found


def cost_at(found: Steps, seconds: float) -> float:
    """Return the cost after so many seconds, infinity before the first path."""
    return min((cost for moment, cost in found if moment <= seconds), default=math.inf)


def costs_at(found: Steps, seconds: float) -> list[float | None]:
    """Return the cost at each of MOMENTS_S, None for those that a race of so many seconds did not reach."""
    return [cost_at(found, moment) if moment <= seconds else None for moment in MOMENTS_S]


def lags_ms(traces: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return, for each time that the best path became cheaper, the milliseconds until the last planner knew.

    A planner that found something cheaper meanwhile has. What was found when some planner had stopped is left out.
    """
    known = [sorted(map(tuple, [*trace["found"], *trace["pruned"], *trace["ahead"]])) for trace in traces]
    lags, lowest = [], math.inf
    for moment, cost in sorted((moment, cost) for trace in traces for moment, cost in trace["found"]):
        if cost >= lowest:
            continue
        lowest = cost
        reached = [next((at for at, has in one if has <= cost and at >= moment), None) for one in known]
        if all(at is not None for at in reached):
            lags.append((max(at for at in reached if at is not None) - moment) / 1e3)
    return lags


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile, NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


@dataclass(frozen=True, slots=True)
class Load:
    """What the processes between the planners have counted up to a moment; of two, the difference is what was done."""

    puts: int
    pushed: int
    passed_on: int
    passed_on_bytes: int
    processor_s: float

    @classmethod
    def of(cls, client: Any, pids: Iterable[int]) -> Load:
        """Return the counters of a client's node: its cache's, and the processor time of `pids`."""
        import anna

        with anna.connect(client._joined().page.store[0]) as looking:
            cache = looking.status()[0]
        pushes = int(cache["pushed"]), int(cache["passed_on"]), int(cache["passed_on_bytes"])
        return cls(int(cache["puts"]), *pushes, sum(map(processor_s, pids)))

    def since(self, before: Load) -> Load:
        """Return what was done since another moment."""
        return Load(
            self.puts - before.puts, self.pushed - before.pushed, self.passed_on - before.passed_on,
            self.passed_on_bytes - before.passed_on_bytes, self.processor_s - before.processor_s,
        )  # fmt: skip


def processor_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def step_lines(axis: Any, outcomes: Sequence[Outcome], functions: int) -> None:
    """Draw the median and the 10–90 % band of costs at the moments that half of the outcomes have, or more."""
    most = max(len(one.costs) for one in outcomes)
    runs = [[one.costs[place] for one in outcomes if len(one.costs) > place] for place in range(most)]
    count = sum(2 * len(there) >= len(outcomes) for there in runs)
    bands = [band(there) for there in runs[:count]]
    times = TIMES_S[:count]
    shown = [place for place in range(count) if math.isfinite(bands[place][0])]
    color = COLORS.get(functions, "#444444")
    high = [bands[k][2] if math.isfinite(bands[k][2]) else bands[k][0] for k in shown]
    axis.fill_between([times[k] for k in shown], [bands[k][1] for k in shown], high, color=color, alpha=0.15, lw=0)
    name = f"{functions} function{'s' * (functions > 1)} ({len(outcomes)} seeds)"
    axis.plot(
        [times[k] for k in shown], [bands[k][0] for k in shown], color=color, lw=1.8, marker="o", ms=3, label=name
    )


def plain_ticks(axis: Any, moments: Sequence[float]) -> None:
    """Label an axis of time with those of some moments that are within it, as plain numbers."""
    low, high = axis.get_xlim()
    axis.set_xticks([moment for moment in moments if low <= moment <= high])
    axis.minorticks_off()
    axis.xaxis.set_major_formatter("{x:g}")


def chart(file: Path, wall: Mapping[int, Sequence[Steps]], virtual: Sequence[Outcome], problem: str) -> bool:
    """Draw two panels, cost over wall time and over virtual time, of one problem; False without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plot
    except ImportError:
        return False
    figure, (left, right) = plot.subplots(1, 2, figsize=(11, 4.3), sharey=True)
    for (functions, runs), color in zip(sorted(wall.items()), ("#8a8f98", "#c0588c", "#2a9d5c", "#7a5cc0")):
        for number, run in enumerate(runs):
            if run:
                last = max(run[-1][0], *(one[-1][0] for one in runs if one))
                label = f"{functions} function{'s' * (functions > 1)}" if not number else None
                moments, costs = zip(*run, (last, run[-1][1]))
                left.step(moments, costs, where="post", lw=1.3, alpha=0.85, color=color, label=label)
    cores = len(os.sched_getaffinity(0))
    left.set_title(f"wall time, {cores} cores", fontsize=11)
    right.set_title("virtual time: an equal share of work for each function", fontsize=11)
    mine = [one for one in virtual if one.cell.problem == problem]
    for functions in (1, 10, 100):
        many = [one for one in mine if one.cell.functions == functions and (one.cell.sharing or functions == 1)]
        if many:
            step_lines(right, many, functions)
    for axis in (left, right):
        axis.set_xscale("log")
        plain_ticks(axis, (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 60))
        axis.set_xlabel("seconds")
        axis.grid(alpha=0.25, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=9)
    left.set_ylabel(f"cost of the best path, {problem} (radians)")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plot.close(figure)
    return True


def all_problems_chart(file: Path, found: Sequence[Outcome]) -> bool:
    """Draw a panel for each problem: cost over virtual time, 1, 10 and 100 functions that share, and 10 that do not."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plot
    except ImportError:
        return False
    names = sorted({one.cell.problem for one in found}, key=lambda name: (family_of(name), name))
    columns = 5
    rows = math.ceil(len(names) / columns)
    figure, axes = plot.subplots(rows, columns, figsize=(3 * columns, 2.6 * rows), squeeze=False)
    longest = max(TIMES_S[len(one.costs) - 1] for one in found)
    for axis, name in zip(axes.flat, names):
        mine = [one for one in found if one.cell.problem == name]
        for functions in (1, 10, 100):
            runs = [one for one in mine if one.cell.functions == functions and (one.cell.sharing or functions == 1)]
            if runs:
                step_lines(axis, runs, functions)
        alone = [one for one in mine if one.cell.functions == 10 and not one.cell.sharing]
        if alone:
            count = min(len(one.costs) for one in alone)
            medians = [statistics.median(one.costs[k] for one in alone) for k in range(count)]
            axis.plot(TIMES_S[:count], medians, color="black", lw=1, ls=":", label="10, not sharing")
        axis.set_xscale("log")
        axis.set_xlim(TIMES_S[0] / 1.3, longest * 1.3)
        plain_ticks(axis, (0.01, 0.1, 1, 10, 60))
        axis.yaxis.get_major_formatter().set_useOffset(False)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25, lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        if not any(math.isfinite(cost) for line in axis.lines for cost in line.get_ydata()):
            axis.set_yticks([])
            axis.text(0.5, 0.5, "no path yet in most seeds", ha="center", fontsize=7, transform=axis.transAxes)
    for axis in list(axes.flat)[len(names) :]:
        axis.set_visible(False)
    drawn: dict[str, Any] = {}
    for axis in axes.flat:
        for line, label in zip(*axis.get_legend_handles_labels()):
            drawn.setdefault(label.partition(" (")[0], line)
    figure.legend(drawn.values(), drawn, frameon=False, fontsize=8, loc="upper center", ncols=len(drawn))
    figure.supxlabel("virtual seconds: an equal share of work for each function", fontsize=9)
    figure.supylabel("cost (radians)", fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(file, dpi=90)
    plot.close(figure)
    return True
