"""A growing run of bytes at C level, for frames that are being built or are not complete yet.

The one rule: `size` bytes of `data` are valid, and every writer asks for room first. It is not exposed to Python.
"""

from libc.stdlib cimport free, malloc, realloc

cimport cython

cdef enum:
    CAPACITY_FIRST = 16384
    CAPACITY_KEPT_MAX = 262144


@cython.final
@cython.no_gc
cdef class Buffer:
    """Bytes that grow at the end; not for use from Python."""

    def __cinit__(self):
        self.data = <char*>malloc(CAPACITY_FIRST)
        if self.data is NULL:
            raise MemoryError("no memory for a frame buffer")
        self.capacity = CAPACITY_FIRST
        self.size = 0

    def __dealloc__(self):
        free(self.data)

    cdef int grow(self, Py_ssize_t extra) except -1:
        cdef Py_ssize_t wanted = max(self.capacity * 2, self.size + extra)
        cdef char* moved = <char*>realloc(self.data, wanted)
        if moved is NULL:
            raise MemoryError(f"no memory for a frame of {self.size + extra:,} bytes")
        self.data = moved
        self.capacity = wanted
        return 0

    cdef void shrink(self) noexcept:
        """Empty the buffer, and give memory back when one large frame had made it large."""
        cdef char* moved
        self.size = 0
        if self.capacity > CAPACITY_KEPT_MAX:
            moved = <char*>realloc(self.data, CAPACITY_FIRST)
            if moved is not NULL:
                self.data = moved
                self.capacity = CAPACITY_FIRST
