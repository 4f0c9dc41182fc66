from libc.stdint cimport uint64_t

from anna.lattices.base cimport Lattice


cdef class Records(Lattice):
    cdef uint64_t* rows
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity
    cdef int keys
    cdef int width

    cdef uint64_t* row(self, Py_ssize_t i) noexcept
    cdef Py_ssize_t search(self, const uint64_t* key) noexcept
    cdef uint64_t* find(self, const uint64_t* key) noexcept
    cdef bint raise_to(self, const uint64_t* record) except -1
    cdef int expect_state(self) except -1
