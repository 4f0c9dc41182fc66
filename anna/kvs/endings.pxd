from libc.stdint cimport uint64_t

from anna.kvs.comparing cimport Comparing


cdef class Endings(Comparing):
    cdef readonly uint64_t lives_prolonged

    cdef int take_end(self, bytes key, uint64_t stamp) except -1
    cdef bint was_prolonged(self, bytes key, uint64_t stamp) except -1
    cdef int tell(self) except -1
    cdef int send_to_owners(self, int kind, dict cells) except -1
