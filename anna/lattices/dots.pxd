from libc.stdint cimport uint64_t

from anna.layout cimport Reader

cdef enum:
    DOT_BYTES = 16
    INTERVAL_BYTES = 24

cdef struct Interval:
    uint64_t writer
    uint64_t first
    uint64_t last

cdef class Dots:
    cdef Interval* spans
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity

    cpdef Dots copy(self)
    cdef bint has(self, uint64_t writer, uint64_t number) noexcept
    cdef uint64_t last_of(self, uint64_t writer) noexcept
    cdef uint64_t total(self) noexcept
    cdef bint insert(self, uint64_t writer, uint64_t first, uint64_t last) except -1
    cdef bint unite(self, Dots other) except -1
    cdef bint within(self, Dots other) noexcept
    cdef bint same(self, Dots other) noexcept
    cdef Py_ssize_t size(self) noexcept
    cdef char* write(self, char* target) noexcept

cdef Dots take_dots(Reader* reader, Py_ssize_t intervals_max)
cdef Dots dots_of(object source)

cdef struct Tenure:
    uint64_t writer
    uint64_t since

cdef uint64_t begin(Tenure* tenure, uint64_t stamp, uint64_t writer) noexcept
cdef uint64_t next_number(Dots mine, Dots seen, uint64_t since, uint64_t stamp, uint64_t writer, uint64_t count) except 0
