from libc.stdint cimport uint64_t

from anna.kvs.endings cimport Endings


cdef class Closings(Endings):
    cdef dict closed_of
    cdef dict kept_of
    cdef uint64_t announced
