"""What `cb map` adds to the programs that it runs, beside `xargs -P` with the same commands on the same cores.

Tasks wait 100 ms and do next to nothing, more of them at a time than there are cores, so what is measured is how long
each slot stands empty between two tasks, and what it takes to begin and to end. The node is there already, as a
user's cluster would be; the command's own start counts. Source: the bar is at most 10 % over the peer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from bench.harness import Sample, Settings, interleave
from bench.peers import our_runtime
from bench.report import OURS, Bar, Report, Row

FILES: Final = 1_000
QUICK_FILES: Final = 200
SLOTS: Final = 8
XARGS: Final = "xargs"
ROUNDS_MAX: Final = 3
TURN_S: Final = 300.0
WITHIN: Final = 1 / 1.1

TASK: Final = "sleep 0.1; tr a-z A-Z < {}"
OURS_ONE: Final = "$CB map '" + TASK + "' in/* -j $SLOTS > ours.txt"
STAGES: Final = ("tr a-z A-Z < {}", "sed s/LINE/Row/ {}", "cat {}")
OURS_THREE: Final = (
    " | ".join(f"$CB map -j $SLOTS 'sleep 0.1; {stage}'" + " in/*" * (not at) for at, stage in enumerate(STAGES))
    + " > ours.txt"
)
XARGS_THREE: Final = (
    "mkdir -p a b; ls in | xargs -P $SLOTS -I{} sh -c 'sleep 0.1; tr a-z A-Z < in/{} > a/{}; echo {}'"
    " | xargs -P $SLOTS -I{} sh -c 'sleep 0.1; sed s/LINE/Row/ a/{} > b/{}; echo {}'"
    " | xargs -P $SLOTS -I{} sh -c 'sleep 0.1; cat b/{}' > xargs.txt"
)
XARGS_ONE: Final = "ls in/* | xargs -P $SLOTS -I{} sh -c '" + TASK + "' > xargs.txt"


@contextmanager
def prepared(files: int) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a directory with so many small files, and an environment in which a node of our runtime is running."""
    with tempfile.TemporaryDirectory(prefix="bench-map-") as name:
        directory = Path(name)
        (directory / "in").mkdir()
        for number in range(files):
            (directory / "in" / f"{number:05}.txt").write_text(f"this is line {number}\n")
        environment = os.environ | our_runtime.environment(directory) | {
            "PYTHONPATH": os.pathsep.join(sys.path), "CB": f"{sys.executable} -m cloudburst", "SLOTS": str(SLOTS),
        }  # fmt: skip
        node = subprocess.Popen(
            [sys.executable, "-m", "cloudburst", "node"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert node.stderr is not None
            node.stderr.readline()  # it is ready
            yield directory, environment
        finally:
            node.terminate()
            node.communicate()


def turn(script: str, directory: Path, environment: dict[str, str], expected: int) -> Sample:
    """Run a script of the shell, whose result is the file that it names last; return how long that took."""
    result = directory / script.rpartition(" ")[2]
    began = time.perf_counter()
    subprocess.run(["bash", "-c", script], cwd=directory, env=environment, check=True, timeout=TURN_S)
    seconds = time.perf_counter() - began
    found = len(result.read_text().splitlines())
    if found != expected:
        raise RuntimeError(f"{script!r} has made {found:,} lines of {expected:,}")
    return Sample(seconds)


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure one stage and three."""
    files = QUICK_FILES if settings.quick else FILES
    report.heading(f"Map: {files:,} small files, 100 ms a task, {SLOTS} at a time")
    subjects = [OURS] if settings.wants(OURS) else []
    if shutil.which("xargs") and settings.wants(XARGS):
        subjects.append(XARGS)
    else:
        report.skip(XARGS, "it is not installed, or not among --only")
    waited_s = 0.1 * files / SLOTS
    with prepared(files) as (directory, environment):
        for name, ours, theirs in (("one stage", OURS_ONE, XARGS_ONE), ("three stages", OURS_THREE, XARGS_THREE)):
            scripts = {OURS: ours, XARGS: theirs}
            turns: dict[str, Callable[[], Sample]] = {
                subject: partial(turn, scripts[subject], directory, environment, files) for subject in subjects
            }
            samples = interleave(min(settings.rounds, ROUNDS_MAX), turns)
            yield Row("mapping", name, "s", samples, (Bar(XARGS, WITHIN),), note=f"{waited_s:.1f} s are waited for")
