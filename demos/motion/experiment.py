"""How much sharing helps, in virtual time: every planner gets the same share of work, whatever machine this is.

    python -m demos.motion.experiment                       go on with all cells, one process, for ever longer
    python -m demos.motion.experiment --minutes 20          stop after so long; the next run goes on
    python -m demos.motion.experiment --claims              the two claims about 1, 10 and 100 functions
    python -m demos.motion.experiment --table               only print what there is

A hundred functions on two cores are not faster in wall time than two, so a real clock would measure the machine. Here
planners take turns in one process. In each turn every one of them does the work of TICK_S seconds, and then they
exchange: who has a cheaper path than is known puts it into a real store, a `Priority` of which all of them take what
is there. So what one finds the others know a tick later, as in a node, where a push takes an epoch of the same length.

The one rule: work is counted in collision checks, CHECKS_PER_S to a virtual second, so a cell is the same on every
machine and under any load: (problem, functions, sharing or not, seed) decide it. CHECKS_PER_S is what one planner does
in a second of processor time, all of its work included, on the machine that `docs/motion.md` names. Planners that do
not share are the same planners with the same seeds, of which the cheapest counts.

Problems are the first valid ones of each family, by number: `--first`. Results are appended to a file, one cell a line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import anna
from anna import local
from anna.lattices import Priority

CHECKS_PER_S = 600_000
TICK_S = 0.01
TIMES_S = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
"""Moments at which a cell's cost is written down."""
SHOWN_S = (0.1, 0.3, 1.0, 3.0)
SEEDS_APART = 1000
"""Planner i of seed s has the seed 1000 s + i, so the first planners of a seed are the same for any number."""
TABLE_WIDTH = 160
"""Letters of a line of the table where nobody says how wide a line is."""
FIGURES = Path(__file__).with_name("data") / "experiment.jsonl"
"""What is committed."""

Costs = dict[float, float]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: so many functions on a problem, sharing or each for itself, for so many virtual seconds."""

    problem: str
    functions: int
    sharing: bool
    seed: int
    seconds: float

    @property
    def name(self) -> tuple[str, int, bool, int]:
        """What it is found by; a longer run stands for a shorter one."""
        return self.problem, self.functions, self.sharing, self.seed


@dataclass(slots=True)
class Outcome:
    """What came of a cell: the cost at each moment of TIMES_S up to its end, and when there was a first path."""

    cell: Cell
    costs: list[float]
    first_s: float | None
    offers: int
    processor_s: float

    def to_line(self) -> str:
        """Return it as a line of JSON; a cost before the first path is null."""
        c = self.cell
        costs = [None if math.isinf(cost) else round(cost, 4) for cost in self.costs]
        fields: dict[str, Any] = {"problem": c.problem, "functions": c.functions, "sharing": c.sharing, "seed": c.seed}
        fields |= {"seconds": c.seconds, "first": self.first_s, "offers": self.offers, "costs": costs}
        return json.dumps(fields | {"processor": round(self.processor_s, 2)})

    @classmethod
    def of_line(cls, line: str) -> Outcome:
        """Return what `to_line` wrote."""
        said = json.loads(line)
        cell = Cell(said["problem"], said["functions"], said["sharing"], said["seed"], said["seconds"])
        costs = [math.inf if cost is None else cost for cost in said["costs"]]
        return cls(cell, costs, said["first"], said["offers"], said["processor"])

    def at(self, seconds: float) -> float | None:
        """Return the cost after so many virtual seconds, None when the cell is shorter."""
        place = TIMES_S.index(seconds)
        return self.costs[place] if place < len(self.costs) else None


def run(cell: Cell, planners: Sequence[Any], store: Any, key: str) -> Outcome:
    """Let planners take turns for a cell's seconds, exchanging through the store if they share."""
    begun = time.thread_time()
    shared, first, offers = math.inf, None, 0
    costs: list[float] = []
    checks = round(CHECKS_PER_S * TICK_S)
    for tick in range(1, round(cell.seconds / TICK_S) + 1):
        for planner in planners:
            planner.run(checks)
        best = min(planner.cost for planner in planners)
        if cell.sharing:
            offers += exchange(planners, store, key, shared)
            best = shared = min(best, shared)
        now = tick * TICK_S
        first = now if first is None and best < math.inf else first
        if len(costs) < len(TIMES_S) and now > TIMES_S[len(costs)] - TICK_S / 2:
            costs.append(best)
        if best <= planners[0].direct + 1e-9:  # the straight line: nothing can be cheaper
            costs += [best] * (sum(moment <= cell.seconds for moment in TIMES_S) - len(costs))
            break
    return Outcome(cell, costs, first, offers, time.thread_time() - begun)


