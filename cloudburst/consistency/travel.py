"""How a session goes along with calls and results: as bytes.

    u64 epoch | u64 view digest | u64 last stamp | u8 level and flags
    | with RECORDED: u16 count | parts of the history that it goes on from: u64
    | groups of writes: u64 commit stamp (0: buffered) | u32 count | writes
    a write: u16 key | u8 type (0: none) | u64 stamp | u64 deleted | u64 us that it lives | u32 delta | key | delta

The one rule: the metadata is the first 25 bytes, whatever the workload; all that follows is values that the session
itself has written, and, only while somebody records histories, what it comes after in them. Integers are little-endian.
Source: DESIGN §4 (metadata); decision record 0030.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from anna.errors import AnnaError
from anna.lattices import REGISTRY
from cloudburst.consistency.levels import level_numbered
from cloudburst.consistency.own import CLOCK_MIN, Own
from cloudburst.consistency.session import Session, Snapshot, epoch_of
from cloudburst.errors import ProtocolError

HEAD: Final = struct.Struct("<QQQB")
GROUP: Final = struct.Struct("<QI")
WRITE: Final = struct.Struct("<HBQQQI")
METADATA_BYTES: Final = HEAD.size
"""What goes along with each call, beside the session's own writes."""
LEVEL: Final = 0x0F
CLOSES: Final = 0x10
"""Flag: whoever ends the outermost function commits."""
BEGUN: Final = 0x40
"""Flag: it reads at the epoch; without it, that is the least at which whoever reads first may begin it."""
COMMITTED: Final = 0x80
"""Flag: it has ended, and the last stamp is that of its own commit."""
RECORDED: Final = 0x20
"""Flag: what functions read and write is to be told to the client."""


@dataclass(slots=True)
class Sent:
    """What has gone along with the calls of this process so far: contexts, their metadata, and sessions' own writes."""

    contexts: int = 0
    metadata_bytes: int = 0
    written_bytes: int = 0

    def note(self, context: bytes) -> bytes:
        """Count a context, and return it."""
        self.contexts += 1
        self.metadata_bytes += METADATA_BYTES
        self.written_bytes += len(context) - METADATA_BYTES
        return context


sent: Final = Sent()


def pack(session: Session) -> bytes:
    """Return a session as bytes."""
    flags = session.level.number | (CLOSES if session.closes else 0) | (RECORDED if session.recorded else 0)
    flags |= (BEGUN if session.begun else 0) | (COMMITTED if session.commit and session.commit == session.last else 0)
    parts = [HEAD.pack(*session.snapshot, session.last, flags)]
    if session.recorded:
        parts.append(struct.pack(f"<H{len(session.parts)}Q", len(session.parts), *session.parts))
    for stamp, writes in session.carried:
        parts += _packed(stamp, writes)
    if session.buffered:
        parts += _packed(0, session.buffered)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _packed(stamp: int, writes: dict[bytes, Own]) -> list[bytes]:
    parts = [GROUP.pack(stamp, len(writes))]
    for key, own in writes.items():
        delta = b"" if own.delta is None else own.delta.encode()
        number = 0 if own.delta is None else own.delta.NUMBER
        parts += (WRITE.pack(len(key), number, own.stamp, own.deleted, own.lives_us, len(delta)), key, delta)
    return parts


def unpack(data: bytes | memoryview, writer: int) -> Session:
    """Return the session that `pack` packed, for `writer` to go on with. Raises ProtocolError."""
    data = bytes(data)
    if len(data) < HEAD.size:
        raise ProtocolError(f"a session's context has {len(data)} bytes; it has {HEAD.size} at least")
    epoch, view, last, flags = HEAD.unpack_from(data)
    if flags & BEGUN and not epoch:
        raise ProtocolError(f"a session's context has the flags {flags:#04x}")
    session = Session(
        level_numbered(flags & LEVEL), writer, Snapshot(epoch, view), last, bool(flags & BEGUN),
        closes=bool(flags & CLOSES), recorded=bool(flags & RECORDED), commit=last if flags & COMMITTED else 0,
    )  # fmt: skip
    at, before = HEAD.size, 0
    if session.recorded:
        session.parts, at = _parts(data, at)
    while at < len(data):
        stamp, writes, at = _group(data, at)
        if session.buffered or (stamp and not before < stamp <= last) or (stamp and epoch_of(stamp) <= epoch):
            raise ProtocolError(f"the writes of a session's context are out of order, at stamp {stamp}")
        if stamp:
            session.carried.append((stamp, writes))
            before = stamp
        else:
            session.buffered = writes
        session.clock = max([session.clock, *(own.stamp for own in writes.values())])
    return session


def _parts(data: bytes, at: int) -> tuple[tuple[int, ...], int]:
    """Return (parts of a history, where the next group begins). Raises ProtocolError."""
    count = int.from_bytes(data[at : at + 2], "little")
    end = at + 2 + 8 * count
    if end > len(data) or at + 2 > len(data):
        raise ProtocolError(f"a session's context ends within the {count} parts that it goes on from")
    return struct.unpack_from(f"<{count}Q", data, at + 2), end


def _group(data: bytes, at: int) -> tuple[int, dict[bytes, Own], int]:
    """Return (commit stamp, writes, where the next group begins). Raises ProtocolError."""
    if len(data) - at < GROUP.size:
        raise ProtocolError("a session's context ends within a group of writes")
    stamp, count = GROUP.unpack_from(data, at)
    at += GROUP.size
    writes: dict[bytes, Own] = {}
    for _ in range(count):
        if len(data) - at < WRITE.size:
            raise ProtocolError(f"a session's context ends within its {count:,} writes")
        key_bytes, number, when, deleted, lives_us, size = WRITE.unpack_from(data, at)
        at += WRITE.size
        key, at = data[at : at + key_bytes], at + key_bytes
        encoded, at = data[at : at + size], at + size
        if at > len(data) or not key_bytes:
            raise ProtocolError(f"a session's context ends within its {count:,} writes")
        writes[key] = _own(number, when, deleted, encoded)._replace(lives_us=lives_us)
    if not count or len(writes) < count:
        raise ProtocolError(f"a group of {count:,} writes in a session's context has {len(writes):,} keys")
    return stamp, writes, at


def _own(number: int, when: int, deleted: int, encoded: bytes) -> Own:
    """Return one write. Raises ProtocolError."""
    if when <= CLOCK_MIN or not (deleted == 0 or CLOCK_MIN < deleted <= when):
        raise ProtocolError(f"a write of a session is of {when}, and of {deleted}, on its clock")
    if number == 0:
        if encoded or not deleted:
            raise ProtocolError("a write of a session that writes nothing")
        return Own(when, deleted, None)
    kind = REGISTRY.get(number)
    if kind is None:
        raise ProtocolError(f"lattice type {number} is not known here")
    try:
        return Own(when, deleted, kind.decode(encoded))
    except AnnaError as fault:
        raise ProtocolError(f"a write of a session: {fault}") from None
