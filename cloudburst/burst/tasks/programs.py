"""The programs that tasks run: each in a process group of its own, with a private directory, and a guard for all.

The one rule: when a task is over, by its own end, by a timeout, because it is stopped or because its worker was killed,
no process of it is left. The worker ends the group; if the worker is killed itself, its guard (a process that only
waits for that) ends everything that carries the worker's mark in its environment, wherever it has got to, and removes
the worker's files.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO, Any, Final, Protocol

from cloudburst import config
from cloudburst.burst import reaping
from cloudburst.burst.tasks.code import Code
from cloudburst.burst.tasks.facts import Result
from cloudburst.burst.tasks.items import Item, digest_of, identity_of
from cloudburst.burst.tasks.spools import Spools, opened, write_anew
from cloudburst.burst.tasks.templates import Template

MARK: Final = "CLOUDBURST_MAP_WORKER"
STOPPED: Final = "stopped"
"""Why a program has ended that nobody wants any more: its task is settled, or the queue is closed."""
LOOK_S: Final = 0.25
"""How often it is looked how much a program has written that still runs."""
GUARD: Final = """
import os, shutil, signal, sys, time
mark, directory = sys.argv[1].encode(), sys.argv[2]
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
sys.stdin.buffer.read()
for _ in range(100):
    found = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open("/proc/" + name + "/environ", "rb") as file:
                    marked = mark in file.read().split(b"\\0")
                if marked:
                    found += 1
                    os.kill(int(name), signal.SIGKILL)
            except OSError:
                pass
    if not found:
        break
    time.sleep(0.02)
shutil.rmtree(directory, ignore_errors=True)
"""


@dataclass(frozen=True, slots=True)
class Orders:
    """What is the same for all tasks of a command."""

    command: str
    cwd: str
    path: str
    variables: dict[str, str]
    timeout_s: float | None
    code: Code | None = None
    """The function of an application that is called, in place of the command, which then only names it."""

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Orders:
        """Return what `dataclasses.asdict` has taken apart, and a message has carried."""
        code = said["code"]
        return cls(**{**said, "code": None if code is None else Code.of(code)})


class Process(Protocol):
    """A process that runs a task, in a group of its own."""

    pid: int

    def wait(self) -> int:
        """Return its exit code, once it has ended; negative for a signal."""


class Program:
    """One task's program, which runs. `pidfd` becomes readable when it has ended."""

    def __init__(self, item: Item, process: Process, pidfd: int, place: Path, said: tuple[FileIO, FileIO]) -> None:
        self.item = item
        self.pidfd = pidfd
        self.why = ""
        self.began_s = time.monotonic()
        self.kill_s = float("inf")
        self._look_s = self.began_s + LOOK_S
        self._process = process
        self.place = place
        self.said = said

    def look(self, now_s: float, writes: bool) -> None:
        """Stop it when it has written more than a task may: what prints without end would fill the disk."""
        if now_s < self._look_s:
            return
        self._look_s = now_s + LOOK_S
        size = max(os.fstat(file.fileno()).st_size for file in self.said)
        if writes:
            with suppress(OSError):
                size = max(size, os.stat(self.place / "out" / self.item.name).st_size)
        if size > config.TASK_OUTPUT_BYTES_MAX:
            self.stop(_too_much(size))

    def stop(self, why: str) -> None:
        """Have it end: at once with SIGTERM, and with SIGKILL if it has not ended `task_term_s` later."""
        if not self.why:
            self.why = why
            self.kill_s = time.monotonic() + config.TASK_TERM_S
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it, and all of its group."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def end(self, writes: bool) -> tuple[Result, bytes]:
        """Take in its end; return how it ended, and what it has written."""
        self.kill()  # what it has left behind; it is not waited for yet, so the number is still its group's
        code = self._process.wait()
        run_us = int((time.monotonic() - self.began_s) * 1e6)
        said = _end_of(self.said[1])
        data, fault = self._written(writes) if code == 0 and not self.why else (b"", "")
        os.close(self.pidfd)
        key = digest_of(self.item.key + digest_of(data)) if data else b""
        return Result(code, key, len(data), said, run_us, self.why or fault), data

    def _written(self, writes: bool) -> tuple[bytes, str]:
        try:
            if not writes:
                return _content_of(self.said[0])
            with open(self.place / "out" / self.item.name, "rb") as file:
                return _content_of(file)
        except OSError as fault:
            return b"", f"it has left no file at {{out}}: {fault.strerror}"


