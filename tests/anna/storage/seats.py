"""A seat's data made by hand, copied as a crash leaves it, and opened in a process of its own.

Damaged files are opened in a child, so that a crash there is a failed test and not the end of the run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from anna.errors import Damaged
from anna.storage.engine import Engine
from anna.storage.records import Damage

ROOT = Path(__file__).parents[3]
IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None

Cells = dict[bytes, bytes]
Logs = dict[int, bytes]


def crashed(directory: Path, to: Path) -> Path:
    """Return a copy of `directory`, which may be open: what a killed process leaves."""
    shutil.copytree(directory, to)
    return to


def contents(engine: Engine) -> tuple[Logs, Cells]:
    """Return what the engine gives out."""
    return dict(engine.logs()), dict(engine.cells())


def recovered(directory: Path) -> tuple[Logs, Cells, list[Damage]]:
    """Open seat 0 of `directory` and return all that it gives out, with the damage that it found."""
    engine = Engine(directory, 0, ballast_bytes=4096)
    try:
        logs, cells = contents(engine)
        return logs, cells, engine.check()
    finally:
        engine.close()


def verdict(directory: Path, logs: Logs, cells: Cells) -> str:
    """Return what became of seat 0, of which `logs` and `cells` were durable: whole, damaged, lost or wrong."""
    try:
        found_logs, found_cells, damage = recovered(directory)
    except Damaged:
        return "damaged"
    if not (found_logs.items() <= logs.items() and found_cells.items() <= cells.items()):
        return "wrong"
    if found_logs == logs and found_cells == cells:
        return "damaged" if damage else "whole"
    return "damaged" if damage else "lost"


def in_child(code: str, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process; return how it ended and what it said."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        env=env,
        cwd=ROOT,
    )
