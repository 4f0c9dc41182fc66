from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from anna.lattices.base cimport Lattice


cdef struct Slot:
    uint64_t hash
    PyObject* key
    PyObject* state


cdef class Table:
    cdef Slot* slots
    cdef size_t mask
    cdef Py_ssize_t used

    cdef Slot* slot_of(self, uint64_t hash, const char* key, Py_ssize_t size) noexcept
    cdef PyObject* find(self, const char* key, Py_ssize_t size) noexcept
    cdef int insert(self, bytes key, Lattice state) except -1
    cdef Lattice pop(self, bytes key)
    cdef int resize(self) except -1
    cdef void prefetch_slot(self, uint64_t hash) noexcept
    cdef void prefetch_entry(self, uint64_t hash) noexcept
    cdef void prefetch_payload(self, uint64_t hash) noexcept
