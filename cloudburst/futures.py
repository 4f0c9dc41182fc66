"""What `spawn` returns: a `concurrent.futures.Future` that can also be awaited, and that stops the work when cancelled.

The result is decoded by whoever asks for it, in their own thread: never by the thread that receives answers, which so
never runs user code except callbacks. Pickled, it is a promise that others can have the result, too.
Waiting inside a function lets another executor take this one's place.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Generator
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import TYPE_CHECKING, Any, Protocol

from cloudburst import context
from cloudburst.errors import Cancelled
from cloudburst.outcomes import Outcome
from cloudburst.references import collected_now
from cloudburst.spans import Traced
from cloudburst.waking import Waking

if TYPE_CHECKING:
    from cloudburst.attempts import Joined


class Work(Protocol):
    """What a future knows about the call that it stands for: a task, or the run of a DAG."""

    @property
    def id(self) -> str:
        """The invocation's id."""

    @property
    def name(self) -> str:
        """What was called."""

    @property
    def attempts(self) -> int:
        """How often it has been begun."""

    @property
    def output(self) -> bytes:
        """What it has printed."""

    @property
    def spans(self) -> tuple[bytes, ...]:
        """What was recorded of it, if somebody traces it."""

    @property
    def session(self) -> Joined | None:
        """The session that it is in."""


def _sent() -> bool:
    return False


class Future(concurrent.futures.Future[Any]):
    """The result of one spawned call, when it comes."""

    fetched = False
    """Whether a loop waits for it, which is not to be held up: a value on another host comes before it is done."""
    asked = False
    """Whether somebody has asked how it ended."""
    whole = False
    """Whether it is published with its value, however large, and not with the place where that is."""

    def __init__(self, work: Work, stop: Callable[[Any], None], share: Callable[[Future], object]) -> None:
        self._condition = Waking()  # type: ignore[assignment]  # here begin the fields of a concurrent.futures.Future
        self._state = PENDING
        self._result: Outcome | None = None
        self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[[Any], object]] = []
        self._work = work
        self._stop = stop
        self._share = share
        self.unsent: Callable[[], bool] = _sent
        """Gives up a call that waits for others' results; returns whether it had not been sent."""
        self.shared: concurrent.futures.Future[Any] | None = None
        """Done when the outcome has been published; None while nobody has asked for that."""
        if context.executing is not None:
            context.executing.adopt(self)

    @property
    def id(self) -> str:
        """The id of the invocation."""
        return self._work.id

    @property
    def name(self) -> str:
        """What was called."""
        return self._work.name

    @property
    def attempts(self) -> int:
        """How many times the function has been begun and has ended, one way or another."""
        return self._work.attempts

    @property
    def stamp(self) -> int:
        """The stamp at which the call's own session has committed; 0 before that, and when there was nothing to commit.

        Also 0 in level repeatable when several keys were written, for each of them has a stamp of its own.
        """
        session = self._work.session
        return 0 if session is None else session.stamp

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, or raise what the call raised; TimeoutError if neither is there in `timeout` seconds."""
        return self._outcome(timeout).value()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, or None."""
        outcome = self._outcome(timeout)
        return outcome.error() if outcome.failed else None

    def outcome(self) -> Outcome:
        """Return how it ended, undecoded, once it is done and was not cancelled."""
        return super().result(0)  # type: ignore[no-any-return]

    def _outcome(self, timeout: float | None) -> Outcome:
        self.asked = True
        try:
            if context.executing is not None and not self.done():
                with context.executing.blocked():
                    return super().result(timeout)  # type: ignore[no-any-return]
            return super().result(timeout)  # type: ignore[no-any-return]
        except concurrent.futures.CancelledError:
            raise Cancelled(f"the call of {self._work.name!r} was cancelled") from None

    def logs(self) -> str:
        """Return what the function has printed, as far as its replies have brought it: all of it once it is done."""
        return self._work.output.decode(errors="replace")

    def tell(self, traced: Traced) -> None:
        """Tell who traces the call how it ended, when all that was recorded of it is there."""
        when_told = getattr(self._work, "when_told", None)
        if when_told is None or self.cancelled():
            self._tell(traced)
        else:
            when_told(lambda: self._tell(traced))

    def _tell(self, traced: Traced) -> None:
        attributes = {"cloudburst.invocation": self.id, "cloudburst.attempts": self.attempts}
        error = Cancelled("the call was cancelled") if self.cancelled() else self.exception(0)
        traced.end(error, self._work.spans, attributes)

    def cancel(self) -> bool:
        """Stop the call, queued or running; False if it is over. It may have had an effect if it was running."""
        with self._condition:
            if self._state in (FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED):
                return self._state != FINISHED
            self._state = CANCELLED_AND_NOTIFIED
            self._condition.notify_all()
            for waiter in self._waiters:
                waiter.add_cancelled(self)
        self._invoke_callbacks()  # type: ignore[attr-defined]
        if not self.unsent():
            self._stop(self._work)
        return True

    def settle(self, outcome: Outcome) -> None:
        """Take in how the call ended, unless it was cancelled meanwhile."""
        if self.fetched and outcome.elsewhere:
            threading.Thread(target=self._fetch, args=(outcome,), name="cloudburst-fetch", daemon=True).start()
            return
        with self._condition:
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                return
            self._result = outcome
            self._state = FINISHED
            for waiter in self._waiters:
                (waiter.add_exception if outcome.failed else waiter.add_result)(self)
            self._condition.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]

    def _fetch(self, outcome: Outcome) -> None:
        """Settle it when its value is here, or is lost for good."""
        outcome.fetch()
        self.fetched = False
        self.settle(outcome)

    def __reduce__(self) -> tuple[Any, ...]:
        from cloudburst.publishing import RemoteFuture
        from cloudburst.results import result_key

        collected = collected_now()
        if collected is not None:
            collected.futures[self.id] = self
            return collected.place(result_key(self.id))
        self._share(self)
        return RemoteFuture, (self.id, self.name)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._awaited().__await__()

    async def _awaited(self) -> Any:
        import asyncio

        self.fetched = True
        if self.done() and not self.cancelled() and self.outcome().elsewhere:
            await asyncio.to_thread(self.outcome().fetch)
        if context.executing is None or self.done():
            return await asyncio.wrap_future(self)
        with context.executing.awaiting():
            return await asyncio.wrap_future(self)
