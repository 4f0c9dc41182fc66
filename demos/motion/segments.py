"""Whether planners that improve different sections of the best path should join them in a `Map`: an experiment.

    python -m demos.motion.segments --seeds 1          four problems, ten planners, virtual time
    python -m demos.motion.segments --ways path sections   only these ways
    python -m demos.motion.segments --table            only print what there is

Ways to share are compared, in virtual time, on the same problems and seeds:

    path         one `Priority` of whole paths, planners as they are (`demos.motion.functions`)
    sections     one `Priority` of whole paths; a planner helps the leader by sections: it takes two points of the best
                 path, a planner of its own looks for a cheaper way from one to the other, and the way is put into
                 whatever path leads, as long as both ends lie on that
    map          the leader is cut at milestones, the same for all; a planner helps by what leads from one to the next,
                 and offers it in a `Map` from a section's name to `Priority(cost, way)`, so cheaper ways of different
                 sections count at once. A leader and its milestones last for an epoch, and so does a `Map`: it holds
                 one way a section, and nothing has to be dropped from it
    milestones   the same sections, without the `Map`

The one rule: a path is only put together of ways that were found free and whose ends lie on it, in order. So any of the
ways that are known, taken together, make a path, and `joined` returns the cheapest. Joins are those of the lattices,
without a store between. What came of it, and what the demo does: decision record 0035.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import hashlib
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from anna.lattices import Map, Priority
from demos.motion import problems
from demos.motion.experiment import CHECKS_PER_S, SEEDS_APART, TICK_S
from demos.motion.kernel import WAYPOINTS_MAX, Planner, cost

Numbers = NDArray[np.float64]
Ends = tuple[Numbers, Numbers]

WAYS = ("path", "sections", "map", "milestones")
PROBLEMS = ("panda/cage/1", "baxter/easy/1", "baxter/medium/1", "baxter/hard/1")
"""Those of which ten planners do not find the cheapest path in a tenth of a second."""
MOMENTS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
SLICE_CHECKS = 1000
RACE_CHECKS = 60_000
"""Who has no path of its own after so many checks helps the leader…"""
HELP_CHECKS = 40_000
"""…for so many, and races again. Every other planner does nothing but help, from the first path on."""
SECTION_CHECKS = 20_000
"""So long a planner works on one section."""
SECTION_SHARES = (0.15, 0.6)
"""How much of a path's cost a section has."""
TRIES = 8
"""Of so many sections drawn at random the one that wastes most is taken: that costs most beyond its ends' distance."""
SECTIONS = 2
"""At so many milestones a leader is cut with a `Map`…"""
EPOCH_TICKS = 2
"""…and elsewhere after so many ticks."""
GOLDEN = (math.sqrt(5) - 1) / 2
NEAR = 1e-9
NAME_BYTES = 16


# Paths and their sections --------------------------------------------------------------------------------------------


def point_at(path: Numbers, length: float) -> Numbers:
    """Return the point of a path before which it costs `length`."""
    steps = np.abs(np.diff(path, axis=0)).sum(axis=1)
    along = np.concatenate(([0.0], np.cumsum(steps)))
    edge = min(int(np.searchsorted(along, length, side="right")) - 1, len(steps) - 1)
    share = min(1.0, (length - along[edge]) / steps[edge]) if steps[edge] else 0.0
    return np.asarray(path[edge] + share * (path[edge + 1] - path[edge]))


def placed(path: Numbers, point: Numbers) -> tuple[Numbers, int] | None:
    """Return the path with a row at `point`, and that row's number; None when the point is not on it."""
    steps, ahead = np.diff(path, axis=0), point - path[:-1]
    share = np.clip((ahead * steps).sum(axis=1) / np.maximum((steps * steps).sum(axis=1), 1e-30), 0, 1)
    off = np.abs(ahead - share[:, None] * steps).max(axis=1)
    edge = int(off.argmin())
    if off[edge] > NEAR:
        return None
    for row in (edge, edge + 1):
        if np.abs(path[row] - point).max() <= NEAR:
            return path, row
    return np.insert(path, edge + 1, point, axis=0), edge + 1


