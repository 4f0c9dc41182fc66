from libc.stdint cimport uint64_t

from anna.kvs.comparing cimport Comparing


cdef class Closings(Comparing):
    cdef dict closed_of
    cdef dict kept_of
    cdef uint64_t announced
