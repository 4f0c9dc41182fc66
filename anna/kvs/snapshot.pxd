from libc.stdint cimport int64_t, uint64_t

from anna.kvs.cells cimport CellReader
from anna.kvs.store cimport Store


cdef class Snapshot:
    cdef readonly uint64_t epoch
    cdef readonly bint spoiled
    cdef Store present
    cdef Store past
    cdef set kept
    cdef list names
    cdef int64_t asked_ns

    cpdef int keep(self, bytes key) except -1
    cdef int take(self, CellReader reader, uint64_t epoch) except -1
    cdef int join(self, bytes key, CellReader reader) except -1