def exchange(planners: Sequence[Any], store: Any, key: str, known: float) -> int:
    """Let who has a cheaper path than is known offer it, then all take over the cheapest; return how many offered."""
    offering = [planner for planner in planners if planner.cost < known]
    for planner in offering:
        store.put(key, Priority(planner.cost, planner.path))
    if offering:
        state = store.get_lattice(key)
        for planner in planners:
            if state.priority < planner.cost:
                planner.adopt(state.value)
    return len(offering)


def perform(cell: Cell, store: Any) -> Outcome:
    """Run one cell on the kernel."""
    from demos.motion import problems
    from demos.motion.kernel import Planner

    problem = problems.named(cell.problem)
    planners = [Planner(problem, cell.seed * SEEDS_APART + number) for number in range(cell.functions)]
    key = f"plan/{cell.problem}/{cell.functions}/{cell.seed}/{time.time_ns()}"
    outcome = run(cell, planners, store, key)
    store.delete(key)
    return outcome


# Which cells ---------------------------------------------------------------------------------------------------------


def chosen(first: int) -> dict[str, list[str]]:
    """Return the names of the first valid problems of each family, so many of each, by number."""
    from demos.motion import problems

    return {
        family: [name for name in problems.names(family) if problems.named(name).valid][:first]
        for family in problems.families()
    }


ROUNDS = (
    ((1, 0.3), (10, 0.1)), ((100, 0.1),), ((1, 3.0), (10, 1.0)), ((100, 0.3),), ((10, 3.0),), ((100, 1.0),),
)  # fmt: skip
"""(functions, virtual seconds) of all seeds, round after round: a run that is stopped has short cells of every seed."""


def cells(names: Iterable[str], seeds: int) -> Iterator[Cell]:
    """Yield the cells, round after round, and in each seed after seed."""
    names = list(names)
    for wanted in ROUNDS:
        for seed in range(seeds):
            for name in names:
                for functions, seconds in wanted:
                    for sharing in (True, False) if functions > 1 else (False,):
                        yield Cell(name, functions, sharing, seed, seconds)


def claimed(names: Iterable[str], seeds: int) -> Iterator[Cell]:
    """Yield what the two claims need, the cheap one first, seed by seed."""
    names = list(names)
    for seed in range(seeds):
        for name in names:
            yield Cell(name, 1, False, seed, 10.0)
            yield Cell(name, 10, True, seed, 1.0)
    for seed in range(seeds):
        for name in names:
            yield Cell(name, 100, True, seed, 2.0)
            yield Cell(name, 10, True, seed, 60.0)


def read(paths: Iterable[Path]) -> dict[tuple[str, int, bool, int], Outcome]:
    """Return what files hold, the longest run of each cell; a line that a killed run left unfinished is skipped."""
    found: dict[tuple[str, int, bool, int], Outcome] = {}
    for path in paths:
        for line in path.read_text("ascii").splitlines() if path.exists() else ():
            try:
                outcome = Outcome.of_line(line)
            except (ValueError, KeyError):
                continue
            known = found.get(outcome.cell.name)
            if known is None or known.cell.seconds < outcome.cell.seconds:
                found[outcome.cell.name] = outcome
    return found


