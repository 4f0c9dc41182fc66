"""What is recorded of a call that somebody traces: spans, each with its parent's id, in whichever process they happen.

The one rule: who does not trace pays for the test of `begin` for None. A program that traces (`cloudburst.tracing`)
sends its span's id along in a call's extras; the executor records what happens under it, without any library for that,
and the spans go back with the reply, so the program's own exporter gets all of them. Calls within calls hand theirs on.
A context is W3C's traceparent: two processes agree about nothing else. Source: DESIGN §6; W3C Trace Context.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import astuple, dataclass, field
from typing import Any, Final, Protocol

import msgpack

from cloudburst import config, frames
from cloudburst.continuing import Continuing
from cloudburst.errors import ProtocolError

INTERNAL, SERVER, CLIENT = 0, 1, 2
"""What a span stands for: work here, a call that came in, or one that went out. OpenTelemetry's numbers."""
TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01")


class Traced(Protocol):
    """One call that is traced, at its caller."""

    parent: str
    """What the executor is to know: the traceparent under which it records."""

    def end(self, error: BaseException | None, returned: tuple[bytes, ...], attributes: dict[str, Any]) -> None:
        """Take in how the call ended, and the spans that came back with it."""


begin: Callable[[str], Traced | None] | None = None
"""Begins a span for a call of the function with this name; None in a process that has never traced."""
around: Callable[[str, dict[str, Any]], AbstractContextManager[None]] | None = None
"""Records what happens within a block; set with `begin`."""


@dataclass(slots=True)
class Span:
    """Something that took time. Ids are hexadecimal, times are nanoseconds since 1970, `error` is (type, message)."""

    trace: str
    id: str
    parent: str
    name: str
    kind: int
    begun_ns: int
    ended_ns: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)
    error: tuple[str, str] | None = None

    def fail(self, error: BaseException) -> None:
        """Take in what ended it."""
        self.error = (type(error).__qualname__, str(error)[:1000])


class Recorder:
    """The spans of one call in this process, and those that its own calls brought back; at most `trace_spans_max`."""

    def __init__(self, traceparent: str) -> None:
        found = TRACEPARENT.fullmatch(traceparent)
        if found is None:
            raise ProtocolError(f"{traceparent!r} is no traceparent")
        self.trace, self.parent = found.groups()
        self._spans: list[Span] = []
        self._dropped = 0

    def open(self, name: str, kind: int, parent: str, attributes: dict[str, Any]) -> Span:
        """Begin a span."""
        return Span(self.trace, os.urandom(8).hex(), parent, name, kind, time.time_ns(), 0, attributes)

    def close(self, span: Span) -> None:
        """End a span, and keep it."""
        span.ended_ns = time.time_ns()
        self.keep([span])

    def keep(self, spans: list[Span]) -> None:
        """Keep spans, as far as there is room."""
        room = max(0, config.TRACE_SPANS_MAX - len(self._spans))
        self._dropped += len(spans[room:])
        self._spans += spans[:room]

    def pack(self) -> bytes:
        """Return all of them as bytes."""
        if self._dropped:
            self._spans[-1].attributes["cloudburst.spans_dropped"] = self._dropped
        return bytes(msgpack.packb([astuple(span) for span in self._spans]))


def unpack(data: bytes) -> list[Span]:
    """Return what `Recorder.pack` packed. Raises ProtocolError."""
    try:
        return [Span(*one) for one in frames.unpack(data)] if data else []
    except TypeError as fault:
        raise ProtocolError(f"{len(data)} bytes are not spans: {fault}") from None


# -- in an executor

_now: ContextVar[tuple[Recorder, str] | None] = ContextVar("recording", default=None)
"""What records in this context, and the id of the span that is open; None when nobody traces."""


@contextmanager
def recording(recorder: Recorder | None) -> Iterator[None]:
    """Record in this block, under the span of a caller; without a recorder, only run it."""
    if recorder is None:
        yield
        return
    global begin, around
    begin, around = begin or _begin_within, around or _recorded
    token = _now.set((recorder, recorder.parent))
    try:
        yield
    finally:
        _now.reset(token)


@contextmanager
def span(name: str, attributes: dict[str, Any], kind: int = INTERNAL) -> Iterator[None]:
    """Record a block as a span, if anything records here."""
    found = _now.get()
    if found is None:
        yield
        return
    recorder, parent = found
    opened = recorder.open(name, kind, parent, attributes)
    token = _now.set((recorder, opened.id))
    try:
        yield
    except Continuing:  # it ended well, with a call of another function
        raise
    except BaseException as error:  # whatever ended it is what is recorded
        opened.fail(error)
        raise
    finally:
        _now.reset(token)
        recorder.close(opened)


def _recorded(name: str, attributes: dict[str, Any]) -> AbstractContextManager[None]:
    return span(name, attributes)


class _Within:
    """A call from inside a call that is traced."""

    def __init__(self, recorder: Recorder, parent: str, name: str) -> None:
        self._recorder = recorder
        self._span = recorder.open(f"call {name}", CLIENT, parent, {"cloudburst.function": name})
        self.parent = f"00-{recorder.trace}-{self._span.id}-01"

    def end(self, error: BaseException | None, returned: tuple[bytes, ...], attributes: dict[str, Any]) -> None:
        """Keep its span and those that came back."""
        if error is not None:
            self._span.fail(error)
        self._span.attributes |= attributes
        self._recorder.close(self._span)
        self._recorder.keep([span for one in returned for span in unpack(one)])


def _begin_within(name: str) -> Traced | None:
    found = _now.get()
    return None if found is None else _Within(*found, name)


def with_trace(extras: bytes, parent: str) -> bytes:
    """Return a call's extras with the context of its caller's span."""
    return bytes(msgpack.packb({**(frames.unpack(extras) if extras else {}), "trace": parent}))
