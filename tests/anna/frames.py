"""Request and reply frames written by hand from the layout in `anna.wire`: the tests' own reading of the protocol."""

from __future__ import annotations

import struct
from typing import NamedTuple

HEADER = struct.Struct("<IBBBBIHHQ")
REPLY = struct.Struct("<IBBBBIIQ")

GET, PUT, DELETE, MGET, MPUT, VIEW, STATUS, SUBSCRIBE, UNSUBSCRIBE, PUSH, SCAN = range(1, 12)
OK, MISSING, WRONG_WORKER, PARTIAL = range(4)
TYPE_MISMATCH, BAD_KEY, TOO_LARGE, NOT_SUPPORTED, STAMP_AHEAD, MALFORMED = range(16, 22)


class Reply(NamedTuple):
    status: int
    type: int
    flags: int
    request: int
    stamp: int
    payload: bytes


def request(
    op: int,
    key: bytes = b"",
    payload: bytes = b"",
    *,
    type: int = 0,
    id: int = 7,
    stamp: int = 0,
    flags: int = 0,
    ack: int = 0,
) -> bytes:
    length = HEADER.size - 4 + len(key) + len(payload)
    return HEADER.pack(length, 1, op, type, flags, id, len(key), ack, stamp) + key + payload


def register(value: bytes, stamp: int = 0, writer: int = 0) -> bytes:
    """Return a register's state that holds the bytes `value` (tag 6)."""
    return struct.pack("<QQ", stamp, writer) + b"\x06" + value


def put(key: bytes, value: bytes, **options: int) -> bytes:
    return request(PUT, key, register(value), type=1, **options)


def multi_get(*keys: bytes) -> bytes:
    return request(MGET, b"", struct.pack("<I", len(keys)) + b"".join(struct.pack("<H", len(k)) + k for k in keys))


def multi_put(*items: tuple[bytes, int, bytes]) -> bytes:
    body = b"".join(struct.pack("<HBBI", len(k), t, 0, len(p)) + k + p for k, t, p in items)
    return request(MPUT, b"", struct.pack("<I", len(items)) + body)


def joined(data: bytes | list[bytes]) -> bytes:
    """Return what is to be sent one part after the other."""
    return data if isinstance(data, bytes) else b"".join(data)


def replies(data: bytes | list[bytes]) -> list[Reply]:
    """Return the reply frames that `data` consists of, and nothing but them; their flags without marks of views."""
    data = joined(data)
    found = []
    while data:
        length, version, status, kind, flags, id, _stable, stamp = REPLY.unpack_from(data)
        assert version == 1
        assert len(data) >= 4 + length
        found.append(Reply(status, kind, flags & 1 if id else flags, id, stamp, data[REPLY.size : 4 + length]))
        data = data[4 + length :]
    return found


def items(payload: bytes) -> list[tuple[int, int, bytes]]:
    """Return (status, type, state) of each key of a multi-get's reply."""
    (count,) = struct.unpack_from("<I", payload)
    place, found = 4, []
    for _ in range(count):
        status, kind, _, size = struct.unpack_from("<BBHI", payload, place)
        found.append((status, kind, payload[place + 8 : place + 8 + size]))
        place += 8 + size
    assert place == len(payload)
    return found
