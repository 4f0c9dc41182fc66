"""A function runtime in a process of its own, told what to do line by line.

Runtimes start threads, daemons and pools; in one process they would slow each other down. So each lives in a
child that reads one request a line from its standard input (JSON), does it, and writes one line of JSON. A child that
has no request waits in a read, and what it started waits with it.

The one rule: what is timed is one bare call of the runtime's own; what has to be made ready before it, and the look
at its result after it, are outside the clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Protocol

from bench.processes import STOP_TIMEOUT_S, adopt_orphans, cpu_s, descendants, end, family, wait_gone

ERROR_CHARACTERS_MAX: Final = 300
SETTLE_S_MAX: Final = 1.0
"""How long a runtime is left alone after its first result, at most."""
SETTLE_LOOK_S: Final = 0.1
SETTLED_SHARE: Final = 0.05
"""The share of one processor that a runtime uses which has nothing to do any more."""


class Refused(RuntimeError):
    """A runtime could not do what it was asked for; it can be asked for something else."""


def anything(_: Any) -> bool:
    """Take every result for right."""
    return True


@dataclass(frozen=True, slots=True)
class Work:
    """One thing that a runtime can be asked to do: `run` is timed, `prepare` comes before each run, untimed."""

    run: Callable[[], object]
    right: Callable[[Any], bool] = anything
    prepare: Callable[[], object] | None = None


class Runtime(Protocol):
    """What a child drives. Its other public methods each return a `Work`."""

    def start(self) -> None: ...
    def nothing(self) -> Work:
        """Call a no-op and wait for its result."""

    def stop(self) -> None: ...


def equal(expected: object) -> Callable[[Any], bool]:
    """Return what tells whether a result is `expected`."""
    return lambda found: found == expected


def durations_us(work: Work, count: int, seconds: float) -> list[float]:
    """Return the durations of up to `count` runs, in their order; none but the first begins after `seconds`.

    Raises Refused when a result is wrong.
    """
    clock, run, right, prepare = time.perf_counter_ns, work.run, work.right, work.prepare
    taken: list[float] = []
    until = time.monotonic() + seconds
    while len(taken) < count and (not taken or time.monotonic() < until):
        if prepare is not None:
            prepare()
        start = clock()
        found = run()
        taken.append((clock() - start) / 1000)
        if not right(found):
            raise Refused(f"a wrong result: {found!r:.200}")
    return taken


def obey(runtime: Runtime, made: dict[str, Work], asked: Mapping[str, Any]) -> dict[str, object]:
    """Do what one request asks for, with a work that is made when it is first needed; return the answer."""
    name = json.dumps([asked["what"], asked["arguments"]])
    if name not in made:
        made[name] = getattr(runtime, asked["what"])(*asked["arguments"])
    if asked["do"] == "make":
        return {}
    if asked["do"] == "find":
        return {"found": made[name].run()}
    return {"us": durations_us(made[name], asked["count"], asked["seconds"])}


def serve(runtime: Runtime) -> None:
    """Be the child: start `runtime`, then obey until `stop` or the end of input."""
    adopt_orphans()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(found: Mapping[str, object]) -> None:
        print(json.dumps(found), file=answers, flush=True)

    start = time.perf_counter()
    runtime.start()
    runtime.nothing().run()
    answer({"start_s": time.perf_counter() - start})
    made: dict[str, Work] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "stop":
            break
        try:
            answer(obey(runtime, made, asked))
        except Exception as error:
            traceback.print_exc()
            answer({"error": f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX]})
    made.clear()
    runtime.stop()


@dataclass(frozen=True, slots=True)
class Measured:
    """Durations in µs, ascending, and the processor time that the runtime's processes took for each, in µs.

    Processor time of processes that ended meanwhile is not in it.
    """

    us: Sequence[float]
    cpu_us: float


class Driver:
    """The parent's side of one child, `python -m MODULE`."""

    def __init__(self, module: str, env: Mapping[str, str] | None = None) -> None:
        self.module = module
        self.left_behind = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        self.start_s = float(self._answer()["start_s"])
        self.settle()

    def settle(self) -> None:
        """Wait until the runtime has ended what it began at its start; some are never still."""
        until = time.monotonic() + SETTLE_S_MAX
        while time.monotonic() < until:
            before = cpu_s(family([self.process.pid]))
            time.sleep(SETTLE_LOOK_S)
            if cpu_s(family([self.process.pid])) - before < SETTLE_LOOK_S * SETTLED_SHARE:
                return

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.module} ended with exit code {self.process.wait(STOP_TIMEOUT_S)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def _ask(self, do: str, what: str, arguments: Sequence[object], **more: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        request = {"do": do, "what": what, "arguments": list(arguments), **more}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def measure(self, what: str, *arguments: object, warm: int, count: int, seconds: float) -> Measured:
        """Return the durations of up to `count` runs after `warm` that do not count; see `durations_us`."""
        self._ask("make", what, arguments)
        if warm:
            self._ask("measure", what, arguments, count=warm, seconds=seconds)
        before = cpu_s(family([self.process.pid]))
        us = self._ask("measure", what, arguments, count=count, seconds=seconds)["us"]
        used = cpu_s(family([self.process.pid])) - before
        return Measured(sorted(us), max(0.0, used) * 1e6 / len(us))

    def find(self, what: str, *arguments: object) -> Any:
        """Return what one run of something returns, as plain values."""
        return self._ask("find", what, arguments)["found"]

    def stop(self) -> None:
        """End the child in its own way; end what it left behind by pid."""
        below = descendants(self.process.pid)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": "stop"}) + "\n")
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


def offers(runtime: ModuleType, what: str) -> bool:
    """Tell whether a module's runtime can be asked for `what`."""
    return hasattr(runtime.RUNTIME, what)


@contextmanager
def driving(runtime: ModuleType, env: Mapping[str, str]) -> Iterator[Driver]:
    """Run a child of `runtime` within the block."""
    driver = Driver(runtime.__name__, env)
    try:
        yield driver
    finally:
        driver.stop()
