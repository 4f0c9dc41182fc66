from libc.stdint cimport uint64_t

from anna.kvs.answers cimport Connection
from anna.kvs.worker cimport Worker


cdef class Outlet:
    cdef Py_ssize_t put(self, const char* data, Py_ssize_t size) except -1


cdef class Protocol:
    cdef object server
    cdef Worker worker
    cdef readonly Connection connection
    cdef readonly object transport
    # Where answers go instead of the socket, once there is shared memory.
    cdef Outlet outlet
    cdef int fd
    cdef bint local
    # Whether what is sent is encrypted on its way: the transport does that.
    cdef bint sealed
    cdef bint buffered
    # Whether the loop's buffer is as full as it may be.
    cdef bint unread
    # How many sweeps have seen the frame that has begun to arrive and is not whole; -1: there is none.
    cdef int sweeps

    cdef int answer(self, const char* data, Py_ssize_t size) except -1
    cdef bint send_at_once(self, const char* data, Py_ssize_t size) except -1
    cdef bint begins_rings(self, bytes data) except -1
