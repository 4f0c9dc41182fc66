from libc.stdint cimport uint64_t

from anna.requests cimport Requests
from anna.routing.placement cimport Placement


cdef class Requester(Requests):
    # What the threads that share this requester take turns by.
    cdef public object guard
    cdef readonly object view
    # The view's workers, and their ids, by place.
    cdef readonly tuple workers
    cdef list ids
    cdef uint64_t insisted_digest
    cdef int insisted
    cdef Placement placement
    cdef uint64_t* seen_at
    cdef int places
    cdef readonly int copies
    cdef readonly bint troubled
    # An answer told of another view than this client's since the last look at it.
    cdef public bint behind
    cdef int view_mark
    cdef readonly object freshness
    cdef readonly object suspects
    cdef readonly object seed

    cdef bint adopt_alone(self, view) except -1
    cdef int place_of(self, worker_id) except -2
    cdef int mark_trouble(self) except -1
    cdef int learn(self, int place, uint64_t stamp, int flags) noexcept
    cdef bint is_insisted_on(self, view) except -1
    cdef int move_stamps(self, list ids) except -1
