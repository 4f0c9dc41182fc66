"""The driver of one hedged call: the spawner's clock and answers go in, attempts to submit and to cancel come out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from cloudburst.attempts import Task
from cloudburst.errors import CloudburstError
from cloudburst.futures import Future
from cloudburst.hedging import Hedge, HedgedTask
from cloudburst.outcomes import Outcome
from cloudburst.page import monotonic_us


class Sender(Protocol):
    """What sends tasks: the spawner."""

    def submit(self, task: Task) -> None:
        """Take in a task. Raises Overloaded, NodeLost."""

    def cancel(self, task: Task) -> None:
        """Stop a task wherever it is."""

    def at(self, when_us: int, look: Callable[[], None]) -> None:
        """Call `look` then, in the receiving thread."""


class _End:
    """What an attempt settles."""

    __slots__ = ("_call", "_task")

    def __init__(self, call: HedgedCall, task: HedgedTask) -> None:
        self._call = call
        self._task = task

    def settle(self, outcome: Outcome) -> None:
        """Take in how the attempt ended."""
        self._call.heard(self._task, outcome)


class HedgedCall:
    """One hedged call under way."""

    def __init__(self, task: HedgedTask, hedge: Hedge, sender: Sender, share: Callable[[Future], object]) -> None:
        self._task = task
        self._hedge = hedge
        self._sender = sender
        self._lock = threading.Lock()
        self.future = Future(hedge, lambda _: self.stop(), share)

    def start(self) -> None:
        """Submit it. Raises Overloaded, NodeLost."""
        self._task.future = _End(self, self._task)
        self._sender.submit(self._task)
        self._look()

    def _look(self) -> None:
        with self._lock:
            twin, again_us = self._hedge.look(monotonic_us())
        if again_us is not None:
            self._sender.at(again_us, self._look)
        if twin is not None:
            twin.future = _End(self, twin)
            try:
                self._sender.submit(twin)
            except CloudburstError as fault:
                self.heard(twin, twin.failed(fault))

    def heard(self, task: HedgedTask, outcome: Outcome) -> None:
        """Take in how an attempt ended, and do what follows from it."""
        with self._lock:
            verdict = self._hedge.heard(task, outcome, monotonic_us())
        if verdict.outcome is not None:
            self.future.settle(verdict.outcome)
        for one in verdict.cancelled:
            self._sender.cancel(one)

    def stop(self) -> None:
        """Cancel what is under way; the future is cancelled already."""
        with self._lock:
            live = self._hedge.stop()
        for one in live:
            self._sender.cancel(one)
