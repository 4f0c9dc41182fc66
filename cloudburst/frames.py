"""The bytes between a client and an executor: length-prefixed frames on a Unix stream socket.

A lane is one connection. The client opens it with HELLO, which says who it is and which Python it runs, and is not
answered: a client that does not fit gets its refusal as the answer to its first call. Then it sends CALL and CANCEL
frames, as many as it likes; every CALL gets exactly one reply, in any order, matched by request number. A CALL may be
a stage of a DAG: its extras say which functions run, and where the result goes. One that AWAITS results of others
begins when their executors have sent them as INPUT frames, which are not answered, over lanes of their own. Nothing
here is ever unpickled: payloads are opaque, errors of the runtime are msgpack.

All integers are little-endian. A frame is `u32 length` (of what follows) and then

    HELLO   u8 op=1 | msgpack {client, python, ...}
    CALL    u8 op=2 | u8 flags | u16 name | u32 request | u32 extras | u32 version | u64 timeout µs | u128 invocation
            | name | extras (msgpack) | payload
    CANCEL  u8 op=3 | u8 0 | u16 0 | u32 request
    MESSAGE u8 op=5 | u8 0 | u16 0 | u32 request | u128 to | u128 from | payload
    INPUT   u8 op=4 | u8 flags | u16 position | u32 context | u64 timeout µs | u128 invocation | context | payload
    reply   u8 status | u8 flags | u16 waiting | u32 request | u32 run µs | u32 output | output | payload

Timeouts are relative, because the clocks of two hosts are never compared (P14). Source: DESIGN §6; D46, D63 (replies
without an id were given to the next caller).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import msgpack

from cloudburst import config
from cloudburst.errors import BY_NAME, CloudburstError, ProtocolError

HELLO: Final = 1
CALL: Final = 2
CANCEL: Final = 3
INPUT: Final = 4
MESSAGE: Final = 5

EMPTY: Final = 1
"""Flag of a CALL: it has no arguments and no payload. Flag of a reply: the result is None and there is no payload."""
MEASURED: Final = 2
"""Flag of a reply: `run µs` says how long the function ran."""

STAGE: Final = 4
"""Flag of a CALL: it is a stage of a DAG; the extras name its steps."""
AWAITS: Final = 8
"""Flag of a CALL that is a stage: results of others must come before it begins."""

LOAD: Final = 16
"""Flag of a CALL: its payload is a function's body, which is loaded, to see whether it can be, and not run."""

ASYNC: Final = 32
"""Flag of a CALL: its function is a coroutine function, which runs on the executor's loop, beside others."""

SHARED: Final = 64
"""Flag of a CALL, an INPUT and a reply: the payload is not the pickle but the descriptor of the segment that has it,
or, where the other side cannot see that and it is no longer than a chunk, the segment itself, which begins with its
magic. On a reply that is EMPTY, of the segment in which a stage's result has gone to its successors, for the caller to
remove. On a CALL that is a stage: arguments of its steps are in segments. Flag of a kept result: the payload is a
descriptor."""

LAID: Final = 128
"""Flag of a kept result: the payload is laid out as a segment."""

BATCH: Final = 128
"""Flag of a CALL: its function takes lists, so it may be run together with others of it that wait."""

SPANS: Final = 4
"""Flag of a reply: its output begins with the spans that were recorded (`cloudburst.spans`), behind their length."""

SESSION: Final = 8
"""Flag of a reply: its output begins, before the spans, with the session that the function has ended with
(`cloudburst.consistency.travel`), behind its length."""

TOLD: Final = SPANS | SESSION
"""The flags of a reply that are about its output."""

OK: Final = 0
RAISED: Final = 1
ERROR: Final = 2
BOUNCED: Final = 3
"""Not begun, and this executor is not the one: send it to another. The payload is one of the `WHY_` bytes.

A stage that has all the results that it awaits brings them along, packed by `pack_inputs`, behind that byte.
"""

CONTINUED: Final = 4
"""The function has ended with a call of another, which the payload describes: `pack_continuation`."""

