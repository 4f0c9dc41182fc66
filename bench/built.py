"""What a built file adds to the start of Python: `./OUT info`, unpacked before, beside `python -c pass`.

Both are measured from outside, from before the process is launched to its end, in turns. The file is one of an
application of three lines; what it adds does not depend on the application, because it is not imported.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from bench.harness import Sample, Settings, interleave
from bench.report import OURS, Report, Row

PYTHON: Final = "python -c pass"
STARTS: Final = 20
MORE_LIMIT_S: Final = 0.15
RUN_S: Final = 120.0


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Build a file, and measure its first start and its later ones."""
    report.heading("Start of a built file")
    if importlib.util.find_spec("pex") is None:
        report.skip(OURS, "PEX is not installed (pip install pex packaging)")
        return
    with tempfile.TemporaryDirectory(prefix="bench-", dir=settings.directory) as made:
        place = Path(made)
        (place / "app.py").write_text("def main():\n    pass\n")
        environment = os.environ | {"PEX_ROOT": f"{made}/pex", "PYTHONPATH": os.pathsep.join(sys.path)}
        start([sys.executable, "-m", "cloudburst", "build", "app.py", "-o", "app"], place, environment)
        cold = start(["./app", "info"], place, environment)
        yield Row("build", "first start, which unpacks it", "s", {OURS: (cold,)})
        turns: dict[str, Callable[[], Sample]] = {
            OURS: partial(start, ["./app", "info"], place, environment),
            PYTHON: partial(start, [sys.executable, "-c", "pass"], place, environment),
        }
        taken = interleave(3 if settings.quick else STARTS, turns)
    yield Row("build", "later start", "s", taken)
    more = tuple(Sample(ours.figure - plain.figure) for ours, plain in zip(taken[OURS], taken[PYTHON]))
    yield Row("build", f"more than {PYTHON}", "s", {OURS: more}, limit=MORE_LIMIT_S)


def start(command: list[str], place: Path, environment: Mapping[str, str]) -> Sample:
    """Measure one process from launch to end."""
    begun = time.perf_counter()
    subprocess.run(command, cwd=place, env=environment, stdout=subprocess.DEVNULL, check=True, timeout=RUN_S)
    return Sample(time.perf_counter() - begun)
