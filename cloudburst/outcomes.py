"""How a call ended, as its caller has it: a status and bytes, until somebody asks for the value.

The one rule: a value is decoded in the thread that asks for it, a new object each time, and never by the thread that
receives answers. Source: DESIGN §6.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from cloudburst import faults, frames
from cloudburst.errors import CloudburstError, NodeLost
from cloudburst.segments import layout

if TYPE_CHECKING:
    from cloudburst.attempts import Task


class Segment(Protocol):
    """Shared memory that belongs to this process.

    `again` runs the call once more, when its result was lost with its node; it raises the loss if that may not be.
    """

    @property
    def again(self) -> Callable[[NodeLost], Outcome] | None: ...

    @property
    def elsewhere(self) -> bool: ...

    def view(self) -> memoryview:
        """Return its bytes. Raises NodeLost."""

    def lend(self) -> bytes | None:
        """Return its descriptor, for others to open as long as this is kept; None when it has no name any more."""


class Outcome:
    """How a call ended: decoded when it is asked for, by whoever asks."""

    __slots__ = ("_flags", "_payload", "_segment", "_status", "_task", "_where", "attempts")

    def __init__(self, task: Task, status: int, flags: int, payload: Any, where: str) -> None:
        self._task = task
        self._status = status
        self._flags = flags
        self._payload = payload
        self._where = where
        self._segment: Segment | None = None
        self.attempts = 0
        """How often the whole of which this is a part has been begun; 0 when it is no part."""

    def value(self) -> Any:
        """Return the result, or raise the error. A new object each time."""
        if self._status == frames.OK:
            if self._flags & (frames.EMPTY | frames.SHARED):
                return self._shared_value()
            return pickle.loads(self._payload)
        raise self.error()

    def _shared_value(self) -> Any:
        if self._flags & frames.EMPTY:
            return None
        try:
            data = self._laid_out()
        except NodeLost as fault:
            if self._segment is None or self._segment.again is None:
                raise
            return self._segment.again(fault).value()
        return layout.loads(data)

    def _laid_out(self) -> memoryview:
        return memoryview(self._payload) if self._segment is None else self._segment.view()

    @property
    def descriptor(self) -> memoryview | None:
        """Where the result is, or what a stage's successors have been given, when it is in shared memory."""
        return self._payload if self._flags & frames.SHARED and not layout.is_segment(self._payload) else None

    def hold(self, segment: Segment) -> None:
        """Keep what `descriptor` describes for as long as this is kept."""
        self._segment = segment

    @property
    def segment(self) -> Segment | None:
        """What is kept so."""
        return self._segment

    @property
    def elsewhere(self) -> bool:
        """Whether its value must be fetched from another host."""
        return self._segment is not None and self._segment.elsewhere

    def fetch(self) -> None:
        """Have the value here, made again if it was lost, for `value` not to wait for it; raises nothing."""
        if self._segment is not None:
            try:
                self._segment.view()
            except NodeLost as fault:
                with suppress(CloudburstError):
                    if self._segment.again is not None:
                        self._segment.again(fault).fetch()
            except CloudburstError:
                pass  # `value` raises it

    def error(self) -> BaseException:
        """Return what `value` raises."""
        task, attempts = self._task, self.attempts or self._task.attempts
        if isinstance(self._payload, CloudburstError):
            fault = self._payload
        elif self._status == frames.RAISED:
            return faults.unpack(
                self._payload, function=task.name, invocation=task.id, attempts=attempts, where=self._where
            )
        else:
            fault = frames.fault_of(self._payload)
        fault.attempts = attempts
        return fault

    def packed(self) -> tuple[int, int, bytes]:
        """Return (status, flags, payload) as a reply would have them."""
        if isinstance(self._payload, CloudburstError):
            return self.packed_fault(self._payload)
        if self._flags & frames.SHARED and not self._flags & frames.EMPTY:
            return self._status, self._flags & ~frames.SHARED | frames.LAID, bytes(self._laid_out())
        return self._status, self._flags, bytes(self._payload)

    @staticmethod
    def packed_fault(fault: CloudburstError) -> tuple[int, int, bytes]:
        """Return an error of the runtime as `packed` does."""
        return frames.ERROR, 0, frames.error(0, fault)[frames.REPLY_HEADER_BYTES :]

    @property
    def failed(self) -> bool:
        """Whether `value` raises."""
        return self._status != frames.OK

    @property
    def raised_by_user(self) -> bool:
        """Whether it ended with an exception of the function's own."""
        return self._status == frames.RAISED
