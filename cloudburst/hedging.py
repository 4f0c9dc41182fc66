"""A call that is sent to a second executor when the first takes long; the answer that comes first is the call's.

A pure core. Both are attempts of one invocation, so whatever is once for an invocation is once for both. They differ in
nothing but the executor; a function that must not run twice at a time asks for no hedge, or has an `id`, whose claim
the second attempt waits for. An answer is a result or the function's own exception; what only befell an attempt (its
executor was lost, it found no room) counts when the other has ended, too. Source: burst-systems (hedge at the p95 of
the function); Dean and Barroso, The Tail at Scale (2013), hedged requests.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from cloudburst.attempts import Task
from cloudburst.errors import RequestError
from cloudburst.outcomes import Outcome

P95: Final = "p95"
LATENCIES_MIN: Final = 20
"""Calls measured before the 95th percentile is believed."""
LATENCIES_KEPT: Final = 200
LOOK_US: Final = 20_000
"""How often a call is looked at that cannot be hedged yet: it has not been sent, or too few were measured."""


class Latencies:
    """How long the last calls of one function took, from sending to answer."""

    def __init__(self) -> None:
        self._kept: deque[int] = deque(maxlen=LATENCIES_KEPT)

    def add(self, took_us: int) -> None:
        """Take in one."""
        self._kept.append(took_us)

    @property
    def p95_us(self) -> int | None:
        """The 95th percentile; None while too few were measured. O(kept · log kept)."""
        if len(self._kept) < LATENCIES_MIN:
            return None
        return sorted(self._kept)[len(self._kept) * 95 // 100]


class HedgedTask(Task):
    """One of the two attempts; `sent_us` is when it was last sent, 0 before."""

    __slots__ = ("sent_us",)

    def frame(self, now_us: int) -> bytes:
        """Return the bytes that ask an executor for it, as `Task.frame`."""
        self.sent_us = now_us
        return super().frame(now_us)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means: how the call ended, if it did, and which attempts to cancel."""

    outcome: Outcome | None = None
    cancelled: tuple[Task, ...] = ()


class Hedge:
    """One hedged call. `after_us` None: the 95th percentile of `latencies`. `second_extras` are the twin's."""

    def __init__(self, task: HedgedTask, after_us: int | None, latencies: Latencies, second_extras: bytes) -> None:
        task.sent_us = 0
        self._first = task
        self._tasks = [task]
        self._after_us = after_us
        self._latencies = latencies
        self._second_extras = second_extras
        self._ended: list[Task] = []
        self._last: Outcome | None = None
        self.done = False

    session: None = None
    """A hedged call is in none."""

    @property
    def id(self) -> str:
        """The invocation's id."""
        return self._first.id

    @property
    def name(self) -> str:
        """What was called."""
        return self._first.name

    @property
    def attempts(self) -> int:
        """How often it has been begun and has ended; an attempt that was cancelled for the other counts, too."""
        cancelled = sum(task not in self._ended and task.sent_us > 0 for task in self._tasks) if self.done else 0
        return sum(task.attempts for task in self._tasks) + cancelled

    @property
    def output(self) -> bytes:
        """What it has printed."""
        return b"".join(task.output for task in self._tasks)

    @property
    def spans(self) -> tuple[bytes, ...]:
        """What was recorded of it, if somebody traces it."""
        return tuple(one for task in self._tasks for one in task.spans)

    def look(self, now_us: int) -> tuple[HedgedTask | None, int | None]:
        """Return (the second attempt, if it is to be submitted now, when to look again, if ever)."""
        if self.done or len(self._tasks) > 1 or self._first.deadline_us <= now_us:
            return None, None
        after_us = self._latencies.p95_us if self._after_us is None else self._after_us
        if after_us is None or not self._first.sent_us or self._first.slot < 0:
            return None, now_us + LOOK_US
        if now_us < self._first.sent_us + after_us:
            return None, self._first.sent_us + after_us
        if self._first.attempts + 1 >= self._first.attempts_max:
            return None, None
        return self._twin(), None

    def _twin(self) -> HedgedTask:
        first = self._first
        twin = HedgedTask(
            first.high, first.low, first.name, first.name_bytes, first.payload, first.flags, self._second_extras,
            first.deadline_us, None, first.version,
        )  # fmt: skip
        twin.sent_us = 0
        twin.request ^= 1 << 31  # the first may yet be sent to the same executor
        twin.attempts_max, twin.user_attempts_max = 1, 1
        twin.beside, twin.homes, twin.avoids, twin.held = first.beside, first.homes, first.slot, first.held
        twin.held = first.held
        self._tasks.append(twin)
        return twin

    def heard(self, task: HedgedTask, outcome: Outcome, now_us: int) -> Verdict:
        """Take in how an attempt ended."""
        if self.done:
            return Verdict()
        self._ended.append(task)
        answered = not outcome.failed or outcome.raised_by_user
        if answered and task.sent_us:
            self._latencies.add(now_us - task.sent_us)
        if not answered and len(self._ended) < len(self._tasks):
            self._last = self._last or outcome
            return Verdict()
        if not answered and self._last is not None and task is not self._first:
            outcome = self._last
        self.done = True
        outcome.attempts = self.attempts
        return Verdict(outcome, self._live())

    def stop(self) -> tuple[Task, ...]:
        """End it at its caller's wish; return the attempts to cancel."""
        self.done = True
        return self._live()

    def _live(self) -> tuple[Task, ...]:
        return tuple(task for task in self._tasks if task not in self._ended)


def after_us_of(hedge: float | str) -> int | None:
    """Return how many microseconds `hedge` says, None for its percentile. Raises RequestError."""
    if hedge == P95:
        return None
    if isinstance(hedge, bool) or not isinstance(hedge, (int, float)) or not 0 < hedge < float("inf"):
        raise RequestError(f"hedge is {hedge!r}; it is seconds, more than 0, or {P95!r}")
    return int(hedge * 1e6)
