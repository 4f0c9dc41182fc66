"""How a value moves from one host to another: in chunks that its reader asks for, in order, a few ahead of time.

Pure. The reader opens a connection to the porter of the node that has the value, with the words of `opening`, and is
answered with one byte; where that porter cannot be reached, it opens the connection, with an offer, and says the byte.
From then on each ask (offset, bytes) is answered with just these bytes, so both sides have a
chunk in hand at a time, and a connection that is torn is made again where it ended. Little-endian:

    opening u32 length | msgpack {key, give: descriptor} or {key, offer: descriptor}
    answer  u8: 0 it follows, 1 it is gone
    ask     u64 offset | u32 bytes

The one rule: bytes are only ever taken at the offset up to which all before them are there. Source: DESIGN §6;
decision record 0024.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack

from cloudburst import config
from cloudburst.errors import ProtocolError

HERE: Final = b"\x00"
GONE: Final = b"\x01"
ASK: Final = struct.Struct("<QI")
LENGTH: Final = struct.Struct("<I")
OPENING_BYTES_MAX: Final = 4096


class Chunks:
    """What has been asked for, and what has arrived, of a value of `size` bytes."""

    __slots__ = ("_asked_max", "_chunk_bytes", "_fruitless", "_fruitless_max", "_since", "arrived", "asked", "size")

    def __init__(
        self, size: int, chunk_bytes: int = config.CHUNK_BYTES, asked_max: int = config.CHUNKS_ASKED_MAX,
        fruitless_max: int = config.FETCH_FRUITLESS_MAX,
    ) -> None:  # fmt: skip
        self.size = size
        self.arrived = 0
        self.asked = 0
        self._chunk_bytes = chunk_bytes
        self._asked_max = asked_max
        self._fruitless = 0
        self._fruitless_max = fruitless_max
        self._since = 0

    @property
    def complete(self) -> bool:
        """Whether all bytes are there."""
        return self.arrived == self.size

    def asks(self) -> bytes:
        """Return what to ask for now, packed; b"" while enough is on its way."""
        asks = b""
        until = min(self.size, self.arrived + self._asked_max * self._chunk_bytes)
        while self.asked < until:
            count = min(self._chunk_bytes, self.size - self.asked)
            asks += ASK.pack(self.asked, count)
            self.asked += count
        return asks

    def take(self, count: int) -> int:
        """Take in that the next `count` bytes have come; return their offset. Raises ProtocolError for too many."""
        at = self.arrived
        if not 0 < count <= self.asked - at:
            raise ProtocolError(f"{count:,} bytes at {at:,} of a value, where {self.asked - at:,} had been asked for")
        self.arrived += count
        return at

    def torn(self) -> bool:
        """Take in that the connection has ended, and what was on its way with it; False when no more are worth it."""
        self._fruitless = 0 if self.arrived > self._since else self._fruitless + 1
        self._since = self.asked = self.arrived
        return self._fruitless < self._fruitless_max

    def check(self) -> None:
        """Assert the invariants: what is on its way is bounded, and nothing is asked for that there is not."""
        ahead = self._asked_max * self._chunk_bytes + self._chunk_bytes
        assert 0 <= self._since <= self.arrived <= self.asked <= min(self.size, self.arrived + ahead)
        assert 0 <= self._fruitless <= self._fruitless_max


def opening(key: bytes, descriptor: bytes, offers: bool = False) -> bytes:
    """Return what a connection to the holder of a value begins with, or one from him who `offers` it."""
    body: bytes = msgpack.packb({"key": key, "offer" if offers else "give": descriptor})
    return LENGTH.pack(len(body)) + body


def unpack_opening(body: bytes) -> tuple[bytes, bytes, bool]:
    """Return (key, descriptor, whether it is offered) of the body of an opening. Raises ProtocolError."""
    try:
        said: Any = msgpack.unpackb(body)
        offers = "offer" in said
        key, descriptor = said["key"], said["offer" if offers else "give"]
    except (TypeError, ValueError, KeyError) as fault:
        raise ProtocolError(f"{len(body)} bytes ask for no value: {type(fault).__name__}: {fault}") from None
    if not isinstance(key, bytes) or not isinstance(descriptor, bytes):
        raise ProtocolError("a key and a descriptor are bytes")
    return key, descriptor, offers
