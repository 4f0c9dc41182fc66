"""What `cb map` adds to the programs that it runs, beside `xargs -P` with the same commands on the same cores.

Two kinds of tasks of 100 ms. Those that compute use a core for so long, as many at a time in each stage as there are
cores: what is added is processor time. Those that wait do next to nothing, more at a time than there are cores, so that
it shows how long each slot stands empty between two tasks. Both sides run the same shell commands, the same number at a
time in each stage. Three stages of either side are a pipe: all begin at once, and each takes what the one before has
done. (Three `xargs` in a row, each over all files, would take three times as long.) The node is there already, as a
user's cluster would be; the commands' own start and end count, with byte code as installers leave it.
Source: the bar is at most 10 % over the peer, for one stage and for three.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from bench.harness import Sample, Settings, interleave
from bench.peers import our_runtime
from bench.processes import family
from bench.report import OURS, Bar, Report, Row

FILES: Final = 1_000
QUICK_FILES: Final = 200
SLOTS: Final = 8
CORES: Final = os.cpu_count() or 1
XARGS: Final = "xargs"
ROUNDS_MAX: Final = 3
TURN_S: Final = 300.0
WITHIN: Final = 1 / 1.1

TASK_S: Final = 0.1
COMPUTING_SHARE: Final = 4
"""Tasks that compute are so many times fewer, for time; what a command takes to begin then weighs more, not less."""
STAGES: Final = ("tr a-z A-Z", "sed s/LINE/Row/", "cat")
WAITS: Final = "sleep 0.1"


def computes() -> str:
    """Return a loop for the shell that takes 100 ms of processor time on this machine when it is quiet."""
    tried, best_s = 100_000, float("inf")
    for _ in range(5):
        before = os.times()
        subprocess.run(["sh", "-c", _loop(tried)], check=True)
        after = os.times()
        used_s = after.children_user + after.children_system - before.children_user - before.children_system
        best_s = min(best_s, used_s)
    return _loop(round(tried * TASK_S / best_s))


def _loop(turns: int) -> str:
    return f"i=0; while [ $i -lt {turns} ]; do i=$((i+1)); done"


def ours(task: str, stages: int) -> str:
    """Return the script of `cb map`, whose result is the file that it names last."""
    commands = [f"$CB map -j $SLOTS '{task}; {stage} < {{}}'" for stage in STAGES[:stages]]
    commands[0] += " in/*"
    return " | ".join(commands) + " > ours.txt"


def theirs(task: str, stages: int) -> str:
    """Return the script of `xargs`: stages tell each other names of files.

    What many write at a time is appended to: `cat` would else copy with an offset of its own, over another's line.
    """
    at = [f"{number}/{{}}" for number in range(stages)]
    commands = []
    for number, stage in enumerate(STAGES[:stages]):
        ends = f"> {number + 1}/{{}}; echo {{}}" if number + 1 < stages else ""
        commands.append(f"xargs -P $SLOTS -I{{}} sh -c '{task}; {stage} < {at[number]} {ends}'")
    places = " ".join(map(str, range(1, stages))) or "."
    return f"rm -f xargs.txt; mkdir -p {places}; ln -sfn in 0; ls in | " + " | ".join(commands) + " >> xargs.txt"


@contextmanager
def prepared(files: int) -> Iterator[tuple[Path, dict[str, str], int]]:
    """Yield a directory with so many small files, an environment in which a node of our runtime runs, and its pid."""
    with tempfile.TemporaryDirectory(prefix="bench-map-") as name:
        directory = Path(name)
        (directory / "in").mkdir()
        for number in range(files):
            (directory / "in" / f"{number:05}.txt").write_text(f"this is line {number}\n")
        environment = os.environ | our_runtime.environment(directory) | {
            "PYTHONPATH": os.pathsep.join(sys.path), "CB": f"{sys.executable} -m cloudburst",
            "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(directory / "bytecode"),
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
            subprocess.run(["bash", "-c", "$CB map true x"], env=environment, check=True, timeout=TURN_S)
            yield directory, environment, node.pid
        finally:
            node.terminate()
            node.communicate()


def used_s(node: int) -> float:
    """Return the processor time of a node, its executors, and what they have run; and of what this process has."""
    here = os.times()
    total = here.children_user + here.children_system
    for pid in family([node]):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


def turn(script: str, slots: int, directory: Path, environment: dict[str, str], expected: int, node: int) -> Sample:
    """Run a script of the shell, whose result is the file that it names last; return how long that took.

    The sample's note is the processor time that it took, in s.
    """
    result = directory / script.rpartition(" ")[2]
    used_before_s = used_s(node)
    began = time.perf_counter()
    subprocess.run(
        ["bash", "-c", script], cwd=directory, env=environment | {"SLOTS": str(slots)}, check=True, timeout=TURN_S
    )
    seconds = time.perf_counter() - began
    found = len(result.read_text().splitlines())
    if found != expected:
        raise RuntimeError(f"{script!r} has made {found:,} lines of {expected:,}")
    return Sample(seconds, note=f"{used_s(node) - used_before_s:.3f}")


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure one stage and three, of tasks that wait and tasks that compute."""
    files = QUICK_FILES if settings.quick else FILES
    report.heading(f"Map: {files:,} small files, 100 ms a task, {SLOTS} that wait or {CORES} that compute at a time")
    subjects = [OURS] if settings.wants(OURS) else []
    if shutil.which("xargs") and settings.wants(XARGS):
        subjects.append(XARGS)
    else:
        report.skip(XARGS, "it is not installed, or not among --only")
    for kind, task, slots, count in (
        ("wait", WAITS, SLOTS, files), ("compute", computes(), CORES, files // COMPUTING_SHARE),
    ):  # fmt: skip
        with prepared(count) as (directory, environment, node):
            for stages in (1, len(STAGES)):
                scripts = {OURS: ours(task, stages), XARGS: theirs(task, stages)}
                turns: dict[str, Callable[[], Sample]] = {
                    subject: partial(turn, scripts[subject], slots, directory, environment, count, node)
                    for subject in subjects
                }
                samples = interleave(min(settings.rounds, ROUNDS_MAX), turns)
                least_s = TASK_S * count / slots * (1 if kind == "wait" else stages)
                name = f"{stages} stage{'s' * (stages > 1)}, {count:,} tasks that {kind}"
                used = {who: median(float(sample.note) for sample in some) for who, some in samples.items()}
                cost = ", ".join(f"{who} {1e3 * seconds / count / stages:.1f} ms" for who, seconds in used.items())
                note = f"{least_s:.1f} s at least; processor time a task: {cost}"
                yield Row("mapping", name, "s", samples, (Bar(XARGS, WITHIN),), note=note)
