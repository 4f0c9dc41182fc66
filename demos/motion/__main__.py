"""`python -m demos.motion`, `cb demo motion`: planners race on a problem, and share their best path while they run.

A private node with an executor for each planner is started, the race is run once with sharing and once without, and
what came of it is printed, drawn, and written as a page. `--measure` has more and more planners, and counts what an
improvement costs; `--peers` runs the same planners with other ways to share.
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import cloudburst as cb
from demos.motion import experiment, page, problems, report
from demos.motion.functions import Race, now_us, race
from demos.motion.kernel import cost as cost_of
from demos.motion.kernel import path_collides
from demos.motion.peers import PEERS, apart

EXAMPLES = """examples:
  cb demo motion                                        four planners, six seconds
  cb demo motion --quick                                the same in miniature, within 15 s
  cb demo motion --problem baxter/hard/2 --functions 8 --page     watch it in a browser
  cb demo motion --measure                              how fast a cheaper path reaches all, and what it costs
  cb demo motion --peers                                one process, a pool, Redis, a coordinator
"""
MEASURED = (4, 8, 16, 32)
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


@contextlib.contextmanager
def node(executors: int) -> Iterator[cb.Client]:
    """A private node with so many executors, gone at the end."""
    with cb.up(hosts=1, executors=executors) as cluster:
        yield cluster.client


class Shown:
    """What is shown of a race: its newest numbers, for the page and for the line of progress."""

    def __init__(self, problem: Any, run: Race, functions: int, client: cb.Client) -> None:
        self._problem, self._run, self._client = problem, run, client
        subtitle = f"{problem.name}: {functions} planners as functions, one shared lattice"
        self._scene = page.scene(problem, functions, "Robots that share their best path", subtitle)
        self._functions = functions
        self._drawn: tuple[float, Any] = math.inf, []
        self._first: tuple[float, Any] = math.inf, []
        self.over = False
        self._end_us = 0

    def look(self) -> float:
        """Take in the newest best path; return its cost."""
        state = self._run.watch.lattice
        if state is not None and state.priority < self._drawn[0]:
            drawn = page.frames(self._problem, state.value)
            self._drawn = state.priority, drawn
            if not self._first[1]:
                self._first = self._drawn
        return self._drawn[0]

    def numbers(self) -> dict[str, Any]:
        """Return what the page shows now."""
        cost, store, task = self.look(), self._client.store, self._run.task
        members = store.get(f"plan/{task}/curve", ())
        seeds = range(self._functions)
        said = store.mget([f"plan/{task}/planner/{seed}" for seed in seeds])
        planners = [one for one in said if one]
        self._end_us = self._end_us if self.over and self._end_us else now_us()
        checks = sum(one["checks"] for one in planners)
        counts = [
            ["planners", f"{len(planners)}"],
            ["collision checks", f"{checks:,}"],
            ["cheaper paths found", f"{sum(one['found'] for one in planners):,}"],
            ["paths taken over", f"{sum(one['pruned'] for one in planners):,}"],
            ["straight line", f"{self._scene['direct']:.2f} rad"],
        ]
        first, elapsed = self._first[0], (self._end_us - self._run.begun_us) / 1e6
        curve = page.curve(members, self._run.begun_us)
        if curve and planners:  # up to now, with whoever found something last
            curve.append([elapsed, min(cost, curve[-1][1]), max(planners, key=lambda one: one["won_us"])["seed"]])
        said_now = "no path yet" if math.isinf(cost) else f"first seen: {first:.2f} · {elapsed:.1f} s"
        return {
            "scene": self._scene, "cost": cost, "frames": self._drawn[1], "first": self._first[1], "firstCost": first,
            "said": said_now, "curve": curve, "planners": planners,
            "elapsed": elapsed, "counts": counts, "over": self.over,
            "foot": "Drawn: the spheres that the planner checks. The cost is the sum of all joints' angle changes. "
            "A dot is a function; it lights up when it found the cheapest path so far. Drag to turn.",
        }  # fmt: skip


def held(options: argparse.Namespace, client: cb.Client, problem: Any, sharing: bool, console: Console) -> tuple[
    list[dict[str, Any]], float, Any, dict[str, Any]
]:  # fmt: skip
    """Run one race, showing its progress; return (traces, cost, path, numbers for the page)."""
    task = f"{problem.name}/{'shared' if sharing else 'alone'}/{now_us()}"
    run = race(client, task, problem, options.functions, options.seconds, sharing, options.seed)
    shown = Shown(problem, run, options.functions, client)
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
    with node(options.functions) as client:
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


def measured(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Race with more and more planners on one node, and print what an improvement takes."""
    problem = problems.named(options.problem)
    table = Table(title=f"{problem.name}: what an improvement takes, one node, {options.seconds:g} s each")
    headings = ("planners", "improvements", "last pruned p50", "p99", "put", "owner → cache", "cache → planners",
                "KB", "coordinator would send", "planners' CPU", "cache's CPU")  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right")
    rows = []
    for functions in MEASURED if not options.quick else MEASURED[:2]:
        with node(functions) as client:
            race(client, f"warm/{functions}", problem, functions, 0.5, True, options.seed).traces()
            pids = [pid for pid in (client.status()["cache_pid"],) if pid]
            before = report.Load.of(client, pids)
            run = race(client, f"measured/{functions}", problem, functions, options.seconds, True, options.seed)
            traces = run.traces()
            done = report.Load.of(client, pids).since(before)
            lags = report.lags_ms(traces)
            offers = sum(len(trace["found"]) for trace in traces)
            row = {
                "planners": functions, "improvements": offers, "p50_ms": report.percentile(lags, 0.5),
                "p99_ms": report.percentile(lags, 0.99), "lags": len(lags), **asdict(done),
                "planners_cpu_s": sum(trace["cpu_s"] for trace in traces),
            }  # fmt: skip
            rows.append(row)
            each = max(offers, 1)
            table.add_row(
                str(functions), str(offers), f"{row['p50_ms']:.1f} ms", f"{row['p99_ms']:.1f} ms", "1",
                f"{done.pushed / each:.2f}", f"{done.passed_on / each:.2f}", f"{done.passed_on_bytes / each / 1e3:.1f}",
                f"{functions - 1}", f"{row['planners_cpu_s']:.2f} s", f"{done.processor_s:.2f} s",
            )  # fmt: skip
    if not options.json:
        console.print(table)
        load = os.getloadavg()[0]
        console.print(f"{len(os.sched_getaffinity(0))} cores, load {load:.1f} (other programs included)")
    return {"problem": problem.name, "seconds": options.seconds, "rows": rows, "load": os.getloadavg()[0]}


