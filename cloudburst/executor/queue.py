"""An executor's queue: bounded, first in first out, with deadlines that count the time spent in it.

A pure core: calls and `now` in, decisions out. What it gives up, it gives up unbegun, and says so: a refused call
(`Overloaded`), an expired one (`FunctionTimeout`) and a cancelled one are all definite. It knows nothing of sockets,
processes or user code. Source: DESIGN §6; P24; D53 (calls failed for lack of resources instead of waiting).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from cloudburst import config, frames
from cloudburst.errors import Cancelled, CloudburstError, FunctionTimeout, Overloaded


class Call(NamedTuple):
    """One call as it came: where from, which function, until when, and its opaque bytes.

    `inputs` are the results (`executor.joins.Input`) that a stage of a DAG has received, in the order of arguments.
    """

    lane: int
    request: int
    name: bytes
    version: int
    high: int
    low: int
    deadline_us: int
    flags: int
    extras: bytes
    payload: bytes | memoryview
    inputs: tuple[Any, ...] = ()
    brought: tuple[tuple[bytes, Any], ...] = ()
    """(descriptor, the bytes or the error) of what it is called with that was on another host."""

    @property
    def size_bytes(self) -> int:
        """What the call counts for against `queue_bytes_max`."""
        size = len(self.payload) + len(self.extras)
        return size + sum(one.size_bytes for one in self.inputs) if self.inputs else size


class Queue:
    """The calls that wait in one executor, oldest first."""

    __slots__ = ("_bytes", "_live", "bytes_max", "calls_max")

    def __init__(
        self, calls_max: int = config.QUEUE_CALLS_MAX, bytes_max: int = config.QUEUE_BYTES_MAX
    ) -> None:
        self._live: OrderedDict[tuple[int, int], Call] = OrderedDict()
        self._bytes = 0
        self.calls_max = calls_max
        self.bytes_max = bytes_max

    def __len__(self) -> int:
        return len(self._live)

    def offer(self, call: Call) -> CloudburstError | None:
        """Take `call` in, or return why not: the queue is full, or the request number is in use on that lane."""
        live = self._live
        if len(live) >= self.calls_max:
            return Overloaded(f"{len(live):,} calls wait in this executor; queue_calls_max is {self.calls_max:,}")
        size = call.size_bytes
        if self._bytes + size > self.bytes_max and live:
            return Overloaded(
                f"{self._bytes + size:,} bytes would wait in this executor; queue_bytes_max is {self.bytes_max:,}"
            )
        key = (call.lane, call.request)
        if key in live:
            return CloudburstError(f"request {call.request} of this lane is already waiting")
        live[key] = call
        self._bytes += size
        return None

    def take(self, unless: Callable[[Call], bool] | None = None) -> Call | None:
        """Return the oldest waiting call and forget it; None when there is none. Expire first.

        `unless`: those of which it is true wait on. O(waiting) then.
        """
        if not self._live:
            return None
        if unless is not None:
            found = next((call for call in self._live.values() if not unless(call)), None)
            if found is not None:
                self._forget(found)
            return found
        call = self._live.popitem(last=False)[1]
        self._bytes -= call.size_bytes
        return call

    def take_alike(self, call: Call, count: int) -> list[Call]:
        """Return up to `count` waiting calls of the same function, oldest first, and forget them. O(waiting)."""
        function = (call.name, call.version, call.flags & frames.BATCH)
        alike = (one for one in self._live.values() if (one.name, one.version, one.flags & frames.BATCH) == function)
        found = list(itertools.islice(alike, count))
        for one in found:
            self._forget(one)
        return found

    def cancel(self, lane: int, request: int) -> tuple[Call, CloudburstError] | None:
        """Give up a waiting call at its caller's wish; None when it does not wait here (it runs, or it is over)."""
        call = self._live.get((lane, request))
        if call is None:
            return None
        self._forget(call)
        return call, Cancelled("cancelled before it was begun", definite=True)

    def expire(self, now_us: int) -> list[tuple[Call, CloudburstError]]:
        """Give up every waiting call whose deadline has passed. O(waiting)."""
        late = [call for call in self._live.values() if call.deadline_us <= now_us]
        for call in late:
            self._forget(call)
        return [
            (call, FunctionTimeout(f"{call.name.decode()!r} was not begun before its deadline", definite=True))
            for call in late
        ]

    def leave(self, lane: int) -> list[Call]:
        """Give up everything that waits for a caller who has gone. O(waiting)."""
        return self._drop(lambda call: call.lane == lane)

    def shed(self, count: int) -> list[Call]:
        """Hand back up to `count` waiting calls, the longest waiting first, for other executors to run."""
        chosen = [call for call, _ in zip(self._live.values(), range(count))]
        for call in chosen:
            self._forget(call)
        return chosen

    @property
    def next_deadline_us(self) -> int | None:
        """When `expire` next has something to do. O(waiting)."""
        return min((call.deadline_us for call in self._live.values()), default=None)

    def _drop(self, unwanted: Callable[[Call], bool]) -> list[Call]:
        dropped = [call for call in self._live.values() if unwanted(call)]
        for call in dropped:
            self._forget(call)
        return dropped

    def _forget(self, call: Call) -> None:
        del self._live[call.lane, call.request]
        self._bytes -= call.size_bytes

    def check(self) -> None:
        """Assert the invariants: every call is found under its own key, within the bounds, and the bytes add up."""
        assert all(key == (call.lane, call.request) for key, call in self._live.items())
        assert len(self._live) <= self.calls_max
        assert self._bytes == sum(call.size_bytes for call in self._live.values())
        assert self._bytes <= self.bytes_max or len(self._live) == 1