def section_of(path: Numbers, first: Numbers, last: Numbers) -> tuple[Numbers, int, int] | None:
    """Return the path with rows at both points, and their numbers; None when it does not lead from one to the other."""
    one = placed(path, first)
    two = None if one is None else placed(one[0], last)
    if one is None or two is None or two[1] <= one[1]:
        return None
    return two[0], one[1], two[1]


def tidied(path: Numbers) -> Numbers:
    """Return the path without rows that lie on the line between their neighbours."""
    kept = [0]
    for row in range(1, len(path) - 1):
        line = path[[kept[-1], row + 1]]
        if placed(line, path[row]) is None:
            kept.append(row)
    return path[[*kept, len(path) - 1]]


def spliced(path: Numbers, way: Numbers) -> Numbers | None:
    """Return the path with `way` between its ends; None when these are not on it, or no value could hold it."""
    found = section_of(path, way[0], way[-1])
    if found is None:
        return None
    path, first, last = found
    whole = tidied(np.concatenate((path[:first], way, path[last + 1 :])))
    return whole if len(whole) <= WAYPOINTS_MAX else None


def joined(path: Numbers, ways: Sequence[Numbers]) -> Numbers:
    """Return the cheapest path that the path and any of the ways make, those left out whose ends are not on it.

    The path's points and the ways' ends are a graph without cycles, so one pass along the path finds it.
    """
    for way in ways:
        found = section_of(path, way[0], way[-1])
        path = path if found is None else found[0]
    arriving = [[(max(row - 1, 0), path[max(row - 1, 0) : row + 1])] for row in range(len(path))]
    for way in ways:
        if (found := section_of(path, way[0], way[-1])) is not None:
            arriving[found[2]].append((found[1], way))
    least, came = [0.0], [arriving[0][0]]
    for ends_here in arriving[1:]:
        prices = [least[row] + cost(way) for row, way in ends_here]
        least.append(min(prices))
        came.append(ends_here[prices.index(least[-1])])
    parts, row = [path[-1:]], len(path) - 1
    while row:
        row, way = came[row]
        parts.append(way[:-1])
    whole = tidied(np.concatenate(parts[::-1]))
    return whole if len(whole) <= WAYPOINTS_MAX else path


def name_of(way: Numbers) -> bytes:
    """Return the name of the section that a way is for: a digest of its two ends."""
    return hashlib.blake2b(way[0].tobytes() + way[-1].tobytes(), digest_size=NAME_BYTES).digest()


def apart(ends: Ends) -> float:
    """Return the distance of two points: what the way from one to the other costs at least."""
    return float(np.abs(ends[1] - ends[0]).sum())


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """A leader and its milestones, the same for all who know the leader and the epoch's number."""

    number: int
    leader: Numbers
    sections: tuple[Ends, ...]
    wastes: tuple[float, ...]
    """What each section costs more than its ends are apart."""

    @classmethod
    def of(cls, number: int, leader: Numbers) -> Epoch:
        """Cut a leader at SECTIONS places, so far from each other, elsewhere in each epoch."""
        total, shift = cost(leader), number * GOLDEN % 1
        marks = [total * place for place in (0, *((at + shift) / SECTIONS for at in range(SECTIONS)), 1)]
        points = [leader[0], *(point_at(leader, mark) for mark in marks[1:-1]), leader[-1]]
        sections = tuple(itertools.pairwise(points))
        wastes = (b - a - apart(ends) for (a, b), ends in zip(itertools.pairwise(marks), sections, strict=True))
        return cls(number, leader, sections, tuple(max(0.0, waste) for waste in wastes))

    @classmethod
    def before_all(cls) -> Epoch:
        """Return what there is before the first path."""
        return cls(0, np.empty((0, 0)), (), ())

    def section(self, seed: int) -> Ends | None:
        """Return a planner's section, to each as many planners as it has of the waste; None when there is none."""
        sums = list(itertools.accumulate(self.wastes))
        if not sums or sums[-1] < NEAR:
            return None
        return self.sections[bisect.bisect_right(sums, (seed + self.number / 2) * GOLDEN % 1 * sums[-1])]


