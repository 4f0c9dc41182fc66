from libc.stdint cimport int64_t, uint64_t

from cloudburst.cache.epochs cimport CacheEpochs
from cloudburst.cache.flights cimport Flight
from anna.wire cimport RequestHeader
from cloudburst.cache.order cimport Slot


cdef class Pins(CacheEpochs):
    # [(Slot, the epoch that it wants at least, until when it waits)]
    cdef list beginning
    # The epoch at which a session can begin now, and its view; 0 while there is none.
    cdef uint64_t begins_at
    cdef uint64_t begins_under
    cdef int64_t hurried_at
    cdef uint64_t hurried_for
    cdef int64_t moved_at
    cdef readonly uint64_t sessions
    cdef readonly object ages

    cdef int look_for_beginning(self) except -1
    cdef int begin(self, RequestHeader* head) except -1
    cdef int hurry(self, uint64_t least) except -1
    cdef int pin_at_owners(self, RequestHeader* head, bytes payload) except -1
    cdef int arrive_pin(self, Flight flight, int status, bytes payload, list finished) except -1
    cdef bint is_new_since(self, uint64_t owner, bytes asked) except -1
    cdef object answer_pin(self, Slot slot)
