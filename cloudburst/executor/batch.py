"""Calls of one function that are run together, as one list for each argument.

A pure core. Each call keeps its own deadline and its own answer: it is answered when the batch has ended, when its own
deadline passes, or when its caller gives it up, and the batch is stopped when nobody waits for it any more.
Source: hydro-stack (batching executors); D57 (batches mixed functions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cloudburst.errors import RequestError
from cloudburst.executor.queue import Call


class Batch:
    """A batch that runs; `open` are the calls in it that have no answer yet."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
        self.open = {(call.lane, call.request): call for call in calls}

    @property
    def deadline_us(self) -> int:
        """When nobody can be waiting for it any more."""
        return max(call.deadline_us for call in self.calls)

    @property
    def next_deadline_us(self) -> int | None:
        """When `expire` next has something to do."""
        return min((call.deadline_us for call in self.open.values()), default=None)

    def expire(self, now_us: int) -> list[Call]:
        """Give up the calls whose deadline has passed."""
        late = [call for call in self.open.values() if call.deadline_us <= now_us]
        for call in late:
            del self.open[call.lane, call.request]
        return late

    def cancel(self, lane: int, request: int) -> Call | None:
        """Give up a call at its caller's wish; None when it is not in here."""
        return self.open.pop((lane, request), None)

    def leave(self, lane: int) -> None:
        """Give up the calls of a client that is gone."""
        self.open = {key: call for key, call in self.open.items() if call.lane != lane}


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Return one list for each argument, of all calls; the rows are equally long."""
    return [list(column) for column in zip(*rows, strict=True)]


def results_of(found: Any, count: int, name: str) -> list[Any]:
    """Return the result of each call. Raises RequestError unless `found` is a sequence of so many."""
    try:
        size = len(found)
    except TypeError:
        size = -1
    if size != count or isinstance(found, (str, bytes, dict, set)):
        what = f"a {type(found).__name__}" + (f" of {size}" if size >= 0 else "")
        words = f"{name!r} takes batches and returned {what} for {count} calls; a list of {count} was due"
        raise RequestError(words, definite=False)
    return list(found)