# A planner -----------------------------------------------------------------------------------------------------------


class Helper:
    """A planner that races for a path of its own and, in turns, plans sections of the leader again.

    Deterministic in (problem, seed, the sequence of calls). `cost` and `path` are the cheapest path that it knows.
    """

    def __init__(self, problem: Any, seed: int, milestones: bool) -> None:
        self.cost, self.path = math.inf, np.empty((0, 0))
        self.way: Numbers | None = None  # of the section that it works on
        self._milestones, self._epoch = milestones, Epoch.before_all()
        self._problem, self._seed, self._races = problem, seed, 0
        self._section: Planner | None = None
        self._random = np.random.default_rng(seed)
        self._helps_always = bool(seed & 1)
        self._begin_race()

    def run(self, checks: int) -> None:
        """Work for so many checks."""
        for _ in range(0, checks, SLICE_CHECKS):
            if self._section is None and self._may_help():
                self._left = HELP_CHECKS
                self._choose()
            if self._section is None:
                self._race_on()
            else:
                self._mend()

    def adopt(self, path: Numbers) -> None:
        """Take over a cheaper path, and put the own section into it if that still goes."""
        if cost(path) >= self.cost:
            return
        self._take(path)
        if self.way is not None and not self._put_in() and not self._milestones:
            self._choose()

    def begin(self, epoch: Epoch) -> None:
        """Let an epoch begin: who works on a section takes one of the new leader's."""
        self._epoch = epoch
        if self._section is not None:
            self._choose()

    def _take(self, path: Numbers) -> None:
        self.path, self.cost = path, cost(path)
        self._race.bound(self.cost)

    def _begin_race(self) -> None:
        self._race = Planner(self._problem, self._seed + 2 * SEEDS_APART**2 * self._races)
        self._race.bound(self.cost)
        self._races += 1
        self._section, self.way = None, None

    def _may_help(self) -> bool:
        lost = math.isinf(self._race.cost) and self._race.checks > RACE_CHECKS
        known = len(self._epoch.leader if self._milestones else self.path) > 0
        return known and (self._helps_always or lost or self._race.phase == "star")

    def _race_on(self) -> None:
        self._race.run(SLICE_CHECKS)
        if self._race.cost < self.cost:
            self._take(self._race.path)

    def _choose(self) -> None:
        """Begin with a section of the leader; race when none wastes anything."""
        ends = self._epoch.section(self._seed) if self._milestones else self._drawn()
        leader = self._epoch.leader if self._milestones else self.path
        found = None if ends is None else section_of(leader, *ends)
        self._section = None if ends is None or found is None else self._planner_of(ends)
        if self._section is not None and found is not None:
            self.way = found[0][found[1] : found[2] + 1].copy()
            self._section.adopt(self.way)
            return
        self.way = None
        if self._race.phase == "star":
            self._begin_race()

    def _planner_of(self, ends: Ends) -> Planner | None:
        """Return a planner from one point to another, None when one of them is too near to something."""
        task = dataclasses.replace(self._problem, start=ends[0], goal=ends[1])
        try:
            return Planner(task, int(self._random.integers(1 << 32)))
        except ValueError:
            return None

    def _drawn(self) -> Ends | None:
        """Return the ends of the section that wastes most of TRIES drawn at random, None when none wastes anything."""
        drawn = []
        for _ in range(TRIES):
            length = self.cost * self._random.uniform(*SECTION_SHARES)
            begin = self._random.uniform(0, self.cost - length)
            ends = point_at(self.path, begin), point_at(self.path, begin + length)
            drawn.append((length - apart(ends), ends))
        waste, ends = max(drawn, key=lambda one: one[0])
        return ends if waste > NEAR else None

    def _mend(self) -> None:
        """Work on the section; take what is cheaper into the leader."""
        assert self._section is not None
        if self._section.phase == "done":
            self._race_on()
        else:
            self._section.run(SLICE_CHECKS)
        self._left -= SLICE_CHECKS
        if self.way is None or self._section.cost < cost(self.way) - NEAR:
            self.way = self._section.path
            self._put_in()
        if self._left <= 0 and not self._helps_always:
            self._begin_race()
        elif not self._milestones and (self._section.phase == "done" or self._section.checks >= SECTION_CHECKS):
            self._choose()

    def _put_in(self) -> bool:
        """Put the own way into the leader where that is cheaper; return whether its ends are on the leader."""
        assert self.way is not None
        whole = spliced(self.path, self.way)
        if whole is not None and cost(whole) < self.cost - NEAR:
            self._take(whole)
        return whole is not None


