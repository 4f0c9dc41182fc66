"""How blobs and cells are written into an engine's records, under which names.

The one rule: every record is sealed (anna/storage/seal.pyx), so that one that is not as it was written, or not
where it was written, is told from one that is.

    log     b"\\0s", number (u64)        bytes of that segment (u64)
            b"\\0salt"                    16 random bytes, under which groups are sealed
    cells   key, of at most 509 bytes     cell
            first 495 bytes of a longer key and 16 of its BLAKE2b (511 in all)
                                          u16 key bytes, key, cell
    head    b"\\0" in the log, 510 zeros among the cells
                                          transaction, first, last, entries (u64 each)
    who     b"\\0\\0" in the log          node (u64), generation (u64), cluster (UTF-8)

Stored names of 510 bytes are heads and those of 511 long keys, so no key can be taken for either. Integers are
little-endian. The blobs of the log are in files beside it (anna/storage/group.pyx).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from anna.storage.seal import sealed, unsealed

SHORT_KEY_BYTES_MAX: Final = 509
PREFIX_BYTES: Final = 495
DIGEST_BYTES: Final = 16
LONG_NAME_BYTES: Final = PREFIX_BYTES + DIGEST_BYTES

LOG_HEAD: Final = b"\0"
LOG_WHO: Final = b"\0\0"
LOG_SALT: Final = b"\0salt"
LOG_SEGMENT: Final = b"\0s"
CELLS_HEAD: Final = bytes(SHORT_KEY_BYTES_MAX + 1)

NUMBER: Final = struct.Struct("<Q")
LENGTH: Final = struct.Struct("<H")
HEAD: Final = struct.Struct("<QQQQ")
WHO: Final = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it was written: `place` is log, cells or seat; `which` its number or key."""

    place: str
    which: int | bytes | None
    why: str

    def __str__(self) -> str:
        which = "" if self.which is None else f" {self.which!r}"
        return f"{self.place}{which}: {self.why}"


@dataclass(frozen=True, slots=True)
class Head:
    """What the last transaction of an environment says of the whole: its own id, and how much there is.

    In the log, `first` is the first number that is kept, and at least the numbers to `last` were durable. `entries`
    counts the environment's records, the head's included.
    """

    transaction: int = 0
    first: int = 1
    last: int = 0
    entries: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose data this is."""

    cluster: str
    node_id: int
    generation: int


def head_record(name: bytes, head: Head) -> bytes:
    """Return the record of `head`."""
    return sealed(name, HEAD.pack(head.transaction, head.first, head.last, head.entries))


def head_of(name: bytes, record: bytes) -> Head | None:
    """Return the head in a record, None when it is damaged."""
    content = unsealed(name, record)
    return Head(*HEAD.unpack(content)) if content is not None and len(content) == HEAD.size else None


def identity_record(identity: Identity) -> bytes:
    """Return the record of `identity`."""
    return sealed(LOG_WHO, WHO.pack(identity.node_id, identity.generation) + identity.cluster.encode())


def identity_of(record: bytes) -> Identity | None:
    """Return the identity in a record, None when it is damaged."""
    content = unsealed(LOG_WHO, record)
    if content is None:
        return None
    node_id, generation = WHO.unpack_from(content)
    return Identity(content[WHO.size :].decode(), node_id, generation)


def segment_record(number: int, size: int) -> tuple[bytes, bytes]:
    """Return name and record of a segment of the log."""
    name = LOG_SEGMENT + NUMBER.pack(number)
    return name, sealed(name, NUMBER.pack(size))


def segment_of(name: bytes, record: bytes) -> tuple[int, int] | None:
    """Return number and bytes of a segment, None when its record is damaged."""
    content = unsealed(name, record)
    if content is None or not name.startswith(LOG_SEGMENT) or len(name) != len(LOG_SEGMENT) + NUMBER.size:
        return None
    (number,), (size,) = NUMBER.unpack(name[len(LOG_SEGMENT) :]), NUMBER.unpack(content)
    return number, size


def name_of(key: bytes) -> bytes:
    """Return the name under which the cell of `key` is stored. Names sort as keys do up to 495 bytes."""
    if len(key) <= SHORT_KEY_BYTES_MAX:
        return key
    return key[:PREFIX_BYTES] + hashlib.blake2b(key, digest_size=DIGEST_BYTES).digest()


def cell_record(key: bytes, cell: bytes) -> tuple[bytes, bytes]:
    """Return name and record of a cell."""
    if len(key) <= SHORT_KEY_BYTES_MAX:
        return key, sealed(key, cell)
    name = name_of(key)
    return name, sealed(name, LENGTH.pack(len(key)) + key + cell)


def cell_of(name: bytes, record: bytes) -> tuple[bytes, bytes] | None:
    """Return key and cell of a record, None when it is damaged."""
    content = unsealed(name, record)
    if content is None:
        return None
    if len(name) < LONG_NAME_BYTES:
        return name, content
    end = LENGTH.size + LENGTH.unpack_from(content)[0]
    return content[LENGTH.size : end], content[end:]
