"""`python -m demos.motion`, `cb demo motion`: planners race on a problem, and share their best path while they run.

A private node with an executor for each planner is started, the race is run once with sharing and once without, and
what came of it is printed, drawn, and written as a page. `--measure` has more and more planners, and counts what an
improvement costs; `--peers` runs the same planners with other ways to share (`measure.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import cloudburst as cb
from demos.motion import experiment, measure, page, problems, report
from demos.motion.functions import now_us, race
from demos.motion.kernel import cost as cost_of
from demos.motion.kernel import path_collides

EXAMPLES = """examples:
  cb demo motion                                        four planners, six seconds
  cb demo motion --quick                                the same in miniature, within 15 s
  cb demo motion --problem baxter/hard/2 --functions 8 --page     watch it in a browser
  cb demo motion --measure                              how fast a cheaper path reaches all, and what it costs
  cb demo motion --peers                                one process, a pool, Redis, a coordinator
"""
LOOK_S = 0.1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="cb demo motion", description="Robot arms whose planners share their best path while they run.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--problem", default="panda/cage/1", metavar="NAME", help="such as baxter/hard/2 (default %(default)s)")
    add("--functions", type=int, metavar="N", help="planners (default 4; quick 2)")
    add("--seconds", type=float, metavar="S", help="of each race (default 6; quick 1)")
    add("--seed", type=int, default=0, help="of the first planner (default 0)")
    add("--quick", action="store_true", help="2 planners, 1 s; ends within 15 s")
    add("--page", action="store_true", help="serve the page on loopback while the race runs, and until Ctrl-C")
    add("--measure", action="store_true", help="races of 4, 8, 16 and 32 planners: latency, messages, bytes")
    add("--peers", action="store_true", help="the same planners with other ways to share, 1, 2 and 4 of them")
    add("--json", action="store_true", help="print result.json instead of tables")
    add("--out", type=Path, default=Path("out/motion"), metavar="DIR", help="for result.json, picture and page")
    options = parser.parse_args(argv)
    options.functions = options.functions or (2 if options.quick else 4)
    options.seconds = options.seconds or (1.0 if options.quick else 6.0)
    if not 1 <= options.functions <= 128 or not 0 < options.seconds <= 3600:
        parser.error("it takes 1 to 128 functions, and more than 0 up to 3,600 seconds")
    return options


def held(options: argparse.Namespace, client: cb.Client, problem: Any, sharing: bool, console: Console) -> tuple[
    list[dict[str, Any]], float, Any, dict[str, Any]
]:  # fmt: skip
    """Run one race, showing its progress; return (traces, cost, path, numbers for the page)."""
    task = f"{problem.name}/{'shared' if sharing else 'alone'}/{now_us()}"
    run = race(client, task, problem, options.functions, options.seconds, sharing, options.seed)
    shown = page.Shown(problem, run, options.functions, client)
    served = page.Served(shown.numbers) if options.page and sharing else None
    if served is not None:
        console.print(f"The page is at {served.address}", highlight=False)
    with console.status("") as status:
        while not all(future.done() for future in run.futures):
            cost = shown.look()
            what = "sharing" if sharing else "each for itself"
            status.update(f"{what}: {'no path yet' if math.isinf(cost) else f'{cost:.2f} radians'}")
            time.sleep(LOOK_S)
    traces = run.traces()
    cost, path = run.best()
    shown.over = True
    numbers = shown.numbers()
    if served is not None:
        console.print("The race is over; Ctrl-C ends the page.")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)
        served.close()
    run.watch.close()
    return traces, cost, path, numbers


def judged(problem: Any, cost: float, path: Any) -> str:
    """Return what the judges say of a final path, in words; raise RuntimeError when it collides."""
    from demos.motion.kernel import Robot

    if math.isinf(cost):
        return "no path"
    if path_collides(Robot.named(problem.robot), problem.obstacles, path) or abs(cost_of(path) - cost) > 1e-6:
        raise RuntimeError(f"the path of cost {cost} collides, or costs {cost_of(path)}")
    try:
        judge = importlib.import_module("demos.motion.judge")
    except ImportError as missing:
        return f"free by the planner's spheres; not judged by exact meshes: {missing}"
    if why := judge.unavailable(problem.robot):
        return f"free by the planner's spheres; not judged by exact meshes: {why}"
    return f"free by the planner's spheres; {judge.judge(problem, path)}"


def single(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Race with and without sharing; print the table, write picture and page."""
    problem = problems.named(options.problem)
    table = Table(title=f"{problem.name}: cost in radians, wall time, {options.functions} functions")
    for heading in ("", "first path", *(f"{moment:g} s" for moment in report.MOMENTS_S), "end", "checks"):
        table.add_column(heading, justify="right" if heading else "left")
    result: dict[str, Any] = {"problem": problem.name, "functions": options.functions, "seconds": options.seconds}
    wall: dict[int, list[report.Steps]] = {}
    with measure.node(options.functions) as client:
        for sharing in (True, False):
            traces, cost, path, numbers = held(options, client, problem, sharing, console)
            found = report.steps(traces)
            moments = report.costs_at(found, options.seconds)
            first = f"{found[0][0] * 1e3:.0f} ms" if found else "–"
            cells = ["–" if one is None else f"{one:.2f}".replace("inf", "∞") for one in moments]
            row = "sharing" if sharing else "each for itself"
            checks = sum(trace["checks"] for trace in traces)
            table.add_row(row, first, *cells, f"{cost:.3f}", f"{checks:,}")
            verdict = judged(problem, cost, path)
            result[row] = {"costs": moments, "end": cost, "checks": checks, "steps": found, "judged": verdict}
            if sharing:
                wall[options.functions] = [found]
                page.write(options.out / "motion.html", numbers)
    virtual = list(experiment.read([experiment.FIGURES]).values())
    report.chart(options.out / "motion.png", wall, virtual, problem.name)
    if not options.json:
        console.print(table)
        console.print(f"The final path is {result['sharing']['judged']}.", markup=False, highlight=False)
        cores = len(os.sched_getaffinity(0))
        console.print(f"Wall time on {cores} cores, which more functions share.")
        console.print("Virtual time, an equal share of work for each: python -m demos.motion.experiment")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; exit 0, 1 when something failed, 2 for wrong usage, 130 when interrupted."""
    options = parse(argv)
    console = Console(stderr=options.json)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        doing = measure.measured if options.measure else measure.compared if options.peers else single
        result = doing(options, console)
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    except (problems.UnknownProblem, cb.CloudburstError, RuntimeError, OSError) as error:
        Console(stderr=True).print(f"motion: {type(error).__name__}: {error}", style="red", markup=False)
        return 1
    kind = "measured" if options.measure else "peers" if options.peers else "result"
    text = json.dumps(page.finite(result), indent=1)
    (options.out / f"{kind}.json").write_text(text)
    if options.json:
        print(text)
    else:
        for name in (f"{kind}.json", *(("motion.png", "motion.html") if kind == "result" else ())):
            console.print(f"{name:<12} {(options.out / name).resolve()}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
