from anna.protocol cimport Outlet, Protocol
from anna.shared.rings cimport Rings
from anna.shared.segment cimport Segment


cdef class RingTransport(Outlet):
    cdef Protocol protocol
    cdef object poller
    cdef object socket
    cdef Segment segment
    cdef Rings rings
    cdef object unsent
    cdef Py_ssize_t unsent_bytes
    cdef Py_ssize_t offset
    cdef bint reading
    cdef bint closing
    # Whether the protocol was told that too much is unsent.
    cdef bint paused
    cdef bint awake
    cdef bint serving
    # What was moved and not told to the client yet: DATA, ROOM.
    cdef int moved

    cdef int flush(self) except -1
    cdef bint serve(self) except -1
    cdef int receive(self, Py_ssize_t size) except -1
    cdef int tell(self) except -1
    cdef bint falls_asleep(self) except -1
    cdef int accuse(self) except -1
