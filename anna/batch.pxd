from libc.stdint cimport int64_t, uint32_t, uint64_t

from anna.connections cimport Connections
from anna.stream cimport Stream


cdef class Flight:
    cdef Stream stream
    cdef uint32_t request
    cdef int64_t limit
    cdef list keys
    cdef list indexes


cdef class Batch:
    cdef Connections connections
    cdef int op
    cdef list keys
    cdef list values
    cdef object default
    # Of a multi-get at an epoch: which one, and whether states are wanted in place of values.
    cdef bytes snapshot
    cdef bint lattices
    # Those of the view by which the keys were grouped.
    cdef tuple workers
    cdef int ack
    cdef int64_t deadline
    cdef list results
    cdef list refusals
    cdef int replicas
    cdef int durable
    cdef int rounds
    cdef bint stale
    cdef object error

    cdef int begin(self, Connections connections, int op, list keys, list values, int64_t deadline) except -1
    cdef int run(self) except -1
    cdef int launch(self, list wanted, list flights, list again) except -1
    cdef dict group(self, list wanted)
    cdef dict group_by_trust(self, list wanted)
    cdef Flight depart(self, int place, list indexes, uint64_t strict)
    cdef int land(self, Flight flight, list again) except -1
    cdef int take_answer(self, Flight flight, list again) except -1
    cdef int take_values(self, Flight flight, list again) except -1
    cdef int take_failures(self, Flight flight, list again) except -1
    cdef int turn(self, list again) except -1
    cdef int64_t limit(self) except -1