def go_on(wanted: Iterable[Cell], path: Path, until: float, say: Callable[[str], None]) -> int:
    """Run what is wanted and not in the file yet, until the monotonic clock says so; return how many cells were run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, count = read([path]), 0
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="motion-", ignore_cleanup_errors=True))
        lease = stack.enter_context(local.ensure(Path(home) / "anna"))
        store = stack.enter_context(anna.connect(lease.address))
        with path.open("a") as file:
            if file.tell() and not path.read_text("ascii").endswith("\n"):
                file.write("\n")
            for cell in wanted:
                known = done.get(cell.name)
                if known is not None and known.cell.seconds >= cell.seconds:
                    continue
                if time.monotonic() >= until:
                    break
                outcome = perform(cell, store)
                file.write(outcome.to_line() + "\n")
                file.flush()
                count += 1
                how = "sharing" if cell.sharing else "not sharing"
                say(f"{count:>4} {cell.problem:<26} {cell.functions:>3} {how:<11} seed {cell.seed:>2}"
                    f" {outcome.processor_s:6.1f} s of work, cost {outcome.costs[-1]:.2f}")  # fmt: skip
    return count


# What came of it -----------------------------------------------------------------------------------------------------


def band(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median, 10 % and 90 % of values, by nearest rank; infinities are values."""
    ordered = sorted(values)
    rank = [max(0, math.ceil(share * len(ordered)) - 1) for share in (0.5, 0.1, 0.9)]
    return ordered[rank[0]], ordered[rank[1]], ordered[rank[2]]


def family_of(problem: str) -> str:
    """Return the family in a problem's name."""
    return problem.rpartition("/")[0]


def groups(found: Iterable[Outcome]) -> dict[tuple[str, int, bool], list[Outcome]]:
    """Return outcomes by family, number of functions, and whether they shared; families in the order of their names."""
    grouped: dict[tuple[str, int, bool], list[Outcome]] = {}
    for outcome in sorted(found, key=lambda one: (family_of(one.cell.problem), one.cell.functions, one.cell.sharing)):
        cell = outcome.cell
        grouped.setdefault((family_of(cell.problem), cell.functions, cell.sharing), []).append(outcome)
    return grouped


def shown(values: Sequence[float | None]) -> str:
    """Return median and band of costs as text, a dash where a cell is too short."""
    present = [value for value in values if value is not None]
    if not present:
        return "–"
    return "{:.2f} ({:.2f}–{:.2f})".format(*band(present)).replace("inf", "∞")


def table(found: Iterable[Outcome]) -> Table:
    """Return the table: a row for each family, number of functions, sharing or not."""
    made = Table(title="Cost in radians, median (10–90 %), over virtual seconds of work for each function")
    for heading in ("family", "functions", "runs", "first path", *(f"{moment:g} s" for moment in SHOWN_S)):
        made.add_column(heading, justify="left" if heading == "family" else "right", overflow="fold")
    for (family, functions, sharing), outcomes in groups(found).items():
        first = band([math.inf if one.first_s is None else one.first_s for one in outcomes])[0]
        how = "" if functions == 1 else " sharing" if sharing else " not"
        costs = [shown([one.at(moment) for one in outcomes]) for moment in SHOWN_S]
        made.add_row(family, f"{functions}{how}", str(len(outcomes)), f"{first:.2f} s".replace("inf s", "∞"), *costs)
    return made


def verdicts(found: Iterable[Outcome]) -> list[tuple[str, int, float, int, float, float]]:
    """Return (family, functions, moment, pairs, median with sharing, median without), of seeds that have both."""
    by_name = {one.cell.name: one for one in found}
    pairs: dict[tuple[str, int, float], list[tuple[float, float]]] = {}
    for (problem, functions, sharing, seed), one in by_name.items():
        other = by_name.get((problem, functions, False, seed))
        if not sharing or other is None:
            continue
        for moment in TIMES_S:
            with_it, without = one.at(moment), other.at(moment)
            if with_it is not None and without is not None:
                pairs.setdefault((family_of(problem), functions, moment), []).append((with_it, without))
    return [
        (*key, len(both), statistics.median(one for one, _ in both), statistics.median(one for _, one in both))
        for key, both in sorted(pairs.items())
    ]


CLAIMS = (((10, 1.0), (1, 10.0), 0.5), ((100, 2.0), (10, 60.0), 0.25))
"""((functions, seconds), is at most what (functions, seconds) reach, on at least this share of the problems)."""


