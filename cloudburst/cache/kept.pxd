from libc.stdint cimport uint64_t

from anna.lattices.base cimport Lattice
from cloudburst.cache.flights cimport Flights


cdef class Kept(Flights):
    cdef dict subscribed
    cdef dict delayed
    cdef public bint delays
    cdef set absent
    cdef set touched
    cdef readonly Py_ssize_t bytes_max
    cdef readonly uint64_t pushed
    cdef readonly uint64_t evicted
    cdef object keeper
    cdef dict shared
    cdef Py_ssize_t shared_bytes_min
    cdef readonly Py_ssize_t shared_bytes
    cdef readonly Py_ssize_t shared_bytes_max

    cdef int take_push(self, uint64_t owner, int status, int kind, bytes payload) except -1
    cdef int replace(self, bytes name, int status, int kind, bytes payload) except -1
    cdef int catch_up(self, bytes name) except -1
    cdef Lattice share(self, bytes name, Lattice state)
    cdef int unshare(self, bytes name) except -1
    cdef int evict(self) except -1
    cdef int drop_oldest(self) except -1
    cdef int unsubscribe(self, bytes name) except -1
    cdef int forget(self, bytes name) except -1
