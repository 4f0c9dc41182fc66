"""The driver of one call of a DAG: the spawner's answers go in, tasks to send and to cancel come out.

Each stage's task has an `_End` in place of a future; the spawner settles it, in whichever thread, with no lock held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Protocol

from cloudburst.attempts import Joined, Task
from cloudburst.dagrun import DagRun, StageTask
from cloudburst.errors import CloudburstError
from cloudburst.futures import Future
from cloudburst.outcomes import Outcome

OUTPUT_WAIT_S: Final = 1.0
"""How long `logs` waits, once a DAG is over, for what functions have printed whose replies are still on their way."""


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
        self._told = threading.Condition(self._lock)
        self._hearers: list[Callable[[], None]] = []
        self.future = Future(self, lambda _: self.stop(), share)

    # -- what its future asks for

    @property
    def id(self) -> str:
        """The invocation's id."""
        return self._run.id

    @property
    def name(self) -> str:
        """What was called."""
        return self._run.name

    @property
    def attempts(self) -> int:
        """How often it has been begun."""
        return self._run.attempts

    @property
    def output(self) -> bytes:
        """What its functions have printed. The last result may be here before the others' replies: waits for those."""
        with self._told:
            if self._run.done:
                self._told.wait_for(lambda: self._run.all_told, OUTPUT_WAIT_S)
            return self._run.output

    @property
    def spans(self) -> tuple[bytes, ...]:
        """What was recorded of its functions, if somebody traces it."""
        return self._run.spans

    @property
    def session(self) -> Joined | None:
        """The session that it is in."""
        return self._run.session

    def when_told(self, hear: Callable[[], None]) -> None:
        """Call `hear` when all that has run has said what was recorded of it."""
        with self._lock:
            if not self._run.all_told:
                self._hearers.append(hear)
                return
        hear()

    # -- its life

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
            hearers: list[Callable[[], None]] = []
            if self._run.all_told:
                self._told.notify_all()
                hearers, self._hearers = self._hearers, []
        if verdict.outcome is not None:
            self.future.settle(verdict.outcome)
        for hear in hearers:
            hear()
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
