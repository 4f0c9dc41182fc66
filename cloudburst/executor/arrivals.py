"""The calls that wait in one executor until what they are called with has come from other hosts.

The node's porter is asked for each value, and this executor goes on with other calls until it answers: its connections
are among those that the executor reads. A call that has all it needs carries that with it, mapped, and is heard like
one that has just come; so does one for which something went wrong, and finds the error where the value should be.
Not safe from threads by itself, like the lanes. Source: decision record 0024.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cloudburst import config, frames
from cloudburst.errors import CloudburstError, NodeLost, Overloaded
from cloudburst.executor.queue import Call
from cloudburst.executor.stagework import StageWork
from cloudburst.segments import layout
from cloudburst.segments.descriptors import SegmentGone
from cloudburst.segments.distant import ANSWER_BYTES_MAX, PorterLost, ask_porter, may_bring, taken_in
from cloudburst.segments.shelf import Shelf

PORTERS_MAX: Final = config.ATTEMPTS_MAX


class Host(Protocol):
    """The executor around them."""

    def shelf(self) -> Shelf:
        """Return the node's segments."""

    def watch(self, fd: int, hear: Callable[[], None]) -> None:
        """Call `hear` when a descriptor can be read."""

    def forget(self, fd: int) -> None:
        """Watch it no more."""

    def arrived(self, call: Call) -> None:
        """Take in a call that has all it needs."""


@dataclass(slots=True)
class _Waiting:
    call: Call
    asked: dict[bytes, socket.socket] = field(default_factory=dict)
    brought: dict[bytes, Any] = field(default_factory=dict)
    porters: int = 0


class Arrivals:
    """What is on its way to one executor, by (lane, request)."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._waiting: dict[tuple[int, int], _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def bring(self, call: Call, wanted: list[bytes]) -> CloudburstError | None:
        """Have what a call needs brought here; return why not."""
        key = call.lane, call.request
        if len(self._waiting) >= config.QUEUE_CALLS_MAX or key in self._waiting:
            limit = f"queue_calls_max is {config.QUEUE_CALLS_MAX:,}"
            return Overloaded(f"{len(self):,} calls wait in this executor for values from other hosts; {limit}")
        waiting = self._waiting[key] = _Waiting(call)
        for descriptor in dict.fromkeys(wanted):
            self._ask(waiting, descriptor)
        self._look(waiting)
        return None

    def _ask(self, waiting: _Waiting, descriptor: bytes) -> None:
        try:
            connection = ask_porter(self._host.shelf(), descriptor)
        except (SegmentGone, NodeLost) as fault:
            waiting.brought[descriptor] = fault
            return
        connection.setblocking(False)
        waiting.asked[descriptor] = connection
        self._host.watch(connection.fileno(), lambda: self._hear(waiting, descriptor))

    def _hear(self, waiting: _Waiting, descriptor: bytes) -> None:
        connection = waiting.asked[descriptor]
        try:
            said = connection.recv(ANSWER_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        try:
            waiting.brought[descriptor] = taken_in(self._host.shelf(), said)
        except PorterLost:
            self._part(waiting, descriptor)
            waiting.porters += 1
            if waiting.porters < PORTERS_MAX:
                self._ask(waiting, descriptor)
            else:
                waiting.brought[descriptor] = NodeLost(f"the porter of this node has ended {PORTERS_MAX} times")
        except (SegmentGone, CloudburstError, OSError) as fault:
            waiting.brought[descriptor] = fault
        if descriptor in waiting.brought:
            self._part(waiting, descriptor)
        self._look(waiting)

    def _part(self, waiting: _Waiting, descriptor: bytes) -> None:
        connection = waiting.asked.pop(descriptor, None)
        if connection is not None:
            self._host.forget(connection.fileno())
            connection.close()

    def _look(self, waiting: _Waiting) -> None:
        """Pass a call on that waits for nothing more."""
        call = waiting.call
        if not waiting.asked and self._waiting.pop((call.lane, call.request), None) is not None:
            self._host.arrived(call._replace(brought=tuple(waiting.brought.items())))

    def cancel(self, lane: int, request: int) -> Call | None:
        """Give up a call at its caller's wish, and what is on its way for it; None when it does not wait here."""
        waiting = self._waiting.pop((lane, request), None)
        if waiting is None:
            return None
        for descriptor in list(waiting.asked):
            self._part(waiting, descriptor)
        return waiting.call

    def leave(self, lane: int) -> None:
        """Give up everything for a caller who has gone."""
        for _, request in [key for key in self._waiting if key[0] == lane]:
            self.cancel(lane, request)

    def give_up(self) -> list[Call]:
        """Give up everything; return the calls."""
        return [call for key in list(self._waiting) if (call := self.cancel(*key)) is not None]


def wanted(call: Call) -> list[bytes]:
    """Return the descriptors of what a call needs that is on other hosts. Raises ProtocolError."""
    found: list[bytes | memoryview | None] = []
    if call.flags & frames.STAGE:
        work = StageWork.of(call)
        found += [one.payload for one in work.inputs if one.flags & frames.SHARED]
        found += [step.own for step in work.steps if step.flags & frames.SHARED]
    elif call.flags & frames.SHARED:
        found.append(call.payload)
    return [bytes(one) for one in found if one is not None and not layout.is_segment(one) and may_bring(one)]
