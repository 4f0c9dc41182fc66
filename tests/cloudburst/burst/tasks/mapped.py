"""Runs `cb map` as its users do, from a shell, beside a node of the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cloudburst as cb
from cloudburst import local
from cloudburst.burst.tasks.programs import MARK
from cloudburst.client import Client
from cloudburst.membership import Membership

ROOT = Path(__file__).parents[4]
RUN_S = 60.0
SETTLES_S = 10.0


@contextmanager
def node_with(executors: int) -> Iterator[cb.Client]:
    """A node that stays while several commands come and go."""
    with Client(lambda: Membership(local.ensure(executors=executors))) as client:
        yield client


def environment(**variables: str) -> dict[str, str]:
    """What the commands run with."""
    return os.environ | {"PYTHONPATH": str(ROOT), "CB": f"{sys.executable} -m cloudburst"} | variables


def cb_map(*words: str, cwd: Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "cloudburst", "map", *words]
    return subprocess.run(command, cwd=cwd, input=given, capture_output=True, timeout=RUN_S, env=environment())


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's pipeline, in which `$CB` is the command `cb`; it fails as the first of its stages does."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"],
        cwd=cwd, capture_output=True, timeout=RUN_S, env=environment(), stdin=subprocess.DEVNULL,
    )  # fmt: skip


def begin(*words: str, cwd: Path) -> subprocess.Popen[bytes]:
    """Start the command, whose output is read line by line."""
    command = [sys.executable, "-m", "cloudburst", "map", *words]
    return subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )


def interrupted(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Press Ctrl-C; return what it has still printed."""
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=RUN_S)


def no_program_is_left() -> bool:
    """Whether, within a while, no program of any worker runs any more; guards have to come to their turn."""
    end_s = time.monotonic() + SETTLES_S
    while time.monotonic() < end_s:
        if not marked():
            return True
        os.sched_yield()
    return False


def marked() -> list[int]:
    """Return the processes that carry the mark of a worker."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if f"{MARK}=".encode() in Path("/proc", name, "environ").read_bytes():
                    found.append(int(name))
            except OSError:
                pass
    return found


def files(directory: Path, count: int) -> list[str]:
    """Write so many small files; return their names."""
    names = [f"file {number}.txt" for number in range(count)]
    for number, name in enumerate(names):
        (directory / name).write_text(f"line {number}\n")
    return names
