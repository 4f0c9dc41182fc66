"""The report as Markdown tables, for docs/benchmarks.md: medians, and ratios with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from bench.report import OURS, Report, Row, digits, machine, show_figure

TITLES = {
    "store": "Store: one client, one operation at a time, client and server on one core",
    "batch": "Batches of 100 keys of 256 B, client and server on a core each",
    "engines": "Engines under a log and a checkpoint",
    "server": "One worker under the load generator, 50 connections, 100,000 keys of 256 B",
    "durable": "Durable: acknowledged when it is on the disk, 50 connections, 256 B",
    "scaling": "Two workers",
    "replication": "Two copies of each key, on two nodes",
    "encrypted": "Encrypted beside plain: one worker over TCP, and calls from another host",
    "recovery": "Restart and join",
    "memory": "Memory of a key",
    "functions": "Functions: no-ops, warm, two cores for each runtime",
    "composition": "square(increment(x))",
    "shapes": "Chains and fans of no-ops",
    "burst": "Many calls at once",
    "locality": "The sum of ten arrays",
    "aggregation": "The mean of ten actors",
    "drill": "Calls while executors are killed",
    "sessions": "Sessions",
    "mapping": "Programs over many inputs, beside xargs",
    "build": "Start of a built file",
    "start": "Start: a fresh process to the first result of its embedded cluster",
    "idle": "Idle: all processes of an embedded cluster",
}


def cell(row: Row, name: str) -> str:
    """Return what a table says of one subject: its median, and how many times better ours was."""
    figure = row.figure(name)
    if figure is None:
        return "–"
    shown = show_figure(figure.median, row.unit)
    ratio = row.ratio(name) if name != OURS else None
    if ratio is None:
        return shown
    return f"{shown}, **{digits(ratio.median)}×** ({digits(ratio.low)}–{digits(ratio.high)})"


def verdict(row: Row) -> str:
    """Return the row's bars, each with whether it was met."""
    words = {True: "met", False: "**missed**", None: "not measured"}
    return "; ".join(f"{one.bar}: {words[one.met]}" for one in row.verdicts())


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of one area's table."""
    names = list(dict.fromkeys(name for row in rows for name in row.samples if name != OURS))
    heads = ["", OURS, *names, "bars"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        note = f" ({row.note})" if row.note and row.area in ("idle", "drill") else ""
        cells = [row.name, cell(row, OURS) + note, *(cell(row, name) for name in names), verdict(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def document(report: Report) -> str:
    """Return all tables, with the machine and the versions that they were measured on."""
    lines = [", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine().items()) + ".", ""]
    lines += [f"{name}: {version}." for name, version in report.versions.items() if name != OURS]
    for area, rows in groupby(report.rows, key=lambda row: row.area):
        lines += ["", f"### {TITLES[area]}", "", *table(list(rows))]
        others = report.disturbed.get(area, 0.0)
        lines += ["", f"Other processes took {others:.0%} of the machine meanwhile; the quietest rounds were kept."]
    return "\n".join(lines) + "\n"
