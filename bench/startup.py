"""What it costs to begin, and what it costs to be there: start to the first result, and an idle cluster.

A start is measured from outside, from before the interpreter is launched to the first result's line on a
pipe. Idle memory is the proportional set size of everything that the cluster started, the user's own process
left out.
"""

from __future__ import annotations

import os
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
from bench.peers.ours import Ours
from bench.processes import STOP_TIMEOUT_S, command_line, cpu_s, descendants, end, memory_bytes, wait_gone
from bench.report import OURS, Report, Row

START_LIMIT_S: Final = 0.5
IDLE_LIMIT_MIB: Final = 120.0
IDLE_LIMIT_PERCENT: Final = 1.0
IDLE_S: Final = 5.0
IDLE_QUICK_S: Final = 0.5
SETTLE_S: Final = 1.0

STORE: Final = "import anna; kvs = anna.connect(); kvs.put('k', 'v'); kvs.get('k')"
FUNCTIONS: Final = "import cloudburst as cb; cb.register(lambda: 1, name='one'); cb.call('one')"
THEN_WAIT: Final = "; import sys; print('ready', flush=True); sys.stdin.read()"


class Fresh:
    """A fresh interpreter that ran a line of code and waits; `started` are the processes that it caused."""

    def __init__(self, code: str, directory: str) -> None:
        before = set(descendants(os.getpid()))
        private = our_runtime.environment(Path(directory))
        env = {**os.environ, **private, "PYTHONPATH": os.pathsep.join(sys.path)}
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-c", code + THEN_WAIT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.seconds = time.perf_counter() - begun
        before.add(self.process.pid)
        self.started = [pid for pid in descendants(os.getpid()) if pid not in before]
        if line.strip() != "ready":
            self.stop()
            raise RuntimeError(f"{code!r} did not come to a result")

    def stop(self) -> list[str]:
        """Let the process end; return the command lines of what it left behind, and end that by pid."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            end([self.process.pid])
        left = wait_gone(self.started)
        lines = [command_line(pid) for pid in left]
        end(left)
        return lines


@contextmanager
def fresh(code: str) -> Iterator[Fresh]:
    """Run `code` with a private cluster directory; raise when the cluster outlives its last user."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        process = Fresh(code, directory)
        try:
            yield process
        finally:
            left = process.stop()
    if left:
        raise RuntimeError(f"{len(left)} processes outlived their last user by {STOP_TIMEOUT_S:g} s: {left}")


def start_turn(code: str) -> Sample:
    """Measure one start."""
    with fresh(code) as process:
        return Sample(process.seconds)


def idle_rows(name: str, code: str, settings: Settings, limited: bool) -> Iterator[Row]:
    """Measure memory and processor time of a cluster whose user does nothing."""
    seconds = IDLE_QUICK_S if settings.quick else IDLE_S
    with fresh(code) as process:
        time.sleep(SETTLE_S)
        pids = [pid for pid in descendants(os.getpid()) if pid != process.process.pid]
        memory = memory_bytes(pids) / 2**20
        own = memory_bytes([process.process.pid]) / 2**20
        used = cpu_s(pids)
        time.sleep(seconds)
        used = cpu_s(pids) - used
        own_rss = memory_bytes(pids, "Rss") / 2**20
    note = f"{len(pids)} processes, {own_rss:.0f} MiB RSS; the user's own process {own:.0f} MiB PSS"
    taken = {OURS: (Sample(memory),)}
    yield Row("idle", f"{name}: memory", "MiB", taken, limit=IDLE_LIMIT_MIB if limited else None, note=note)
    share = {OURS: (Sample(100 * used / seconds),)}
    limit = IDLE_LIMIT_PERCENT if limited else None
    yield Row("idle", f"{name}: processor", "%", share, limit=limit, note=f"of one core, over {seconds:g} s")


def scenarios(settings: Settings, report: Report) -> dict[str, str]:
    """Return the code of what can be started, by name."""
    found: dict[str, str] = {}
    if not settings.wants(OURS):
        report.skip(OURS, "not among --only")
        return found
    ours = (("anna", STORE, Ours().missing()), ("cloudburst", FUNCTIONS, our_runtime.missing()))
    for name, code, how in ours:
        if how is None:
            found[name] = code
        else:
            report.skip(OURS, how)
    return found


def start_rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure import plus start of the embedded cluster to the first result, in fresh processes."""
    report.heading("Start: a fresh process to the first result of its embedded cluster")
    turns: dict[str, Callable[[], Sample]] = {
        name: partial(start_turn, code) for name, code in scenarios(settings, report).items()
    }
    for name, samples in interleave(settings.rounds, turns).items():
        yield Row("start", f"{name}: import to first result", "s", {OURS: samples}, limit=START_LIMIT_S)


def idle_area(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure what is used while nobody asks for anything."""
    report.heading("Idle: all processes of an embedded cluster")
    for name, code in scenarios(settings, report).items():
        yield from idle_rows(name, code, settings, limited=name == "cloudburst")
