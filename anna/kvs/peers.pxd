from libc.stdint cimport uint64_t

from anna.kvs.clock cimport Clock
from anna.kvs.store cimport Store
from anna.routing.placement cimport Placement

cdef enum:
    KIND_LINK = 1
    KIND_HEARTBEAT = 2
    KIND_CLOSED = 3


# How a link's frame begins (`anna.kvs.link`), after the request's header.
cdef enum:
    LINK_HEADER_BYTES = 44


cdef class Peers:
    cdef readonly uint64_t mine
    cdef readonly Store store
    cdef readonly Clock clock
    cdef readonly object view
    cdef Placement placement
    cdef readonly int place
    # Whether each worker has a copy of each key, and whether any other worker has a copy of any.
    cdef bint everywhere
    cdef readonly bint sharing
    # Whether somebody may still offer what was no longer its own when the view began: until all say that they are complete.
    cdef public bint comparing
    # Whether a node is dead that may come back.
    cdef readonly bint mourning
    cdef readonly tuple ids
    # The ids of the other workers of this node.
    cdef frozenset siblings
    cdef readonly dict links
    cdef dict sessions
    cdef list outbox
    # The epoch that runs; all up to `closed` is where it should be, of what was written here; all up to `stable`, of what was written anywhere.
    cdef readonly uint64_t epoch
    cdef readonly uint64_t closed
    cdef readonly uint64_t stable
    # Deletes of the epochs up to this one are forgotten.
    cdef readonly uint64_t floor
    # Closings are announced each epoch until this one.
    cdef uint64_t busy_until

    cdef tuple apart(self, tuple peers, int count)
    cdef int put_down(self, int kind, target, bytes payload, bytes fragment) except -1
