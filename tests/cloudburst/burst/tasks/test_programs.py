"""The programs of a worker by themselves: they write within bounds, and nothing of a worker that was killed stays."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloudburst import config
from cloudburst.burst import reaping
from cloudburst.burst.tasks.items import Item
from cloudburst.burst.tasks.programs import Orders, Programs

WAIT_S = 20.0
BOUND = 1 << 20


@pytest.mark.parametrize("where", ["&1", "&2", "{out}"])
def test_a_program_that_writes_without_end_is_stopped_while_it_runs(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "TASK_OUTPUT_BYTES_MAX", BOUND)
    command = f"head -c {2 * BOUND} /dev/zero >{where}; sleep 1000 # {{}}"
    programs = Programs("a-worker", Orders(command, str(tmp_path), os.environ["PATH"], {}, None))
    program = programs.begin(Item(b"key", "x", "x", 0), None)
    until_s = time.monotonic() + WAIT_S
    while not select.select([program.pidfd], [], [], 0.02)[0]:
        assert time.monotonic() < until_s, "it goes on"
        programs.due([program], time.monotonic())
    result, data = program.end(programs.template.writes)
    programs.free(program)
    programs.close(True)
    assert (result.ok, data) == (False, b"")
    assert result.why == f"it has written {2 * BOUND:,} bytes; task_output_bytes_max is {BOUND:,}"


WORKER = """
import sys
from cloudburst.burst.tasks.programs import Orders, Programs
programs = Programs("a-worker", Orders("true", "/", "/bin", {}, None))
print(programs._directory, programs._guard.pid, flush=True)
sys.stdin.read()  # whoever has the other end is gone one day
"""


def test_what_a_worker_has_left_that_was_killed_with_its_guard_is_swept_away(tmp_path: Path) -> None:
    words, environment = [sys.executable, "-c", WORKER], os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        place, guard = process.stdout.readline().split()
        reaping.sweep(tmp_path)
        assert os.path.isdir(place), "it is in use"
        for pid in (int(guard), process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    reaping.sweep(tmp_path)
    assert os.listdir(tmp_path) == []
