from libc.stdint cimport int64_t

from anna.shared.rings cimport Rings


cdef class Patience:
    cdef int64_t most_ns
    cdef int64_t rest_ns
    cdef int64_t rest_until

    cdef bint pays(self, int64_t now) noexcept nogil
    cdef void count(self, int64_t now, int64_t cost, bint paid) noexcept nogil
    cdef bint stay(self, Rings rings, int64_t waited) noexcept nogil
