"""The supervisor with workers that misbehave."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.anna.local.processes import PATIENCE_S, python

CRASHING = """
import logging, os, signal, sys
from pathlib import Path
from anna.listening import bind_seats
from anna.rundir import RunDirectory
from anna.supervisor import Supervisor

def serve(view, place, listeners, link):
    print("seat", place, "view", view.version, "id", view.workers[place].worker_id, flush=True)
    CRASH

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as some programs do that start others
logging.basicConfig(stream=sys.stderr, format="%(message)s")
directory = RunDirectory(Path(sys.argv[1]))
supervisor = Supervisor(directory, bind_seats([directory.file("w0.sock")], []), serve, linger_s=None)
supervisor.start()
supervisor.run()
"""


def log_of(place: Path, crash: str, incarnations: int) -> str:
    """Run a supervisor whose workers crash so until there were so many; return what all of them said."""
    said = ""
    with python(CRASHING.replace("CRASH", crash), str(place), stderr=subprocess.STDOUT) as supervisor:
        assert supervisor.stdout is not None
        while said.count("seat 0 view") < incarnations:
            line = supervisor.stdout.readline()
            assert line, said
            said += line
        supervisor.terminate()
        said += supervisor.communicate(timeout=PATIENCE_S)[0]
    assert supervisor.returncode == 0
    assert list(place.iterdir()) == []
    return said


def test_a_crash_loop_is_slowed_down_and_each_incarnation_has_an_id_of_its_own(place: Path) -> None:
    log = log_of(place, "os.kill(os.getpid(), signal.SIGSEGV)", incarnations=4)
    assert re.findall(r"view (\d+) id", log)[:4] == ["1", "2", "3", "4"]
    assert len(set(re.findall(r"id (\d+)$", log, re.MULTILINE)[:4])) == 4
    pauses = re.findall(r"worker 0 \(pid \d+\) was killed by SIGSEGV with its keys; restart in (\d\.\d) s", log)
    assert pauses[:3] == ["0.0", "0.1", "0.2"]


def test_a_worker_that_raises_is_replaced_and_the_reason_logged(place: Path) -> None:
    log = log_of(place, "raise RuntimeError('no disk')", incarnations=2)
    assert "worker 0 failed" in log
    assert "RuntimeError: no disk" in log
    assert re.search(r"worker 0 \(pid \d+\) exited with code 1 with its keys; restart in 0\.0 s", log)


def test_a_worker_that_leaves_by_itself_is_replaced(place: Path) -> None:
    assert "exited with code 0 with its keys" in log_of(place, "return", incarnations=2)
