from libc.stdint cimport int64_t

from anna.buffer cimport Buffer
from anna.shared.caller cimport Caller
from anna.wire cimport ReplyHeader

cdef int64_t now_ns() noexcept nogil
cdef int fork_generation() noexcept


cdef class Stream:
    cdef readonly str address
    cdef object socket
    cdef int fd
    cdef int generation
    cdef Buffer out
    cdef Buffer incoming
    cdef Py_ssize_t begin
    cdef int64_t timeout_ns
    cdef int64_t used_ns
    # Of whom it was taken: the worker at `place` of `workers`.
    cdef int place
    cdef tuple workers
    cdef ReplyHeader reply
    cdef const char* payload
    cdef Py_ssize_t payload_bytes
    cdef bytes tail
    cdef bytes bulk
    cdef bint bulk_wanted
    # Memory shared with the worker that is used instead of the socket; None: the socket is used.
    cdef Caller caller
    # What encrypts what is sent by the socket and decrypts what arrives (`anna.sealing`); None: nothing does.
    cdef object seal
    # After how many more requests that memory is asked for; negative: never.
    cdef int requests_left

    cdef int send(self, int64_t deadline_ns) except -1
    cdef int push(self, const char* data, Py_ssize_t size, int flags, int64_t deadline_ns) except -1
    cdef ssize_t pull(self, char* place, Py_ssize_t room, int64_t deadline_ns) except -1
    cdef int push_plain(self, const char* data, Py_ssize_t size, int flags, int64_t deadline_ns) except -1
    cdef ssize_t pull_plain(self, char* place, Py_ssize_t room, int64_t deadline_ns) except -1
    cdef ssize_t unseal(self, char* place, Py_ssize_t room) except -1
    cdef int receive_bulk(self, Py_ssize_t total, int64_t deadline_ns) except -1
    cdef int receive(self, int64_t deadline_ns) except -1
    cdef bint has_come(self) except -1
    cdef int make_room(self, Py_ssize_t wanted) except -1
    cdef int fill(self, Py_ssize_t wanted, int64_t deadline_ns) except -1
    cdef int arm(self, int64_t left_ns) except -1
    cdef int use_memory(self, int64_t deadline_ns) except -1
    cdef bint stale(self, int64_t now) noexcept
    cdef bint has_begun(self) noexcept
