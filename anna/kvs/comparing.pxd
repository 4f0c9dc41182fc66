from libc.stdint cimport uint64_t

from anna.kvs.arrivals cimport Arrivals
from anna.routing.placement cimport Placement


cdef class Comparing(Arrivals):
    cdef Placement former
    cdef object former_view
    cdef readonly dict repairs
    # The number on its link of the last body that was sent to a peer for a comparison.
    cdef dict repair_sent
    # By what this worker's keys were placed since it had last given everybody what was theirs: [(placement, place), …].
    # None: it never has, and offers all that it has.
    cdef list tenures
    # The placement by which it offers its own keys alone.
    cdef Placement own_alone
    cdef list sweeping
    cdef uint64_t losses_seen

    cdef bint may_offer(self, uint64_t hash) except -1
    cdef bint is_shared(self, uint64_t hash, int place, int former_place) noexcept
    cdef list entries_of(self, int place, int former_place, list keys, Py_ssize_t begin, Py_ssize_t end)
