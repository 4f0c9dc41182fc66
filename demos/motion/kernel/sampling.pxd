from libc.stdint cimport uint64_t


cdef class Sampler:
    cdef uint64_t state
    cdef int joints
    cdef double[::1] lower, upper, start, goal, apart, weight
    cdef double[:, ::1] symmetric
    cdef readonly double direct

    cdef uint64_t word(self) noexcept nogil
    cdef double uniform(self) noexcept nogil
    cdef int below(self, int count) noexcept nogil
    cdef void anywhere(self, double* out) noexcept nogil
    cdef void informed(self, double* out, double bound) noexcept nogil
    cdef void within(self, double* out, double bound) noexcept nogil
    cdef double through(self, const double* q) noexcept nogil
    cdef bint inside(self, const double* q) noexcept nogil
