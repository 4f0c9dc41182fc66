"""`python -m bench`: measure, print ratios against the peers, say which bars are missed.

The exit code is 0 when everything could be measured, missed bars included (they are a finding, not a
failure), and 1 when something broke.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from bench import (
    batch,
    built,
    durable,
    encrypted,
    engines,
    mapping,
    memory,
    recovery,
    replication,
    runtime,
    scaling,
    server,
    sessions,
    startup,
    store,
)
from bench.harness import Settings, Watch
from bench.markdown import document
from bench.pictures import draw, pictures_of
from bench.processes import adopt_orphans, command_line, descendants, end, wait_gone
from bench.report import Area, Report

AREAS: Final[dict[str, Area]] = {
    "store": store.rows,
    "batch": batch.rows,
    "engines": engines.rows,
    "server": server.rows,
    "durable": durable.rows,
    "scaling": scaling.rows,
    "replication": replication.rows,
    "encrypted": encrypted.rows,
    "recovery": recovery.rows,
    "memory": memory.rows,
    **runtime.EXPERIMENTS,
    "sessions": sessions.rows,
    "mapping": mapping.rows,
    "build": built.rows,
    "start": startup.start_rows,
    "idle": startup.idle_area,
}
GROUPS: Final = {"runtime": tuple(runtime.EXPERIMENTS), "all": tuple(AREAS)}
FULL: Final = {"rounds": 7, "seconds": 0.25, "latencies": 2000}
QUICK: Final = {"rounds": 3, "seconds": 0.05, "latencies": 300}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: python -m bench store batch --quick",
    )
    parser.add_argument("areas", nargs="*", help=f"all (the default), runtime, or some of: {', '.join(AREAS)}")
    parser.add_argument("--quick", action="store_true", help="few short rounds: a look, not a measurement")
    parser.add_argument("--rounds", type=int, help="turns of each subject in each row")
    parser.add_argument("--seconds", type=float, help="length of one turn")
    parser.add_argument("--only", help="comma-separated subjects, such as ours,redis-py")
    parser.add_argument(
        "--out", type=Path, default=Path("out/bench"), help="folder of bench.json, bench.md and pictures"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.areas) - set(AREAS) - set(GROUPS)
    if unknown:
        parser.error(f"no such area: {', '.join(sorted(unknown))}; there are {', '.join((*GROUPS, *AREAS))}")
    return options


def settings_of(options: argparse.Namespace, directory: Path) -> Settings:
    """Return how much is measured."""
    amount = QUICK if options.quick else FULL
    return Settings(
        rounds=max(1, options.rounds or int(amount["rounds"])),
        seconds=options.seconds or amount["seconds"],
        latencies=int(amount["latencies"]),
        quick=options.quick,
        directory=directory,
        only=frozenset(options.only.split(",")) if options.only else None,
    )


def measure(areas: Sequence[str], settings: Settings, report: Report) -> None:
    """Measure each area; one that breaks is reported and does not stop the others."""
    for name in areas:
        watch = Watch()
        try:
            report.add(AREAS[name](settings, report))
        except Exception as error:
            traceback.print_exc()
            report.broken[name] = f"{type(error).__name__}: {error}"
        left = wait_gone(descendants(os.getpid()))
        if left:
            report.broken[f"{name}, left behind"] = "; ".join(map(command_line, left))
            end(left)
        report.disturbance(name, watch.taken_by_others())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return the exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    wanted = {name for asked in options.areas or ["all"] for name in GROUPS.get(asked, (asked,))}
    areas = [name for name in AREAS if name in wanted]
    report = Report(Console(highlight=False))
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        measure(areas, settings_of(options, Path(directory)), report)
    report.summary()
    target = options.out / "bench.json"
    report.write_json(target)
    target.with_suffix(".md").write_text(document(report))
    made = [one for area in areas for one in pictures_of(area, [row for row in report.rows if row.area == area])]
    drawn = draw([*made, *report.pictures], options.out)
    report.console.print(f"every sample: {target}; as tables: {target.with_suffix('.md')}; pictures: {len(drawn)}")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
