from libc.stdint cimport uint64_t

from anna.lattices.base cimport Lattice


cdef class LWW(Lattice):
    cdef readonly uint64_t stamp
    cdef readonly uint64_t writer
    cdef readonly bytes payload

    @staticmethod
    cdef LWW make(uint64_t stamp, uint64_t writer, bytes payload)
    cdef bint loses_to(self, uint64_t stamp, uint64_t writer, const char* payload, Py_ssize_t size) noexcept
    cdef int become(self, uint64_t stamp, uint64_t writer, const char* payload, Py_ssize_t size) except -1
