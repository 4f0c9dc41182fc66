"""Coroutines in virtual time: what clients and functions are written as.

The one rule: a coroutine goes on in an event of the schedule, never within the call that brought what it waited for. So
no core is entered while it is at work, as none is by a real loop.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

from tests.sim.schedule import Schedule

T = TypeVar("T")


class Promise(Generic[T]):
    """A value that will be there, or an error; one coroutine may wait for it."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._waiting: Task[Any] | None = None
        self.done = False
        self._value: T | None = None
        self._error: Exception | None = None

    def set(self, value: T) -> None:
        """Give the value; what comes later is not heard."""
        self._end(value, None)

    def fail(self, error: Exception) -> None:
        """Give an error instead."""
        self._end(None, error)

    def _end(self, value: T | None, error: Exception | None) -> None:
        if not self.done:
            self.done, self._value, self._error = True, value, error
            if self._waiting is not None:
                self._schedule.at(self._schedule.now, self._waiting.step)

    def raise_error(self) -> None:
        """Raise the error, if it has one."""
        if self._error is not None:
            raise self._error

    def __await__(self) -> Generator[Promise[T], None, T]:
        if not self.done:
            yield self
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


class Task(Promise[T]):
    """A coroutine under way; whoever waits for it gets what it returns, or its error."""

    def __init__(self, schedule: Schedule, work: Coroutine[Any, Any, T]) -> None:
        super().__init__(schedule)
        self._work = work
        schedule.at(schedule.now, self.step)

    def step(self) -> None:
        """Go on until it waits again."""
        try:
            awaited = self._work.send(None)
        except StopIteration as end:
            self.set(end.value)
        except Exception as error:
            self.fail(error)
        else:
            awaited._waiting = self

    def drop(self) -> None:
        """Go on no more."""
        self._work.close()


def pause(schedule: Schedule, ns: int) -> Promise[None]:
    """Return what is there in `ns`."""
    promise: Promise[None] = Promise(schedule)
    schedule.after(ns, promise.set, None)
    return promise