def compared(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run the same planners with each way to share, 1, 2 and 4 of them, in wall time."""
    problem = problems.named(options.problem)
    table = Table(title=f"{problem.name}: ways to share, wall time, {options.seconds:g} s each, cost in radians")
    for heading in ("", "functions", "first path", *(f"{moment:g} s" for moment in report.MOMENTS_S), "end",
                    "last pruned p50", "p99", "messages per improvement", "checks"):  # fmt: skip
        table.add_column(heading, justify="right" if heading else "left")
    rows = []
    for functions in (1, 2, 4) if not options.quick else (2,):
        for name in ("our lattice", *PEERS):
            try:
                traces, messages = race_by(name, problem, functions, options)
            except RuntimeError as why:
                console.print(f"{name}: left out, {why}", markup=False)
                continue
            found, lags = report.steps(traces), report.lags_ms(traces)
            moments = report.costs_at(found, options.seconds)
            offers, checks = sum(len(one["found"]) for one in traces), sum(one["checks"] for one in traces)
            row = {
                "way": name, "functions": functions, "costs": moments, "end": found[-1][1] if found else math.inf,
                "p50_ms": report.percentile(lags, 0.5), "p99_ms": report.percentile(lags, 0.99), "messages": messages,
                "offers": offers, "checks": checks, "steps": found,
            }  # fmt: skip
            rows.append(row)
            cells = ["–" if one is None else f"{one:.2f}".replace("inf", "∞") for one in moments]
            lag = [f"{row['p50_ms']:.1f} ms", f"{row['p99_ms']:.1f} ms"] if functions > 1 else ["–", "–"]
            first = f"{found[0][0] * 1e3:.0f} ms" if found else "–"
            each = f"{messages / max(offers, 1):.1f}"
            table.add_row(name, str(functions), first, *cells, f"{row['end']:.3f}", *lag, each, f"{checks:,}")
    if not options.json:
        console.print(table)
        console.print("Messages are counted where they are sent: puts and acknowledgements, pushes to the cache and")
        console.print("from it; questions to Redis and its answers; paths to the coordinator and from it.")
    return {"problem": problem.name, "seconds": options.seconds, "rows": rows}


def race_by(name: str, problem: Any, functions: int, options: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """Run planners with one way to share; return their traces and the messages that it took."""
    if name in PEERS:
        traces, messages = apart(name, problem.encode(), functions, options.seconds, options.seed)
        return [asdict(trace) for trace in traces], messages
    with node(functions) as client:
        race(client, "warm", problem, functions, 0.3, True, options.seed).traces()
        before = report.Load.of(client, [])
        found = race(client, "raced", problem, functions, options.seconds, True, options.seed).traces()
        done = report.Load.of(client, []).since(before)
        return found, 2 * done.puts + done.pushed + done.passed_on


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; exit 0, 1 when something failed, 2 for wrong usage, 130 when interrupted."""
    options = parse(argv)
    console = Console(stderr=options.json)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        doing = measured if options.measure else compared if options.peers else single
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