# The experiment ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Shared:
    """What is shared: the best path, and with a `Map` the sections of an epoch's leader."""

    best: Priority = dataclasses.field(default_factory=Priority)
    sections: Map = dataclasses.field(default_factory=Map)
    epoch: Epoch = dataclasses.field(default_factory=Epoch.before_all)
    joins: int = 0
    """How often sections made a cheaper path than any planner had."""

    def exchange(self, planners: Sequence[Any], with_map: bool) -> None:
        """Let all offer what they have, then all take over what came of it."""
        for planner in planners:
            if planner.cost < math.inf:
                self.best.merge(Priority(planner.cost, planner.path))
        if with_map and len(self.epoch.leader):
            self._join_sections(planner.way for planner in planners)
        if self.best.priority is not None:
            for planner in planners:
                planner.adopt(self.best.value)

    def _join_sections(self, ways: Iterable[Numbers | None]) -> None:
        for way in ways:
            if way is not None:
                self.sections.merge(Map({name_of(way): Priority(cost(way), way)}))
        whole = joined(self.epoch.leader, [self.sections[name].value for name in self.sections])
        if cost(whole) < self.best.priority - NEAR:
            self.joins += 1
            self.best.merge(Priority(cost(whole), whole))

    def turn(self, planners: Sequence[Helper]) -> None:
        """Begin an epoch with the best path as its leader, and nothing in the `Map`."""
        if self.best.priority is not None:
            self.epoch, self.sections = Epoch.of(self.epoch.number + 1, self.best.value), Map()
            for planner in planners:
                planner.begin(self.epoch)


def task_of(name: str) -> Any:
    """Return a problem with its robot read, which each section's planner would read again, 50 ms, given its name."""
    problem = problems.named(name)
    robot: Any = problems.robot(problem.robot)
    return dataclasses.replace(problem, robot=robot)


def perform(problem: str, way: str, functions: int, seed: int, seconds: float) -> dict[str, Any]:
    """Run planners for so many virtual seconds each; return the costs at MOMENTS_S and what was counted."""
    begun, task = time.thread_time(), task_of(problem)
    seeds = range(seed * SEEDS_APART, seed * SEEDS_APART + functions)
    milestones = way in ("map", "milestones")
    planners: list[Any] = [Planner(task, one) if way == "path" else Helper(task, one, milestones) for one in seeds]
    shared, costs, bytes_max = Shared(), [], 0
    for tick in range(1, round(seconds / TICK_S) + 1):
        for planner in planners:
            planner.run(round(CHECKS_PER_S * TICK_S))
        shared.exchange(planners, way == "map")
        bytes_max = max(bytes_max, shared.sections.size_bytes)
        if milestones and tick % EPOCH_TICKS == 0:
            shared.turn(planners)
        if any(abs(tick * TICK_S - moment) < TICK_S / 2 for moment in MOMENTS_S):
            costs.append(None if shared.best.priority is None else round(shared.best.priority, 4))
    said: dict[str, Any] = {"problem": problem, "way": way, "functions": functions, "seed": seed, "costs": costs}
    said |= {"joins": shared.joins, "map_bytes": bytes_max, "processor": round(time.thread_time() - begun, 2)}
    return said


