from libc.stdint cimport uint32_t, uint64_t

from anna.buffer cimport Buffer
from anna.kvs.changes cimport Changes
from anna.kvs.store cimport Store
from anna.kvs.table cimport Slot
from anna.lattices.base cimport Lattice


cdef class Log:
    cdef Store store
    cdef Changes changes
    # The keys (to None) that were dropped since the last batch was taken.
    cdef dict dropped
    # What is to be logged of transactions since then: register's payload by name, nothing for those that are forgotten.
    cdef dict records
    # The cells of the batch that is being taken.
    cdef Buffer buffer
    cdef uint64_t number
    # The rounds of changes that are on disk, and the one on its way there; 0: none.
    cdef readonly uint32_t round
    cdef uint32_t round_under_way
    cdef uint64_t stable_under_way
    # The epoch up to which a crash undoes nothing: all that this worker should have of that is on disk.
    cdef readonly uint64_t kept

    cdef int note(self, bytes key) except -1
    cdef int note_delta(self, bytes key, uint64_t epoch, uint64_t stamp, Lattice delta) except -1
    cdef int note_dropped(self, bytes key) except -1
    cdef int note_record(self, bytes name, bytes payload) except -1
    cdef int note_ended(self, bytes key) except -1
    cdef int note_survivor(self, bytes key, uint64_t epoch) except -1

    cdef inline uint32_t round_wanted(self) noexcept:
        """The round that has to be on disk for what was noted until now; also if that was nothing."""
        return self.changes.round if len(self.changes.registers) or len(self.changes.noted) or len(self.records) else self.changes.round - 1

    cdef inline int note_register(self, Slot* slot) except -1:
        """The register in `slot` was written."""
        return self.changes.note_logged(slot)
