from demos.motion.kernel.geometry cimport Checker
from demos.motion.kernel.sampling cimport Sampler


cdef int POINTS


cdef class Polisher:
    cdef Checker checker
    cdef Sampler sampler
    cdef int joints, count
    cdef double margin
    cdef readonly double cost
    cdef double *points
    cdef double *spare
    cdef double *along

    cdef void measure(self) noexcept nogil
    cdef void load(self, const double* points, int count) noexcept nogil
    cdef int step(self) noexcept nogil
    cdef int shortcut(self) noexcept nogil
    cdef int clip(self) noexcept nogil
    cdef int slide(self) noexcept nogil
    cdef int locate(self, double at, double* out) noexcept nogil
    cdef int free_ways(self, const double* points, int first, int last, int* made) noexcept nogil
    cdef bint look(self, const double* points, int first, int last, bint closely, int* made) noexcept nogil
    cdef void splice(self, int first, int last, const double* points, int count) noexcept nogil
    cdef void tidy(self) noexcept nogil
