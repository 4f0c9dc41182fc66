from libc.stdint cimport uint32_t, uint64_t

from anna.kvs.answers cimport Connection
from anna.kvs.member cimport Member
from anna.wire cimport RequestHeader


cdef class Hold:
    # The hash of its key; of several that wait for the same, of the first.
    cdef uint64_t position
    cdef uint32_t round
    cdef tuple peers
    cdef int need
    cdef bint usual
    cdef bint room
    cdef uint32_t log_round
    cdef uint64_t epoch
    cdef Py_ssize_t begin
    # Those behind it that wait for the same, by how far behind; None: there are none.
    cdef list alike

    @staticmethod
    cdef Hold for_room()
    cdef bint same(self, Hold other)


cdef class Held(Member):
    cdef dict holding
    cdef readonly list released
    cdef bint logging
    cdef bint disk_full

    cdef int check_copies(self, const char* key, Py_ssize_t key_bytes, int ack) except -1
    cdef int lasting_copies(self, const char* key, Py_ssize_t key_bytes) noexcept
    cdef int acknowledge(self, RequestHeader* head, const char* key, int status) except -1
    cdef bint waits_already(self) except -1
    cdef Hold hold_for(self, const char* key, Py_ssize_t key_bytes, int copies, bint durable, bint usual)
    cdef int reply_held(self, RequestHeader* head, int status, int copies, int durable, bytes payload, Hold hold) except -1
    cdef int check_room(self) except -1
    cdef bint is_crowded(self) except -1
    cdef bint holds_no_more(self, Hold hold) except -1
    cdef int tell_fewer(self, Connection connection, Hold hold) except -1
    cdef bint is_hopeless(self, Hold hold) except -1
    cdef int give_up(self, Connection connection, str why) except -1
