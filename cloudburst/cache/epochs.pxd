from libc.stdint cimport uint64_t

from cloudburst.cache.flights cimport Flight
from cloudburst.cache.kept cimport Kept
from cloudburst.cache.order cimport Slot


cdef class CacheEpochs(Kept):
    # What is asked of owners: (key, 16 bytes of epoch and view) -> Flight.
    cdef dict asking
    cdef readonly uint64_t hits_at
    cdef readonly uint64_t misses_at

    cdef int want_at(self, bytes name, bytes epoch, Slot slot, Py_ssize_t index) except -1
    cdef int arrive_at(self, Flight flight, int status, int kind, bytes payload, list finished) except -1
    cdef bint waits(self, Flight flight, int status) except -1
    cdef int arrive_pin(self, Flight flight, int status, bytes payload, list finished) except -1
    cdef object answer_pin(self, Slot slot)
