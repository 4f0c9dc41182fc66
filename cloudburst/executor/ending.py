"""How a call ended, as its executor has it, and the words in which that is said.

The one rule: what cannot be sent back is an error that says how large it is. Source: DESIGN §6; reliability C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cloudburst import config, frames
from cloudburst.context import invocation_id
from cloudburst.errors import CloudburstError, FunctionTimeout, ValueTooLarge
from cloudburst.executor.queue import Call
from cloudburst.results import Kept
from cloudburst.segments import layout
from cloudburst.segments.layout import Parts

if TYPE_CHECKING:
    from cloudburst.executor.library import Loaded

FRAME_ROOM: Final = config.FRAME_BYTES_MAX - config.FRAME_HEAD_BYTES_MAX


class Unseen(Exception):
    """Raised when the segment of a call's arguments is out of sight: it has not begun."""


class Bereft(Exception):
    """Raised when what a call is called with is lost, with the node that had it."""


class Interrupted(BaseException):
    """Raised in user code that must stop: its caller cancelled it, or its deadline has passed."""


class Ending(NamedTuple):
    """How a call ended: its reply's status, flags and payload, or an error of the runtime itself in their place.

    `loaded` is the function, when it was found and was the only one.
    """

    status: int
    flags: int
    payload: bytes
    fault: CloudburstError | None
    loaded: Loaded | None


def laid_out(parts: Parts, what: str) -> bytes:
    """Return large pickled data as bytes that travel in a frame. Raises ValueTooLarge."""
    if parts.size_bytes > FRAME_ROOM:
        limit = f"frame_bytes_max, for what cannot be fetched from here, is {config.FRAME_BYTES_MAX:,}"
        raise ValueTooLarge(f"{what} has {parts.size_bytes:,} bytes; {limit}", definite=False)
    return b"".join(parts.pieces())


def kept_of(result: bytes | Parts | None, function: str) -> Kept:
    """Return a pickled result as it is kept."""
    if isinstance(result, Parts):
        return Kept(frames.OK, frames.LAID, b"".join(result.pieces()), function)
    return Kept(frames.OK, frames.EMPTY if result is None else 0, result or b"", function)


def result_of(kept: Kept) -> bytes | Parts | None:
    """Return the result that `kept_of` was given."""
    if kept.flags & frames.LAID:
        return Parts(*layout.split(memoryview(kept.payload)))
    return None if kept.flags & frames.EMPTY else kept.payload


def claimant(call: Call, extras: dict[str, Any]) -> bytes:
    """Return in whose name a call with an id of its caller's claims it: both attempts of a hedged call do so alone."""
    who = call.high.to_bytes(8, "big") + call.low.to_bytes(8, "big")
    return who + b"2" if "second" in extras else who


def described(executor: int, call: Call) -> dict[str, Any]:
    """Return what a span says of the call that it records."""
    return {"cloudburst.invocation": invocation_id(call.high, call.low), "cloudburst.executor": executor}


def quoted(name: bytes) -> str:
    """Return a function's name for a message."""
    return repr(name.decode(errors="replace"))


def overdue(name: bytes) -> FunctionTimeout:
    """Return what a call ends with that has been stopped at its deadline."""
    return FunctionTimeout(f"{quoted(name)} was still running at its deadline and was stopped")
