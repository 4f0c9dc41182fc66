"""What is said at the beginning of a stream between relays, and of one to a relay from its own node: where it leads.

Pure. Between hosts a stream is under TLS before a byte of this is said, and who asks is known by his certificate:

    to another host's relay   u16 length | msgpack {to}
    its answer                u16 length | msgpack [True, a record or b""] or [False, why not]
    to the own node's relay   u16 length | msgpack {to, at: HOST:PORT, tell} or {to, at, listen: the name of a socket}
    its answer, if `tell`     one byte once the stream is there

`to` is the name of a socket in the directory of the node there, or what the relay answers by itself. The one rule: a
name that is not in `needed` leads nowhere, whoever asks; and no name leads out of the directory. Source: decision
record 0040.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from anna.gate import Right
from cloudburst.errors import ProtocolError, RequestError

LENGTH: Final = struct.Struct("<H")
OPENING_BYTES_MAX: Final = 1024
ANSWER_BYTES_MAX: Final = 16 * 1024

RELAY_SOCKET: Final = "relay.sock"
"""Where the processes of a node ask its relay for a stream to another host."""
NODES: Final = "nodes.sock"
"""Where other nodes ask this one."""
GUESTS: Final = "guest.sock"
"""Where gateways ask this node: what they may is less."""
PORTER: Final = "far.sock"
"""Where other porters get large values."""
RECORD: Final = "record"
"""The record of the node, in the answer itself."""

EXECUTOR: Final = re.compile(r"e\d{1,6}-\d{1,20}\.sock")
THERE: Final = b"\0"
SCHEME: Final = "tls:"
"""Of the addresses that lead through relays: `tls:HOST:PORT/NAME`."""


def needed(name: str) -> Right | None:
    """Return the right that it takes to be led to `name`; None for what nobody is."""
    if name == NODES:
        return Right.ADMIN
    if name in (GUESTS, PORTER, RECORD) or EXECUTOR.fullmatch(name):
        return Right.CODE
    return None


def refusal(name: str, holder: str, right: Right) -> str:
    """Return why who has this right is not led to `name`; "" when he is."""
    least = needed(name)
    if least is None:
        return f"there is no {name[:64]!r} that other hosts can ask for"
    if right >= least:
        return ""
    what = "to be one of its nodes" if least == Right.ADMIN else "to call or register functions"
    return f"the keys of {holder} have the right {right.name.lower()}; {what} needs {least.name.lower()}"


def pack(said: Any) -> bytes:
    """Return an opening or an answer as bytes."""
    body: bytes = msgpack.packb(said)
    return LENGTH.pack(len(body)) + body


def split(data: bytes, bytes_max: int = OPENING_BYTES_MAX) -> tuple[bytes, bytes] | None:
    """Return (the body that data begins with, the rest); None while it is not whole. Raises ProtocolError."""
    if len(data) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack_from(data)
    if size > bytes_max:
        raise ProtocolError(f"{size:,} bytes would open a stream; {bytes_max:,} may")
    end = LENGTH.size + size
    return None if len(data) < end else (data[LENGTH.size : end], data[end:])


@dataclass(frozen=True, slots=True)
class Opening:
    """Where a stream is to lead: `to` a socket, `at` a relay; or what is to `listen` for those who go there."""

    to: str = ""
    at: str = ""
    listen: str = ""
    tell: bool = False
    """Whether who asks waits for `THERE`."""

    @classmethod
    def unpack(cls, body: bytes) -> Opening:
        """Return what a body says. Raises ProtocolError."""
        try:
            opening = cls(**msgpack.unpackb(body))
        except (TypeError, ValueError) as fault:
            raise ProtocolError(f"{len(body)} bytes open no stream: {type(fault).__name__}: {fault}") from None
        words = (opening.to, opening.at, opening.listen)
        if not all(isinstance(one, str) for one in words) or "/" in opening.to + opening.listen:
            raise ProtocolError("a stream is opened with names")
        return opening


def unpack_answer(body: bytes) -> bytes:
    """Return what a relay has answered. Raises RequestError with its refusal, ProtocolError."""
    try:
        good, what = msgpack.unpackb(body)
    except (TypeError, ValueError) as fault:
        raise ProtocolError(f"{len(body)} bytes are no answer of a relay: {fault}") from None
    if good is True and isinstance(what, bytes):
        return what
    raise RequestError(str(what))


def address(host: str, port: int, name: str) -> str:
    """Return the address of a socket in the directory of the node whose relay listens there."""
    return f"{SCHEME}{host}:{port}/{name}"


def place_of(address: str) -> tuple[str, str]:
    """Return (HOST:PORT, name) of what `address` gave."""
    place, _, name = address.removeprefix(SCHEME).rpartition("/")
    return place, name
