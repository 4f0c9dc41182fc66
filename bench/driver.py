"""A function runtime in a process of its own, told what to do line by line.

Runtimes start threads, daemons and pools; in one process they would slow each other down. So each lives in a
child that reads one command a line (`call N`, `spawn N`, `stop`) from its standard input, does it, and writes
one line of JSON. A child that has no command to do waits in a read, and what it started waits with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Protocol

from bench.harness import latencies_us
from bench.processes import STOP_TIMEOUT_S, descendants, end, wait_gone

ANSWER_TIMEOUT_S = 120.0


def nothing() -> None:
    """Do nothing: what is measured is getting here and back."""


class Runtime(Protocol):
    """What a child drives."""

    def start(self) -> None: ...
    def call(self) -> object:
        """Call `nothing` and return its result."""

    def spawn(self, count: int) -> None:
        """Start `count` calls of `nothing` without waiting between them, then wait for all results."""

    def stop(self) -> None: ...


def serve(runtime: Runtime) -> None:
    """Be the child: start `runtime`, then obey until `stop` or the end of input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    start = time.perf_counter()
    runtime.start()
    runtime.call()
    print(json.dumps({"start_s": time.perf_counter() - start}), file=answers, flush=True)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "stop":
            break
        count = int(argument)
        if command == "call":
            print(json.dumps({"us": latencies_us(runtime.call, count)}), file=answers, flush=True)
        else:
            start = time.perf_counter()
            runtime.spawn(count)
            print(json.dumps({"seconds": time.perf_counter() - start}), file=answers, flush=True)
    runtime.stop()


class Driver:
    """The parent's side of one child, `python -m MODULE`."""

    def __init__(self, module: str, env: Mapping[str, str] | None = None) -> None:
        self.module = module
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        self.start_s = float(str(self._answer()["start_s"]))

    def _answer(self) -> dict[str, object]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.module} ended with exit code {self.process.wait(STOP_TIMEOUT_S)}")
        answer: dict[str, object] = json.loads(line)
        return answer

    def _ask(self, command: str) -> dict[str, object]:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def call(self, count: int) -> list[float]:
        """Return the durations of `count` calls, one after the other, in µs, ascending."""
        found = self._ask(f"call {count}")["us"]
        assert isinstance(found, list)
        return [float(us) for us in found]

    def spawn(self, count: int) -> float:
        """Return the seconds that `count` spawned calls took."""
        return float(str(self._ask(f"spawn {count}")["seconds"]))

    def stop(self) -> None:
        """End the child in its own way; end what it left behind by pid."""
        below = descendants(self.process.pid)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("stop\n")
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            end([self.process.pid])
        if self.process.stdout is not None:
            self.process.stdout.close()
        left = wait_gone(below, STOP_TIMEOUT_S)
        end(left)
        self.left_behind = len(left)
