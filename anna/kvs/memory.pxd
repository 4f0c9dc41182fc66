from libc.stdint cimport uint64_t

from anna.kvs.cells cimport CellReader
from anna.kvs.table cimport Slot, Table
from anna.lattices.base cimport Lattice


cdef class Cold(Lattice):
    # The lattice type's wire number, and the length of the state's encoding.
    cdef readonly int number
    cdef readonly Py_ssize_t size
    # A register's own; 0 of other types.
    cdef readonly uint64_t stamp
    cdef readonly uint64_t writer
    # The hash of a register's payload, or of another state's encoding.
    cdef readonly uint64_t content_hash


cdef class Memory:
    cdef Table states
    cdef object fetch
    cdef readonly Py_ssize_t limit_bytes
    # Where states begin to leave.
    cdef readonly Py_ssize_t full_bytes
    # Where who writes is slowed down.
    cdef readonly Py_ssize_t crowded_bytes
    # Keys, and the states that are so small that they stay.
    cdef readonly Py_ssize_t staying_bytes
    # The other states that are in memory, and those of them that may leave.
    cdef readonly Py_ssize_t warm_bytes
    cdef readonly Py_ssize_t kept_bytes
    cdef readonly Py_ssize_t cold_count
    cdef readonly uint64_t loads
    cdef readonly uint64_t evictions
    cdef size_t hand
    # The keys of which the disk's checkpoint lacks something, oldest first.
    cdef readonly dict unkept

    cdef Py_ssize_t resident(self) noexcept
    cdef int count(self, Slot* slot, int sign) except -1
    cdef int added(self, Slot* slot) except -1
    cdef int changing(self, Slot* slot) except -1
    cdef int changed(self, Slot* slot) except -1
    cdef int removing(self, Slot* slot) except -1
    cdef int put(self, Slot* slot, Lattice state, int marks) except -1
    cdef int replace(self, Slot* slot, Lattice state) except -1
    cdef int warm(self, Slot* slot, Lattice state) except -1
    cdef Lattice restored(self, CellReader reader)
    cpdef int note(self, bytes key) except -1
    cdef Lattice load(self, bytes key, Cold cold)
    cpdef int cool(self, int steps, Py_ssize_t wanted=*) except -1
    cdef Slot* slot_of(self, bytes key) noexcept

cdef Cold cold_of(Lattice state)
cdef object kind_of(Lattice state)
