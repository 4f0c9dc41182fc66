from libc.stdint cimport int64_t, uint32_t

from anna.shared.rings cimport Rings

cdef int processor() noexcept nogil
cdef void give_way() noexcept nogil
cdef void pause() noexcept nogil


cdef class Segment:
    cdef char* base
    cdef Py_ssize_t size
    cdef readonly int memory_fd
    cdef readonly int bell_fd
    cdef readonly uint32_t ring_bytes

    cdef int map(self, uint32_t ring_bytes) except -1
    cdef void ring_bell(self) noexcept nogil
    cdef void silence_bell(self) noexcept nogil
    cdef void wake_client(self) noexcept nogil
    cdef int await_wake(self, uint32_t wanted, int64_t wait_ns) noexcept nogil
