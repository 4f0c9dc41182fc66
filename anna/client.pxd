from libc.stdint cimport int64_t, uint32_t

from anna.requester cimport Requester
from anna.stream cimport Stream


cdef class Flight:
    cdef Stream stream
    cdef uint32_t request
    cdef list keys
    cdef list indexes


cdef class Client:
    cdef Requester requester
    cdef list pools
    cdef tuple workers
    cdef readonly tuple seeds
    cdef readonly double timeout
    cdef int64_t timeout_ns
    cdef int64_t views_taken
    cdef readonly bint closed
    cdef int generation
    cdef object lease
    cdef object __weakref__

    cdef int64_t deadline(self, object timeout) except -1
    cdef Stream ask(self, int op, object key, object value, bint plain, object timeout)
    cdef int follow(self, Stream stream) except -1
    cdef object absent(self, Stream stream, int status, object key, object default)
    cdef object failure(self, Stream stream, int status)
    cdef list launch(self, int op, list keys, list values, list wanted, int64_t deadline)
    cdef dict group(self, list keys, list wanted)
    cdef Flight depart(self, int op, int place, list keys, list values, list indexes, int64_t deadline)
    cdef int land(self, Flight flight, list flights, int64_t deadline) except -1
    cdef list collect(self, list flights, list values, object default, list misplaced, int64_t deadline)
    cdef list scatter(self, Flight flight, list values, object default, list misplaced)
    cdef int sort_failures(self, Flight flight, list misplaced, list refusals) except -1
    cdef Stream take(self, int place, int64_t deadline)
    cdef Stream connect(self, int place, int64_t deadline)
    cdef int give_back(self, Stream stream) except -1
    cdef int pause(self, int64_t deadline) except -1
