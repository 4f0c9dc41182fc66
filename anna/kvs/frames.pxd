from libc.stdint cimport int64_t, uint64_t

from anna.kvs.answers cimport Answers, Connection
from anna.kvs.store cimport Store
from anna.wire cimport RequestHeader


cdef class Frames(Answers):
    cdef readonly Store store
    # Monotonic ns of what is being handled.
    cdef int64_t now
    # The holds of answers that were just written and have to wait (`anna.kvs.held`).
    cdef list deferred
    cdef readonly uint64_t frames
    cdef readonly uint64_t refused

    cpdef object receive(self, Connection connection, bytes data, int64_t monotonic_ns)
    cdef int absorb(self, Connection connection, bytes data, int64_t monotonic_ns) except -1
    cdef int absorb_at(self, Connection connection, const char* place, Py_ssize_t left, int64_t monotonic_ns) except -1
    cdef int announce(self, const char* place, Py_ssize_t left) noexcept
    cdef const char* complete(self, Connection connection, const char* data, Py_ssize_t* size) except? NULL
    cdef int begin_bulk(self, Connection connection, const char* frame, Py_ssize_t size, Py_ssize_t total) except -1
    cdef Py_ssize_t bulk_prefix(self, RequestHeader* head) noexcept
    cdef const char* fill_bulk(self, Connection connection, const char* data, Py_ssize_t* size) except NULL
    cdef int handle(self, Connection connection, const char* frame, Py_ssize_t size) except -1
    cdef int put_bulk(self, RequestHeader* head, const char* key, uint64_t* place, bytes bulk) except -1
    cdef int hear_peer(self, Connection connection, RequestHeader* head, bytes payload, bytes fragment) except -1
    cdef int hold_back(self, Connection connection) except -1