class Programs:
    """Starts programs for a worker that is called `worker`."""

    def __init__(self, worker: str, orders: Orders) -> None:
        self.template = Template.of(orders.command)
        self._timeout_s = orders.timeout_s
        self._orders = orders
        self._directory = Path(tempfile.mkdtemp(prefix=reaping.WORKER))
        self._lock = reaping.held(self._directory)
        self._made = 0
        self._free: list[Path] = []
        self._used: dict[Path, str] = {}
        """By place, the file that it had as input."""
        self._spools = Spools(self._directory)
        mark = f"{MARK}={worker}"
        self._environment = os.environ | {"PATH": orders.path} | orders.variables | {MARK: worker}
        self._encoded = {os.fsencode(name): os.fsencode(value) for name, value in self._environment.items()}
        self._guard = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", GUARD, mark, str(self._directory)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def begin(self, item: Item, content: bytes | None) -> Program:
        """Start the program for an item; `content` is that of a file which is not seen here. Raises OSError."""
        place = self._free.pop() if self._free else self._place()
        text = item.text
        if content is not None:
            text = f"{place}/in/{item.name}"
            before, self._used[place] = self._used.get(place), text
            write_anew(text, content, before)
        cwd = self._orders.cwd if os.path.isdir(self._orders.cwd) else place
        said = self._spools.take(), self._spools.take()
        try:
            with opened(*said) as fds:
                process, pidfd = self._start(text, f"{place}/out/{item.name}", str(cwd), fds)
        except BaseException:
            self._free_again(place, said)
            raise
        return Program(item, process, pidfd, place, said)

    def _start(self, text: str, out: str, cwd: str, said: list[int]) -> tuple[Process, int]:
        """Start a process that writes to two descriptors; return it, and one that is readable when it has ended."""
        process = subprocess.Popen(
            self.template.arguments(text, out),
            stdin=subprocess.DEVNULL, stdout=said[0], stderr=said[1], cwd=cwd, env=self._encoded, process_group=0,
        )  # fmt: skip
        return process, os.pidfd_open(process.pid)

    def _place(self) -> Path:
        place = self._directory / str(self._made)
        self._made += 1
        for name in ("in", "out"):
            (place / name).mkdir(parents=True)
        return place

    def free(self, program: Program) -> None:
        """Empty what a task had that is over, for the next one."""
        self._free_again(program.place, program.said)

    def _free_again(self, place: Path, said: tuple[FileIO, FileIO]) -> None:
        for file in said:
            self._spools.give_back(file)
        # a directory is emptied: to remove and make it can take milliseconds
        used = self._used.get(place)
        for name in ("in", "out") if self.template.writes or used is not None else ():
            for left in os.scandir(place / name):
                if left.path == used:
                    continue  # to be written anew
                if left.is_dir(follow_symlinks=False):
                    shutil.rmtree(left.path, ignore_errors=True)
                else:
                    os.unlink(left.path)
        self._free.append(place)

    def sees(self, item: Item) -> bool:
        """Whether the item is a file that is at the same path here, or no file at all."""
        if item.identity is None:
            return not item.content and not item.data
        return identity_of(os.path.join(self._orders.cwd, item.text)) == item.identity

    def due(self, running: list[Program], now_s: float) -> float:
        """Stop what has run for too long; return when to look again."""
        soonest = float("inf")
        for program in running:
            program.look(now_s, self.template.writes)
            if program.kill_s <= now_s:
                program.kill()
                program.kill_s = float("inf")
            if self._timeout_s is not None and not program.why:
                end_s = program.began_s + self._timeout_s
                if end_s <= now_s:
                    program.stop(f"it has run for {self._timeout_s:g} s, which is its --timeout")
                else:
                    soonest = min(soonest, end_s)
            soonest = min(soonest, program.kill_s)
        return soonest

    def close(self, stopped: bool) -> None:
        """Have the guard see to it that nothing is left, and wait for that if something was `stopped`."""
        self._spools.close()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        os.close(self._lock)
        if stopped:
            with suppress(subprocess.TimeoutExpired):
                self._guard.wait(5.0)


def _content_of(file: IO[bytes]) -> tuple[bytes, str]:
    """Return what was written, or, when that is too much, that it is."""
    size = file.seek(0, os.SEEK_END)
    if size > config.TASK_OUTPUT_BYTES_MAX:
        return b"", _too_much(size)
    file.seek(0)
    return file.read(), ""


def _too_much(size: int) -> str:
    return f"it has written {size:,} bytes; task_output_bytes_max is {config.TASK_OUTPUT_BYTES_MAX:,}"


def _end_of(file: IO[bytes]) -> str:
    """Return the end of what was said, as text."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - config.TASK_SAID_BYTES))
    return file.read().decode(errors="replace")
