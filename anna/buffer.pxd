from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef class Buffer:
    cdef char* data
    cdef Py_ssize_t size
    cdef Py_ssize_t capacity

    cdef int grow(self, Py_ssize_t extra) except -1
    cdef void shrink(self) noexcept

    cdef inline char* reserve(self, Py_ssize_t extra) except NULL:
        """Make room for `extra` bytes at the end, count them in, and return where they begin."""
        cdef char* place
        if self.size + extra > self.capacity:
            self.grow(extra)
        place = self.data + self.size
        self.size += extra
        return place

    cdef inline int append(self, const char* source, Py_ssize_t size) except -1:
        memcpy(self.reserve(size), source, size)
        return 0
