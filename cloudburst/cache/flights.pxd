from libc.stdint cimport uint32_t, uint64_t

from anna.lattices.lww cimport LWW
from anna.routing.placement cimport Placement
from cloudburst.cache.order cimport Order, Slot


cdef class Flight:
    cdef uint64_t owner
    # Whether it is for this owner and no other.
    cdef bint bound
    cdef int op
    cdef bytes key
    cdef bytes frame
    cdef Slot slot
    cdef Py_ssize_t index
    cdef int type
    cdef int flags
    cdef bytes written
    cdef LWW known
    cdef list waiters
    # How often an owner has said that it cannot answer yet.
    cdef int tries
    # Of a read at an epoch: who has refused it; the mark of its owner when it was sent, and what the owner pushed of the key since.
    cdef set refused
    cdef object mark
    cdef list pushed
    # Of a transaction's: what it is of.
    cdef object running


cdef class Flights(Order):
    cdef object owners
    cdef Placement owner_placement
    cdef dict flights
    cdef dict outboxes
    cdef dict hearing
    cdef list held
    cdef uint32_t last_flight

    cdef Flight send(self, int op, int type, int flags, bytes key, bytes payload, int ack=*)
    cdef Flight send_to(self, uint64_t owner, int op, bytes key, bytes payload, int ack=*)
    cdef uint64_t owner_of(self, bytes key) except? 0
    cdef uint64_t choose(self, Flight flight) except? 0
    cdef int route(self, Flight flight) except -1
    cdef int reroute(self, uint64_t owner) except -1
    cdef int answered(self, uint64_t owner, object request, int status, int kind, int flags, uint64_t stamp, bytes payload, list finished) except -1
    cdef int land(self, Flight flight, uint64_t owner, int status, int kind, int flags, uint64_t stamp, bytes payload, list finished) except -1
    cdef int lose(self, Flight flight, list finished) except -1
    cdef int hear_push(self, uint64_t owner, int flags, int status, int kind, bytes payload, list finished) except -1
    cdef int forget_owner(self, uint64_t owner) except -1
