from libc.stdint cimport int64_t, uint64_t

from anna.kvs.answers cimport Connection
from anna.wire cimport RequestHeader
from cloudburst.cache.flights cimport Flight
from cloudburst.cache.order cimport Slot
from cloudburst.cache.pins cimport Pins


cdef class Running:
    # The 24 bytes by which the executor names its attempt.
    cdef bytes name
    # `anna.commits.Commit`.
    cdef object commit
    cdef int ack
    # How often it was asked what became of the attempt.
    cdef int questions
    cdef list slots
    # In monotonic ns: when it is gone on with, 0 while answers are waited for; until when they are; until when it is tried.
    cdef int64_t due
    cdef int64_t patient_until
    cdef int64_t until


cdef class CacheCommits(Pins):
    cdef dict running
    cdef readonly uint64_t transactions

    cdef int tell(self, Running running, list messages) except -1
    cdef int land_commit(self, Flight flight, uint64_t owner, int status, bytes payload, list finished) except -1
    cdef int conclude(self, Running running, list finished) except -1
    cdef int answer_all(self, Running running, int status, bytes payload, list finished) except -1
    cdef int go_on(self, Running running, list finished) except -1
