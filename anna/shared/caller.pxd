from libc.stdint cimport int64_t, uint32_t

from anna.shared.patience cimport Patience
from anna.shared.rings cimport Rings
from anna.shared.segment cimport Segment


cdef class Caller:
    cdef Segment segment
    cdef Rings rings
    cdef Patience patience
    cdef str address
    cdef int fd

    cdef int push(self, const char* data, Py_ssize_t size, bint more, int64_t deadline_ns) except -1
    cdef ssize_t pull(self, char* place, Py_ssize_t room, int64_t deadline_ns) except -1
    cdef bint is_quiet(self) noexcept nogil
    cdef int wait(self, uint32_t wanted, int64_t deadline_ns) except -1
    cdef bint is_there(self, uint32_t wanted) noexcept nogil
    cdef bint stay_awake(self, uint32_t wanted) noexcept nogil
