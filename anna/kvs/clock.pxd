from libc.stdint cimport int64_t, uint64_t

cdef enum:
    COUNTER_BITS = 10
    COUNTER_MASK = 1023


cdef class Clock:
    cdef int64_t offset_us
    cdef int64_t physical_us
    cdef readonly uint64_t last

    cdef void advance(self, int64_t monotonic_us) noexcept
    cdef bint observe(self, uint64_t stamp) noexcept
    cdef bint disbelieves(self, uint64_t stamp) noexcept
    cdef void follow(self, uint64_t stamp) noexcept
    cdef void pull(self, uint64_t stamp) noexcept
    cdef uint64_t epoch(self) noexcept
    cdef uint64_t reading(self) noexcept
    cdef uint64_t tick(self) noexcept

cdef uint64_t epoch_of(uint64_t stamp) noexcept
cdef uint64_t epoch_begin(uint64_t epoch) noexcept