WHY_ELSEWHERE: Final = b"e"
"""Another executor is idle while this one has a long call before it."""
WHY_BLOCKED: Final = b"b"
"""This executor's call waits for a nested one, so nothing queued here would ever be sure to run."""
WHY_UNSEEN: Final = b"u"
"""The segment of its arguments cannot be seen from there: send them with the call, or, if they are longer than a chunk
and an address follows, have the porter there offered them."""
WHY_LOST: Final = b"g"
"""What it was to be called with is gone, with the node that it was on: whatever made it must run again."""
WHY_LEAVING: Final = b"l"
"""This executor is about to end."""

CALL_HEADER: Final = struct.Struct("<IBBHIIIQQQ")
REPLY_HEADER: Final = struct.Struct("<IBBHIII")
CANCEL_FRAME: Final = struct.Struct("<IBBHI")
INPUT_HEADER: Final = struct.Struct("<IBBHIQQQ")
MESSAGE_HEADER: Final = struct.Struct("<IBBHIQQQQ")
LENGTH: Final = struct.Struct("<I")
CALL_HEADER_BYTES: Final = CALL_HEADER.size
REPLY_HEADER_BYTES: Final = REPLY_HEADER.size
INPUT_HEADER_BYTES: Final = INPUT_HEADER.size
MESSAGE_HEADER_BYTES: Final = MESSAGE_HEADER.size


def hello(client: int, python: str, key: bytes = b"", shelf: tuple[int, str] | None = None) -> bytes:
    """Return the frame that opens a lane: `client` is the upper half of its invocations' ids.

    `key` is asked for where other hosts connect (`cloudburst.secret`). `shelf` says which segments, and where, it can
    map: (token, path).
    """
    said = {"client": client, "python": python, **({"key": key} if key else {}), **({"shelf": shelf} if shelf else {})}
    body: bytes = msgpack.packb(said)
    return LENGTH.pack(1 + len(body)) + bytes((HELLO,)) + body


def cancel(request: int) -> bytes:
    """Return the frame that cancels `request` of this lane, queued or running."""
    return CANCEL_FRAME.pack(CANCEL_FRAME.size - 4, CANCEL, 0, 0, request)


def input_(
    invocation: tuple[int, int], position: int, payload: bytes | None, *, timeout_us: int, context: bytes = b"",
    flags: int = 0,
) -> bytes:  # fmt: skip
    """Return the frame that brings a stage one of its results; `payload` None is the result None."""
    body = b"" if payload is None else payload
    header = INPUT_HEADER.pack(
        INPUT_HEADER_BYTES - 4 + len(context) + len(body),
        INPUT, EMPTY if payload is None else flags, position, len(context), timeout_us, *invocation,
    )  # fmt: skip
    return b"".join((header, context, body))


def message(to: tuple[int, int], sender: tuple[int, int], payload: bytes) -> bytes:
    """Return the frame that brings an invocation a message; whether it was taken in is its reply."""
    size = MESSAGE_HEADER_BYTES - 4 + len(payload)
    return MESSAGE_HEADER.pack(size, MESSAGE, 0, 0, 0, *to, *sender) + payload


def pack_inputs(inputs: Sequence[tuple[bytes | memoryview | None, bytes, int]]) -> bytes:
    """Return (payload, context, flags) of each result as bytes."""
    return bytes(msgpack.packb([list(one) for one in inputs]))


def unpack_inputs(data: bytes | memoryview) -> list[tuple[bytes | None, bytes, int]]:
    """Return what `pack_inputs` packed. Raises ProtocolError."""
    try:
        return [(payload, context, int(flags)) for payload, context, flags in unpack(data)]
    except (TypeError, ValueError) as fault:
        raise ProtocolError(f"{len(data)} bytes are not the results that a stage received: {fault}") from None


def pack_continuation(
    name: str, flags: int, beside: int, homes: Sequence[int] | None, refs: Sequence[str | bytes], payload: bytes
) -> bytes:
    """Return the payload of a CONTINUED reply: what a task for this call would have in these places."""
    return bytes(msgpack.packb([name, flags, beside, homes, refs, payload]))


