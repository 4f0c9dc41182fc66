"""The driver of one call of a DAG: the spawner's answers go in, tasks to send and to cancel come out.

Each stage's task has an `_End` in place of a future; the spawner settles it, in whichever thread, with no lock held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from cloudburst.attempts import Outcome, Task
from cloudburst.dagrun import DagRun, StageTask
from cloudburst.errors import CloudburstError
from cloudburst.futures import Future


class Sender(Protocol):
    """What sends tasks: the spawner."""

    def submit(self, task: Task) -> None:
        """Take in a task. Raises Overloaded, NodeLost."""

    def cancel(self, task: Task) -> None:
        """Stop a task wherever it is."""


class _End:
    """What a stage's task settles."""

    __slots__ = ("_call", "_task")

    def __init__(self, call: DagCall, task: StageTask) -> None:
        self._call = call
        self._task = task

    def settle(self, outcome: Outcome) -> None:
        """Take in how the stage ended."""
        self._call.heard(self._task, outcome)


class DagCall:
    """One call of a DAG under way."""

    def __init__(self, run: DagRun, sender: Sender, share: Callable[[Future], object]) -> None:
        self._run = run
        self._sender = sender
        self._lock = threading.Lock()
        self.future = Future(run, lambda _: self.stop(), share)

    def start(self) -> None:
        """Submit it. Raises Overloaded, NodeLost."""
        with self._lock:
            lead = self._prepare(self._run.begin())
        self._sender.submit(lead)

    def _prepare(self, lead: StageTask) -> StageTask:
        for task in self._run.tasks:
            task.future = _End(self, task)
        return lead

    def heard(self, task: StageTask, outcome: Outcome) -> None:
        """Take in how a stage ended, and do what follows from it."""
        with self._lock:
            verdict = self._run.heard(task, outcome)
            if verdict.again is not None:
                self._prepare(verdict.again)
        if verdict.outcome is not None:
            self.future.settle(verdict.outcome)
        for one in verdict.cancelled:
            self._sender.cancel(one)
        if verdict.again is not None:
            try:
                self._sender.submit(verdict.again)
            except CloudburstError as fault:
                self.heard(verdict.again, verdict.again.failed(fault))

    def stop(self) -> None:
        """Cancel what is under way; the future is cancelled already."""
        with self._lock:
            self._run.stop()
            if not self._run.tasks:
                return  # it has not been submitted
            lead, others = self._run.tasks[0], self._run.tasks[1:]
        # Once the first is cancelled, the others have been placed or never will be.
        self._sender.cancel(lead)
        for one in others:
            if one.placed:
                self._sender.cancel(one)
