from libc.stdint cimport uint64_t

from anna.lattices.base cimport Lattice


cdef class Store:
    cdef readonly dict states
    cdef readonly Py_ssize_t size_bytes

    cdef int write_register(self, bytes key, uint64_t stamp, uint64_t writer, bytes payload) except -1
    cpdef Lattice read(self, bytes key)
    cpdef Lattice write(self, bytes key, Lattice delta)
    cpdef bint remove(self, bytes key) except -1