def go_on(options: argparse.Namespace, console: Console) -> None:
    """Run what is not in the file yet, seed by seed, and append it, a run a line."""
    path, functions, seconds = options.out, options.functions, options.seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {(one["problem"], one["way"], one["functions"], one["seed"], len(one["costs"])) for one in read(path)}
    moments = sum(moment <= seconds + NEAR for moment in MOMENTS_S)
    with path.open("a", encoding="ascii") as file:
        for seed, problem, way in itertools.product(range(options.seeds), options.problems, options.ways):
            if (problem, way, functions, seed, moments) not in done:
                said = perform(problem, way, functions, seed, seconds)
                file.write(json.dumps(said) + "\n")
                file.flush()
                console.print(f"{problem} {way} seed {seed}: {said['costs']}", markup=False, highlight=False)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the runs that a file holds, none when there is no file."""
    return [json.loads(line) for line in path.read_text("ascii").splitlines()] if path.exists() else []


def table(runs: Iterable[dict[str, Any]]) -> Table:
    """Return the medians at each moment over the seeds that got there; of a seed's runs the longest counts."""
    ordered = sorted(runs, key=lambda run: len(run["costs"]))
    longest = {(run["problem"], run["way"], run["seed"]): run for run in ordered}
    moments = max((len(run["costs"]) for run in longest.values()), default=0)
    shown = Table(title="Cost in radians, median, of so many seeds, in virtual time")
    for heading in ("problem", "way", *(f"{at:g} s" for at in MOMENTS_S[:moments]), "joins", "KB at most"):
        shown.add_column(heading, justify="left" if heading in ("problem", "way") else "right")
    for problem, way in itertools.product(dict.fromkeys(name for name, _, _ in sorted(longest)), WAYS):
        ours = [run for name, run in longest.items() if name[:2] == (problem, way)]
        if ours:
            texts = [median_text([run["costs"][at] for run in ours if at < len(run["costs"])]) for at in range(moments)]
            joins, size = statistics.median(run["joins"] for run in ours), max(run["map_bytes"] for run in ours) / 1000
            shown.add_row(problem, way, *texts, f"{joins:g}", f"{size:.1f}")
    return shown


def median_text(costs: Sequence[float | None]) -> str:
    """Return the median, of no path as of infinity, and in brackets of how many."""
    if not costs:
        return "–"
    median = statistics.median(math.inf if cost is None else cost for cost in costs)
    return f"{median:.2f} \\[{len(costs)}]".replace("inf", "∞")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    theory = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m demos.motion.segments", description=theory[0], epilog=theory[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--problems", nargs="*", default=PROBLEMS, metavar="NAME", help="default: %(default)s")
    add("--ways", nargs="*", default=WAYS, choices=WAYS, metavar="WAY", help="default: %(default)s")
    add("--functions", type=int, default=10, help="planners (default %(default)s)")
    add("--seconds", type=float, default=0.3, help="virtual seconds of each (default %(default)s)")
    add("--seeds", type=int, default=20, help="runs of each problem and way (default %(default)s)")
    add("--table", action="store_true", help="run nothing, print what there is")
    add("--out", type=Path, default=Path("out/motion/segments.jsonl"), help="file of results (default %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Go on with the experiment, and print what there is; 130 when interrupted."""
    options, console = parse(argv), Console()
    if not options.table:
        try:
            go_on(options, console)
        except KeyboardInterrupt:
            return 130
    console.print(table(read(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
