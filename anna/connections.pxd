from libc.stdint cimport int64_t, uint32_t

from anna.requester cimport Requester
from anna.stream cimport Stream


cdef class Connections:
    cdef Requester requester
    cdef list pools
    cdef tuple workers
    cdef readonly tuple seeds
    cdef readonly double timeout
    cdef int64_t timeout_ns
    cdef int64_t share_ns
    cdef int64_t refreshed_ns
    cdef readonly bint closed
    cdef int generation
    cdef object lease
    # Those with which TCP streams are under TLS; None: they are plain.
    cdef readonly object keys
    cdef object __weakref__

    cdef int64_t deadline(self, object timeout) except -1
    cdef int64_t share(self, int64_t deadline) noexcept
    cdef int64_t reach(self, int64_t deadline) except? -1
    cdef int64_t refresh_limit(self, int64_t deadline) except? -1
    cdef Stream take(self, int place, int64_t reach, int64_t limit)
    cdef Stream improve(self, Stream stream, int place, int64_t reach, int64_t limit)
    cdef Stream connect(self, int place, int64_t deadline)
    cdef bint credit(self, Stream stream) except -1
    cdef int answered(self, Stream stream, key) except -1
    cdef int suspect(self, Stream stream) except -1
    cdef int give_back(self, Stream stream) except -1
    cdef int follow(self, Stream stream) except -1
    cdef object advance(self, object route, int64_t deadline, object error)
    cdef object failure(self, Stream stream, int status)
    cdef int look_again(self) except -1
