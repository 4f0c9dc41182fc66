from libc.stdint cimport uint32_t, uint64_t

from anna.kvs.changes cimport Changes
from anna.kvs.log cimport Log
from anna.kvs.peers cimport Peers
from anna.kvs.table cimport Slot
from anna.lattices.base cimport Lattice

cdef enum:
    BODY_DELTAS = 1


cdef class Deltas(Peers):
    cdef Changes changes
    # None while nothing is made durable.
    cdef Log log
    # By place of the replica: the cells of the cut under way.
    cdef list buffers
    cdef dict pending
    cdef dict confirmed
    cdef int flushes
    cdef readonly uint64_t deltas_sent
    cdef readonly uint64_t bodies_sent

    cdef int note_register(self, Slot* slot) except -1
    cdef bint keeps_pieces(self) noexcept
    cdef int note_deleted(self, bytes key) except -1
    cdef int note_delta(self, bytes key, uint64_t stamp, Lattice delta) except -1
    cdef int turn(self, uint64_t epoch) except -1
    cdef int cut(self) except -1
    cdef int queue_cell(self, uint64_t hash, bytes key, Lattice state, uint64_t last) except -1
    cdef int send_buffer(self, int place, uint32_t round) except -1
    cdef int wait_for_copies(self) except -1
