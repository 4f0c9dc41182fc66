"""Segments by name: what tells another process where one is, and whose it is.

Pure. A descriptor has the token of its node's shelf, its name there, its size, the shelf's path, and the address at
which other hosts get it, if they can. The one rule: nothing is taken for a name that could lead out of a shelf.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgpack

from cloudburst.errors import ProtocolError

VALUES: Final = 0
"""In place of a client: the values of keys, which the node's cache keeps."""
OFFERED: Final = "offered:"
"""In a descriptor, before the address of the porter to which the holder of a segment goes itself."""
FETCHED: Final = 2
"""In place of a client, whose numbers are odd: what the node's porter has fetched from other hosts."""
NAME: Final = re.compile(r"H/([arvf]H(\.H)?|dH\.H\.H)".replace("H", "[0-9a-f]{1,16}"))


class SegmentGone(Exception):
    """The segment, or the place for it, has been removed: the client that it belongs to has ended, or let it go."""


class SegmentUnseen(SegmentGone):
    """The segment is on another machine, or out of sight of a sandbox: its bytes must be sent."""


def pack_descriptor(token: int, name: str, size: int, path: Path, address: str = "") -> bytes:
    """Return what tells another process where a segment is, and at which `address` other hosts get it, if they can."""
    said = [token, name, size, str(path)]
    return bytes(msgpack.packb([*said, address] if address else said))


def unpack_descriptor(descriptor: bytes | memoryview) -> tuple[int, str, int, str]:
    """Return (token, name, size, path of the shelf). Raises ProtocolError."""
    try:
        token, name, size, path, *_ = msgpack.unpackb(descriptor)
        if NAME.fullmatch(name) and size > 0:
            return int(token), name, int(size), str(path)
    except (TypeError, ValueError):
        pass
    raise ProtocolError(f"{bytes(descriptor[:64])!r} describes no segment")


def offered_descriptor(descriptor: bytes, address: str) -> bytes:
    """Return the same, for a segment that its holder has offered to the porter at an address, and only there."""
    return bytes(msgpack.packb([*msgpack.unpackb(descriptor)[:4], OFFERED + address]))


def address_of(descriptor: bytes | memoryview) -> str:
    """Return where other hosts get a segment; "" when they cannot. Raises ProtocolError."""
    unpack_descriptor(descriptor)
    rest = msgpack.unpackb(descriptor)[4:]
    return str(rest[0]) if rest else ""


def key_number(descriptor: bytes) -> int:
    """Return which key a value belongs to. Raises ProtocolError when it belongs to none."""
    name = unpack_descriptor(descriptor)[1]
    if not name.startswith(f"{VALUES:x}/v"):
        raise ProtocolError(f"{name} is no value of a key")
    return int(name.partition("/v")[2].partition(".")[0], 16)


def result_name(client: int, request: int, incarnation: int) -> str:
    """Return the name of what an executor, in its life `incarnation`, makes for a request of a client."""
    return f"{client:x}/r{request:x}.{incarnation:x}"


def distant_name(node: int, client: int, request: int, incarnation: int) -> str:
    """Return the name of the same, where the client is one of a node on another host."""
    return f"{node:x}/d{client:x}.{request:x}.{incarnation:x}"