def call(
    request: int,
    name: bytes,
    payload: bytes,
    *,
    invocation: tuple[int, int],
    flags: int = 0,
    version: int = 0,
    timeout_us: int = 0,
    extras: bytes = b"",
) -> bytes:
    """Return the frame of one call; `version` 0 means the newest."""
    header = CALL_HEADER.pack(
        CALL_HEADER_BYTES - 4 + len(name) + len(extras) + len(payload),
        CALL, flags, len(name), request, len(extras), version, timeout_us, *invocation,
    )  # fmt: skip
    return b"".join((header, name, extras, payload))


def reply(status: int, request: int, payload: bytes, *, flags: int = 0, waiting: int = 0, run_us: int = 0,
          output: bytes = b"") -> bytes:  # fmt: skip
    """Return the frame that answers `request`; `waiting` is how many calls wait behind it."""
    header = REPLY_HEADER.pack(
        REPLY_HEADER_BYTES - 4 + len(output) + len(payload),
        status, flags, min(waiting, 65535), request, min(run_us, 0xFFFFFFFF), len(output),
    )  # fmt: skip
    return b"".join((header, output, payload)) if output else header + payload


def error(
    request: int, fault: CloudburstError, *, waiting: int = 0, output: bytes = b"", flags: int = 0
) -> bytes:
    """Return the reply that raises `fault` at the caller: its class by name, its message and its own attributes."""
    extra = {
        name: value
        for name, value in vars(fault).items()
        if isinstance(value, (str, int, bool)) and name not in ("definite", "attempts")
    }
    body = msgpack.packb([type(fault).__name__, str(fault), fault.definite, extra])
    return reply(ERROR, request, body, waiting=waiting, output=output, flags=flags)


def with_spans(spans: bytes, output: bytes) -> bytes:
    """Return the output of a reply with the flag SPANS."""
    return LENGTH.pack(len(spans)) + spans + output


def split_spans(output: bytes) -> tuple[bytes, bytes]:
    """Return (spans, output) of a reply with the flag SPANS."""
    end = LENGTH.size + int(LENGTH.unpack_from(output)[0])
    return output[LENGTH.size : end], output[end:]


def fault_of(body: bytes | memoryview) -> CloudburstError:
    """Return the error that `error` packed."""
    kind, message, definite, extra = unpack(body)
    fault = BY_NAME.get(kind, CloudburstError)(message, definite=definite)
    fault.__dict__.update(extra)
    return fault


def unpack(body: bytes | memoryview) -> Any:
    """Return the msgpack value in `body`. Raises ProtocolError on anything else."""
    try:
        return msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, TypeError) as fault:
        raise ProtocolError(f"{len(body)} bytes are not msgpack: {fault}") from None


class FrameReader:
    """Cuts a byte stream into frames: bytes in, whole frames out, length prefix included.

    Holds at most one unfinished frame. Cost is linear in the bytes, also for a large frame that comes in pieces.
    """

    __slots__ = ("_limit", "_missing", "_parts")

    def __init__(self, limit_bytes: int = config.FRAME_BYTES_MAX) -> None:
        self._parts: list[bytes] = []
        self._missing = 0
        self._limit = limit_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes. Raises ProtocolError when a frame is longer than the limit."""
        if not self._parts:
            size = len(data)
            if size >= 4 and LENGTH.unpack_from(data)[0] + 4 == size:
                return [data]  # the usual case: one read is one frame
        else:
            if len(data) < self._missing:
                self._parts.append(data)
                self._missing -= len(data)
                return []
            self._parts.append(data)
            data = b"".join(self._parts)
            self._parts.clear()
        return self._cut(data)

    def _cut(self, data: bytes) -> list[bytes]:
        frames: list[bytes] = []
        start, size = 0, len(data)
        while size - start >= 4:
            length = LENGTH.unpack_from(data, start)[0] + 4
            if length > self._limit or length < 9:
                raise ProtocolError(f"a frame claims {length:,} bytes; a frame has 9 to {self._limit:,}")
            if size - start < length:
                self._missing = length - (size - start)
                break
            frames.append(data[start : start + length])
            start += length
        else:
            self._missing = 4 - (size - start)
        if start < size:
            self._parts.append(data[start:])
        return frames

    @property
    def unfinished(self) -> bool:
        """Whether the stream stopped inside a frame."""
        return bool(self._parts)

    @property
    def missing(self) -> int:
        """How many bytes at least must come before the next frame is complete."""
        return self._missing if self._parts else 4