def claims(found: Iterable[Outcome]) -> list[tuple[str, list[tuple[str, int, float, float]], float]]:
    """Return, for each claim, (what it says, [(problem, seeds, median of many, median of few)], share wanted)."""
    by_name = {one.cell.name: one for one in found}
    told = []
    for (many, soon), (few, late), share in CLAIMS:
        rows: dict[str, list[tuple[float, float]]] = {}
        for problem, functions, sharing, seed in by_name:
            other = by_name.get((problem, few, few > 1, seed))
            if functions != many or not sharing or other is None:
                continue
            one, against = by_name[problem, functions, sharing, seed].at(soon), other.at(late)
            if one is not None and against is not None:
                rows.setdefault(problem, []).append((one, against))
        medians = [
            (problem, len(both), statistics.median(a for a, _ in both), statistics.median(b for _, b in both))
            for problem, both in sorted(rows.items())
        ]
        told.append((f"{many} functions at {soon:g} s ≤ {few} at {late:g} s", medians, share))
    return told


def tell(found: Sequence[Outcome], console: Console) -> None:
    """Print the table, whether sharing was worse anywhere, and what the claims come to."""
    console.print(table(found))
    worse = [row for row in verdicts(found) if row[4] > row[5] * (1 + 1e-6)]
    judged = len(verdicts(found))
    console.print(
        f"Sharing against the same seeds not sharing: worse in the median at {len(worse)} of {judged} moments."
    )
    for family, functions, moment, pairs, one, other in worse:
        console.print(f"  {family}, {functions} functions, {moment:g} s: {one:.3f} against {other:.3f} ({pairs} pairs)")
    for said, rows, share in claims(found):
        if rows:
            held = sum(one <= other * (1 + 1e-6) for _, _, one, other in rows)
            console.print(f"{said}: on {held} of {len(rows)} problems (claimed: on {share:.0%})")
            for problem, seeds, one, other in rows:
                times = "1 seed" if seeds == 1 else f"{seeds} seeds"
                console.print(f"  {problem:<26} {one:8.2f} {other:8.2f}  ({times})", markup=False)


def draw(found: Sequence[Outcome], directory: Path, problem: str = "panda/cage/1") -> None:
    """Draw both pictures: one problem in wall and virtual time, and all problems in virtual time."""
    from demos.motion import report

    peers = directory / "peers.json"
    rows = json.loads(peers.read_text())["rows"] if peers.exists() else ()
    ours = {row["functions"]: [[tuple(step) for step in row["steps"]]] for row in rows if row["way"] == "our lattice"}
    report.chart(directory / "motion.png", ours, found, problem)
    report.all_problems_chart(directory / "problems.png", found)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    theory = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m demos.motion.experiment", description=theory[0], epilog=theory[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--minutes", type=float, default=math.inf, help="begin no cell after so many minutes (default: none)")
    add("--seeds", type=int, default=20, help="how often each problem is run (default %(default)s)")
    add("--first", type=int, default=1, metavar="N", help="the first N valid problems of each family (default 1)")
    add("--problems", nargs="*", metavar="NAME", help="these instead, as panda/cage/1")
    add("--claims", action="store_true", help="run what the two claims need")
    add("--table", action="store_true", help="run nothing, print what there is")
    add("--pictures", type=Path, metavar="DIR", help="draw motion.png (wall time from DIR/peers.json) and problems.png")
    add("--out", type=Path, default=Path("out/motion/experiment.jsonl"), help="file of results (default %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Go on with the experiment, and print what there is; 130 when interrupted."""
    options = parse(argv)
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)  # a file has no width
    if not options.table:
        names = options.problems or [name for family in chosen(options.first).values() for name in family]
        wanted = (claimed if options.claims else cells)(names, options.seeds)
        until = time.monotonic() + options.minutes * 60
        try:
            go_on(wanted, options.out, until, lambda line: console.print(line, markup=False, highlight=False))
        except KeyboardInterrupt:
            return 130
    found = list(read([options.out if options.out.exists() else FIGURES]).values())
    tell(found, console)
    if options.pictures:
        draw(found, options.pictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
