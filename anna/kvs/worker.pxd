from libc.stdint cimport uint64_t

from anna.kvs.answers cimport Connection
from anna.kvs.marks cimport Marks
from anna.wire cimport RequestHeader


cdef class Worker(Marks):
    cdef readonly uint64_t started_us
    cdef readonly uint64_t peer_frames

    cdef int dispatch(self, Connection connection, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1
    cdef int change_subscription(self, Connection connection, RequestHeader* head, const char* key, const char* payload,
                                 Py_ssize_t size) except -1
    cdef bint has_still(self, RequestHeader* head, const char* key, const char* known) except -1
    cdef int replicate(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
    cdef int hear_frame(self, Connection connection, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
    cdef bint due(self) except -1


cdef bint reads_only(int op) noexcept
