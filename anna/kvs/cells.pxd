from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from anna.buffer cimport Buffer
from anna.kvs.table cimport Table
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW

cdef enum:
    CELL_HEADER_BYTES = 24
    # How many cells' keys are fetched from memory at once.
    ANNOUNCED_MAX = 16
    # The state is all that its sender knows of the key, not what one epoch changed.
    CELL_WHOLE = 1
    # The state stands after 8 bytes: the time, in microseconds since 2020, from which the write counts as deleted.
    CELL_EXPIRES = 2
    # In a log: what stood before it of the key is void, because the key was another worker's by then.
    CELL_DROPPED = 4

# Naturally aligned, so its memory is the wire form on a little-endian machine. Key, expiry (if any) and state follow it.
cdef struct CellHeader:
    uint16_t key_bytes
    uint8_t type
    uint8_t flags
    uint32_t payload_bytes
    uint64_t reset
    uint64_t last

cdef int append_cell(Buffer out, bytes key, Lattice state, uint64_t reset, uint64_t last, int flags, uint64_t expires) except -1

cdef int append_register(Buffer out, bytes key, LWW register, uint64_t reset, uint64_t expires) except -1

cdef bytes end_cell(bytes key, uint64_t stamp)


cdef class CellReader:
    cdef bytes data
    cdef Py_ssize_t place
    cdef CellHeader head
    cdef const char* key
    cdef const char* payload
    cdef uint64_t expires
    cdef uint64_t hash

    # The hashes of the cells' keys that were announced together, and how many of those were read since.
    cdef uint64_t[ANNOUNCED_MAX] hashes
    cdef int announced
    cdef int told

    cdef bint next_of(self, Table states) except -1
    cdef int announce(self, Table states) noexcept
    cdef bint next(self) except -1
