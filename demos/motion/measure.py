"""What a cheaper path takes until everybody knows of it, and other ways to share: `--measure` and `--peers`.

The one rule: what is printed was counted in the races that are printed, the coordinator's messages too.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import cloudburst as cb
from demos.motion import problems, report
from demos.motion.functions import race
from demos.motion.peers import PEERS, apart, coordinated, in_a_session

MEASURED = (4, 8, 16, 32)
SOON = ("planners", "improvements", "p50", "p99", "planners' CPU", "cache's CPU")
SENT = ("planners", "put", "owner →", "cache →", "KB", "coordinator →", "KB")


@contextlib.contextmanager
def node(executors: int) -> Iterator[cb.Client]:
    """A private node with so many executors, gone at the end."""
    with cb.up(hosts=1, executors=executors) as cluster:
        yield cluster.client


def measured(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Race with more and more planners on one node, and with a coordinator; print what an improvement takes."""
    problem = problems.named(options.problem)
    soon = Table(title=f"{problem.name}: until the last planner knows, one node, {options.seconds:g} s each")
    sent = Table(title="messages and KB sent for each improvement, and by a coordinator")
    for table, headings in ((soon, SOON), (sent, SENT)):
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
        arguments = problem.encode(), functions, options.seconds, options.seed
        _, offered, passed, passed_bytes = in_a_session(coordinated, *arguments)
        row |= {"coordinator_offers": offered, "coordinator_sent": passed, "coordinator_bytes": passed_bytes}
        rows.append(row)
        soon.add_row(*soon_cells(row))
        sent.add_row(*sent_cells(row))
    if not options.json:
        console.print(soon, sent)
        load = os.getloadavg()[0]
        console.print(f"{len(os.sched_getaffinity(0))} cores, load {load:.1f} (other programs included)")
    return {"problem": problem.name, "seconds": options.seconds, "rows": rows, "load": os.getloadavg()[0]}


def soon_cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the first table: how soon all knew."""
    return [
        str(row["planners"]), str(row["improvements"]), f"{row['p50_ms']:.1f} ms", f"{row['p99_ms']:.1f} ms",
        f"{row['planners_cpu_s']:.2f} s", f"{row['processor_s']:.2f} s",
    ]  # fmt: skip


def sent_cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the second: what was sent for each cheaper path."""
    each, theirs = max(row["improvements"], 1), max(row["coordinator_offers"], 1)
    return [
        str(row["planners"]), "1",
        f"{row['pushed'] / each:.2f}", f"{row['passed_on'] / each:.2f}", f"{row['passed_on_bytes'] / each / 1e3:.1f}",
        f"{row['coordinator_sent'] / theirs:.2f}", f"{row['coordinator_bytes'] / theirs / 1e3:.1f}",
    ]  # fmt: skip


def compared(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run the same planners with each way to share, 1, 2 and 4 of them, in wall time."""
    problem = problems.named(options.problem)
    table = Table(
        title=f"{problem.name}: cost by ways to share, wall time, {options.seconds:g} s each", box=SIMPLE_HEAD,
        pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    for heading in ("", "first", *(f"{moment:g} s" for moment in report.MOMENTS_S), "p50", "p99", "sent", "work"):
        table.add_column(heading, justify="right", no_wrap=True)
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
            lag = [f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}"] if functions > 1 else ["–", "–"]
            first = f"{found[0][0] * 1e3:.0f}" if found else "–"
            each = f"{messages / max(offers, 1):.1f}"
            table.add_row(name, str(functions), first, *cells, *lag, each, f"{checks // 1000:,} k")
    if not options.json:
        console.print(table)
        console.print("first: milliseconds to the first path. p50, p99: milliseconds until the last")
        console.print("planner knows. sent: messages for each improvement, counted where they are")
        console.print("sent: puts and acknowledgements, pushes to the cache and from it; questions to")
        console.print("Redis and its answers; paths to the coordinator and from it. work: collision")
        console.print("checks, for which there was processor time.")
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
