from libc.stdint cimport uint64_t

from anna.kvs.table cimport Table
from anna.lattices.base cimport Lattice


cdef class Store:
    cdef readonly Table states
    cdef readonly Py_ssize_t size_bytes

    cdef int write_register(self, const char* key, Py_ssize_t key_bytes, uint64_t stamp, uint64_t writer, bytes payload) except -1
    cpdef Lattice read(self, bytes key)
    cpdef Lattice write(self, bytes key, Lattice delta)
    cpdef bint remove(self, bytes key) except -1
