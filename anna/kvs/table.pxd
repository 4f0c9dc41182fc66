from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from anna.lattices.base cimport Lattice


cdef enum:
    # A look-up has found the key since the hand of the clock came by (`anna.kvs.memory`).
    MARK_SEEN = 1
    # The state is being written to the disk as it is now.
    MARK_GATHERED = 2
    # The disk has the state exactly as it is now.
    MARK_KEPT = 4
    # The state is on the disk alone; the slot has a `Cold` in its place.
    MARK_COLD = 8


cdef enum:
    # Of longer registers no more is fetched ahead: the processor does so by itself where bytes are read in a row.
    REACH_MAX = 512


cdef struct Slot:
    uint64_t hash
    PyObject* key
    PyObject* state
    # The rounds of changes (`anna.kvs.changes`) in which the key was noted last: for the replicas, for the log.
    uint32_t sent_round
    uint32_t logged_round


cdef class Table:
    cdef Slot* slots
    cdef size_t mask
    cdef Py_ssize_t used
    cdef object ordered
    # A byte for each slot, or NULL.
    cdef uint8_t* marks
    # How many bytes of a register are worth fetching ahead.
    cdef Py_ssize_t reach

    cdef int keep_marks(self) except -1
    cdef Slot* slot_of(self, uint64_t hash, const char* key, Py_ssize_t size) noexcept
    cdef PyObject* find(self, const char* key, Py_ssize_t size) noexcept
    cdef Slot* insert(self, bytes key, Lattice state) except NULL
    cdef Lattice pop(self, bytes key)
    cdef list list_keys(self)
    cdef int resize(self) except -1
    cdef void announce(self, const uint64_t* hashes, int count) noexcept
    cdef void prefetch_slot(self, uint64_t hash) noexcept
    cdef void prefetch_entry(self, uint64_t hash) noexcept
    cdef void prefetch_payload(self, uint64_t hash) noexcept
