from libc.stdint cimport uint64_t

from anna.kvs.cells cimport CellReader
from anna.kvs.deltas cimport Deltas
from anna.kvs.history cimport History
from anna.kvs.snapshot cimport Snapshot


cdef class Arrivals(Deltas):
    cdef public Snapshot snapshot
    # What keys held at recent epochs; None while nobody reads at epochs.
    cdef public History history
    # Whether anybody watches a key here, so that what other owners change is `touched`.
    cdef bint watching
    cdef readonly set touched
    cdef readonly uint64_t deltas_taken
    cdef readonly uint64_t quarantined
    # The keys (to None) that were here when this worker ceased to offer what is not its own.
    cdef dict leftovers
    cdef readonly uint64_t dropped
    # What the other owners of a key are to be told of its end (see `anna.kvs.endings`): stamps of ends, and of ends that are void.
    cdef dict ends
    cdef dict lives

    cdef int drop(self, bytes key) except -1
    cdef int drop_leftover(self, bytes key) except -1
    cdef bint recovers(self, CellReader reader) except -1
    cdef bint take_cell(self, CellReader reader, uint64_t epoch) except -1
    cdef bint is_wanted(self, CellReader reader) except -1
    cdef bint take_register(self, CellReader reader, bytes key, uint64_t reset) except -1
    cdef bint take_state(self, CellReader reader, bytes key, uint64_t reset, uint64_t epoch) except -1
