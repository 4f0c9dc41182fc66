from libc.stdint cimport uint32_t, uint64_t

from anna.kvs.transactions cimport Transactions


cdef class Closings(Transactions):
    cdef dict closed_of
    cdef dict kept_of
    cdef uint64_t announced
    # Whether all that was here when this worker was complete for the view is on its disk, the round of the log which shows that, and who else says so.
    cdef readonly bint stored
    cdef bint storing
    cdef uint32_t stored_with
    cdef set stored_of
    # How old the stable epoch was, and up to which epoch that was looked at.
    cdef readonly object ages
    cdef uint64_t aged

    cdef int note_stored(self) except -1
