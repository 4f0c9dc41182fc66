"""Watching real processes: by pidfd, which tells of an end at once, and by deadline where there is no event."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

PATIENCE_S = 20.0
"""How long a test waits for what must happen: long, because only a failing test waits so long."""


class Watched:
    """A process that is known by pidfd, so that a reused pid is never mistaken for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def has_ended(self, within: float = 0.0) -> bool:
        """Whether the process ends within so many seconds; a zombie has ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(within * 1000))

    def __del__(self) -> None:
        os.close(self._pidfd)


class Family:
    """A supervisor and its workers, as they were when this was made."""

    def __init__(self, supervisor_pid: int) -> None:
        self.supervisor = Watched(supervisor_pid)
        self.workers = [Watched(pid) for pid in children_of(supervisor_pid)]

    def assert_ended(self) -> None:
        """Wait for the end of every process."""
        for process in (self.supervisor, *self.workers):
            assert process.has_ended(PATIENCE_S), f"pid {process.pid} still runs"


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def processor_s(pids: list[int]) -> float:
    """Return how much processor time these processes have used."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(words[11]) + int(words[12]) for words in fields) / os.sysconf("SC_CLK_TCK")


def eventually(condition: Callable[[], object], what: str) -> None:
    """Poll until the condition holds. For what sends no event; fails with `what` when it never does."""
    deadline = time.monotonic() + PATIENCE_S
    pause = select.poll()
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        pause.poll(2)


@contextmanager
def python(program: str, *arguments: str, stderr: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program that talks by its standard input and output; it is killed in the end, if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> list[str]:
    """Return the words of the next line that a program prints."""
    assert process.stdout is not None
    words = process.stdout.readline().split()
    assert words, f"the program ended with {process.wait()} before it printed"
    return words


@contextmanager
def running(subcommand: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run an `anna` command with --json; give the process and its start-up message. It is killed in the end."""
    command = [sys.executable, "-m", "anna.cli", subcommand, "--json", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield process, json.loads(line)
        finally:
            process.kill()


serving = partial(running, "serve")
