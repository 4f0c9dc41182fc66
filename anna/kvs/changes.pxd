from libc.stdint cimport uint32_t, uint64_t

from anna.buffer cimport Buffer
from anna.kvs.store cimport Piece
from anna.kvs.table cimport Slot
from anna.lattices.base cimport Lattice


cdef class Changes:
    cdef list registers
    cdef Buffer hashes
    cdef dict noted
    cdef readonly uint32_t round

    cdef int note(self, bytes key) except -1
    cdef int note_piece(self, bytes key, Piece piece) except -1
    cdef Piece piece_of(self, bytes key)
    cdef tuple take(self)

    cdef inline int note_sent(self, Slot* slot) except -1:
        """Note a register's key for the replicas."""
        if slot.sent_round != self.round:
            slot.sent_round = self.round
            self.registers.append(<object>slot.key)
            (<uint64_t*>self.hashes.reserve(8))[0] = slot.hash
        return 0

    cdef inline int note_logged(self, Slot* slot) except -1:
        """Note a register's key for the log."""
        if slot.logged_round != self.round:
            slot.logged_round = self.round
            self.registers.append(<object>slot.key)
            (<uint64_t*>self.hashes.reserve(8))[0] = slot.hash
        return 0
