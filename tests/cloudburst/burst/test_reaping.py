"""What is left of a run is found by its directory's name, and ended; what somebody has is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudburst.burst import reaping
from cloudburst.segments.shelf import home_of
from tests.anna.local.processes import eventually
from tests.cloudburst.conftest import WAIT_S

HOLD = """
import sys, signal, time
from pathlib import Path
from cloudburst.running import Word
word = Word(Path("{run}"), "mine", False)
print("holds", flush=True)
signal.pause()
"""
IDLE = "import signal; signal.pause()"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def runs(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where directories of runs are: nobody else's are seen there."""
    monkeypatch.setattr(reaping, "places", lambda: [str(directory)])
    return directory


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        made.append(subprocess.Popen([sys.executable, "-c", *words], stdout=subprocess.PIPE, text=True))
        return made[-1]

    yield begin
    for one in made:
        one.kill()
        one.communicate()


def run_in(place: Path, name: str) -> Path:
    """Make the directory of a run, with that of a node and its shared memory."""
    made = place / f"{reaping.PREFIX}{name}"
    (made / "host-0").mkdir(parents=True)
    home_of(made / "host-0").mkdir()
    return made


def held(start: Start, run: Path) -> subprocess.Popen[str]:
    holder = start(HOLD.format(run=run))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holds\n"
    return holder


def test_what_a_killed_run_has_left_is_ended_and_removed(start: Start, runs: Path) -> None:
    run = run_in(runs, "old")
    holder, node = held(start, run), start(IDLE, f"{run}/host-0")
    holder.kill()
    holder.wait()
    eventually(lambda: reaping.processes_of(str(run)) == [node.pid], "the node is seen")
    [would] = reaping.reap(None, dry=True)
    assert (would.run, would.holder, would.processes, node.poll()) == ("mine", 0, (node.pid,), None)
    assert reaping.reap(None, dry=False)[0].directory == str(run)
    assert node.wait(WAIT_S) == -signal.SIGKILL
    assert not run.exists()
    assert not home_of(run / "host-0").exists(), "its shared memory is gone, too"
    assert reaping.reap(None, dry=False) == []


def test_run_that_somebody_has_is_left_alone_unless_it_is_older_than_is_asked_for(start: Start, runs: Path) -> None:
    run = run_in(runs, "new")
    holder = held(start, run)
    assert reaping.reap(None, dry=False) == []
    assert reaping.reap(3600, dry=False) == []
    assert holder.poll() is None
    assert [one.holder for one in reaping.reap(0, dry=False)] == [holder.pid]
    assert holder.wait(WAIT_S) == -signal.SIGTERM
    assert not run.exists()


def test_other_directories_and_processes_are_none_of_it(start: Start, runs: Path) -> None:
    run = run_in(runs, "a")
    (runs / "cloudburst-0-node").mkdir()
    beside = start(IDLE, f"{run}-another")
    [found] = reaping.reap(None, dry=False)
    assert (found.directory, found.processes, beside.poll()) == (str(run), (), None)
    assert [path.name for path in runs.iterdir()] == ["cloudburst-0-node"]


def test_guard_ends_a_run_whose_time_is_over_whatever_its_holder_does(start: Start, runs: Path) -> None:
    run = run_in(runs, "frozen")
    holder, node = held(start, run), start(IDLE, f"{run}/host-0")
    os.kill(holder.pid, signal.SIGSTOP)
    guard = subprocess.run([sys.executable, reaping.__file__, "guard", str(run), "1.0", "0.2"], timeout=WAIT_S * 2)
    assert guard.returncode == 0
    assert holder.wait(WAIT_S) in (-signal.SIGKILL, -signal.SIGTERM)
    assert node.wait(WAIT_S) == -signal.SIGKILL
    assert not run.exists()


def test_guard_ends_what_a_killed_holder_leaves(start: Start, runs: Path) -> None:
    run = run_in(runs, "killed")
    holder, node = held(start, run), start(IDLE, f"{run}/host-0")
    guard = subprocess.Popen([sys.executable, reaping.__file__, "guard", str(run), "0", "0.1"])
    with pytest.raises(subprocess.TimeoutExpired):
        guard.wait(0.3)
    holder.kill()
    holder.wait()
    assert guard.wait(WAIT_S) == 0
    assert node.wait(WAIT_S) == -signal.SIGKILL
    assert not run.exists()
