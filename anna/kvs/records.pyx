"""What a worker holds of a transaction that is prepared and not decided, and how that is written down.

The one rule: a part, one key's write, is proposed by one worker, once; whoever holds it holds it with that proposal. So of all who hold a
transaction's parts each comes to the same stamp for it: the greatest proposal. Source: docs/decisions/0028.

    16 bytes id | u64 attempt | u32 keys | for each u64 hash, u64 worker | u32 parts | for each u64 proposal,
    u16 key bytes, u8 type (0: no state), u8 flags, u32 state bytes, key, state; with FLAG_EXPIRES the state begins with 8 bytes of how long it lives

One of the places may be no key's: the *guard*, the hash of the id, at the worker that decides between attempts (0031). Its part has no key.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cimport cython

from anna.commits cimport guard_of
from anna.lattices.base cimport Lattice
from anna.routing.hash cimport hash64
from anna.wire cimport FLAG_EXPIRES

import struct

from anna.errors import ProtocolError
from anna.lattices import REGISTRY

cdef enum:
    NAME_BYTES = 24
    PLACE_BYTES = 16
    # What a part takes beside its key and state, and a record beside its parts, about.
    PART_COST = 300
    RECORD_COST = 1200

_COUNT = struct.Struct("<I")
_PLACE = struct.Struct("<QQ")
_PART = struct.Struct("<QHBBI")
_LIVES = struct.Struct("<Q")


@cython.final
cdef class Part:
    """One write of a transaction that is prepared: a state in which only registers are without a stamp."""

    @staticmethod
    cdef Part make(bytes key, uint64_t hash, Lattice state, int flags, uint64_t lives_us):
        """Return a part that is not proposed yet."""
        cdef Part part = Part.__new__(Part)
        part.key, part.hash, part.state = key, hash, state
        part.flags, part.lives_us = flags, lives_us
        return part

    @property
    def size_bytes(self):
        """What its key and state take."""
        return len(self.key) + (0 if self.state is None else self.state.size_bytes)


@cython.final
cdef class Record:
    """What is prepared here of one attempt at a transaction."""

    def __init__(self, bytes name, tuple places):
        self.name = name
        self.places = places
        self.parts = {}
        self.known = {}
        self.absent = {}
        self.size_bytes = RECORD_COST + PLACE_BYTES * len(places)

    cdef int add(self, Part part) except -1:
        """Hold one more part; one that is here is kept as it is."""
        if part.hash in self.parts:
            return 0
        self.parts[part.hash] = part
        self.first = min(self.first, part.proposal) if self.first else part.proposal
        self.last = max(self.last, part.proposal)
        self.size_bytes += PART_COST + <Py_ssize_t>part.size_bytes
        return 0

    def is_of(self, uint64_t worker):
        """Return the greatest proposal that `worker` has made, 0 for none."""
        cdef Part part
        cdef uint64_t greatest = 0
        for hash, asked in self.places:
            part = self.parts.get(hash)
            if asked == worker and part is not None:
                greatest = max(greatest, part.proposal)
        return greatest


cdef bytes encode_record(Record record, hashes):
    """Return a record with those of its parts whose keys have these hashes."""
    cdef Part part
    cdef list pieces = [record.name, _COUNT.pack(len(record.places))]
    for place in record.places:
        pieces.append(_PLACE.pack(*place))
    pieces.append(_COUNT.pack(len(hashes)))
    for hash in hashes:
        part = record.parts[hash]
        state = b"" if part.state is None else part.state.encode()
        if part.flags & FLAG_EXPIRES:
            state = _LIVES.pack(part.lives_us) + state
        pieces.append(_PART.pack(part.proposal, len(part.key), 0 if part.state is None else part.state.NUMBER, part.flags, len(state)))
        pieces.append(part.key)
        pieces.append(state)
    return b"".join(pieces)


cdef Record decode_record(bytes data, Py_ssize_t place):
    """Return the record that is written in `data` from `place` to the end. Raises ProtocolError."""
    cdef Record record
    cdef Part part
    cdef uint32_t count
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    if size - place < NAME_BYTES + 4:
        raise ProtocolError(f"a prepared transaction begins with {NAME_BYTES + 4} bytes, {size - place} are left")
    name = data[place:place + NAME_BYTES]
    places, place = read_places(data, place + NAME_BYTES)
    record = Record(name, places)
    if size - place < 4:
        raise ProtocolError("a prepared transaction does not say how many parts it has")
    (count,) = _COUNT.unpack_from(data, place)
    place += 4
    for _ in range(count):
        if size - place < 16:
            raise ProtocolError("a prepared transaction ends within a part")
        proposal, key_bytes, type, flags, state_bytes = _PART.unpack_from(data, place)
        place += 16
        if size - place < key_bytes + state_bytes:
            raise ProtocolError("a prepared transaction ends within a part")
        part = decode_part(guard_of(name), data[place:place + key_bytes], type, flags, data[place + key_bytes:place + key_bytes + state_bytes])
        part.proposal = proposal
        record.add(part)
        place += key_bytes + state_bytes
    if place != size:
        raise ProtocolError(f"a prepared transaction has {size - place} bytes too many")
    return record


cdef Part decode_part(uint64_t guard, bytes key, int type, int flags, bytes state):
    """Return one part of a record, without its proposal. Raises ProtocolError."""
    cdef uint64_t lives_us = 0
    cdef uint64_t hash = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)) if key else guard
    if flags & FLAG_EXPIRES:
        if len(state) < 8:
            raise ProtocolError("a write that expires does not say when")
        (lives_us,) = _LIVES.unpack_from(state)
        state = state[8:]
    if type == 0:
        return Part.make(key, hash, None, flags, 0)
    kind = REGISTRY.get(type)
    if kind is None:
        raise ProtocolError(f"lattice type {type} is not known to this worker")
    return Part.make(key, hash, kind.decode(state), flags, lives_us)


def read_places(bytes data, Py_ssize_t place):
    """Return (((hash, worker), …), where it ends) of what is written from `place`. Raises ProtocolError."""
    cdef uint32_t count
    cdef uint64_t[2] pair
    cdef Py_ssize_t left = PyBytes_GET_SIZE(data) - place - 4
    cdef const char* at = PyBytes_AS_STRING(data) + place
    cdef list places = []
    if left < 0:
        raise ProtocolError("a transaction does not say how many keys it has")
    memcpy(&count, at, 4)
    at += 4
    if left < <Py_ssize_t>count * PLACE_BYTES:
        raise ProtocolError(f"a transaction of {count:,} keys ends within their places")
    for _ in range(count):
        memcpy(pair, at, PLACE_BYTES)
        at += PLACE_BYTES
        places.append((pair[0], pair[1]))
    return tuple(places), place + 4 + PLACE_BYTES * count
