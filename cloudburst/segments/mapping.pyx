"""A file's bytes in this process's memory, read-only, and the count of a node's segments that its processes share.

The one rule: a mapping lives as long as anybody can see its bytes, through any number of views and arrays, and whatever becomes of the
file's name. Unlike Python's own `mmap` it keeps no descriptor open: a program may hold more arrays than it may open files.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdint cimport int64_t

cimport cython

import os

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t size)
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_POPULATE
    void* MAP_FAILED

cdef extern from * nogil:
    """
    #define count_add(place, more) __atomic_add_fetch((place), (more), __ATOMIC_RELAXED)
    #define count_load(place) __atomic_load_n((place), __ATOMIC_RELAXED)
    #define count_store(place, value) __atomic_store_n((place), (value), __ATOMIC_RELAXED)
    """
    int64_t count_add(int64_t* place, int64_t more)
    int64_t count_load(int64_t* place)
    void count_store(int64_t* place, int64_t value)

LEDGER_BYTES = 4096


@cython.final
@cython.no_gc
cdef class Mapping:
    """All of the open file `fd`, which may be closed afterwards; `populate`: its pages are entered now, not as each is read.

    Offers its bytes as a read-only buffer. Raises OSError.
    """

    cdef void* address
    cdef size_t size

    def __cinit__(self, int fd, size_t size, bint populate=True):
        cdef int flags = MAP_SHARED
        self.address = NULL
        self.size = size
        if populate:
            flags |= MAP_POPULATE
        if size == 0:
            raise ValueError("nothing to map")
        with nogil:
            self.address = mmap(NULL, size, PROT_READ, flags, fd, 0)
        if self.address == MAP_FAILED:
            self.address = NULL
            raise OSError(errno, f"{size:,} bytes cannot be mapped: {os.strerror(errno)}")

    def __dealloc__(self):
        if self.address is not NULL:
            munmap(self.address, self.size)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.size, 1, flags)


@cython.final
@cython.no_gc
cdef class Ledger:
    """How many bytes of segments are in a node's memory, counted in the first bytes of the open file `fd` by whoever makes and removes them.

    A process that is killed between the one and the other leaves the count wrong by a segment; `correct` mends it.
    """

    cdef int64_t* count

    def __cinit__(self, int fd):
        cdef void* address = mmap(NULL, LEDGER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if address == MAP_FAILED:
            self.count = NULL
            raise OSError(errno, f"the count of segments cannot be mapped: {os.strerror(errno)}")
        self.count = <int64_t*>address

    def __dealloc__(self):
        if self.count is not NULL:
            munmap(self.count, 4096)

    @property
    def bytes(self):
        """What is counted now."""
        return max(0, count_load(self.count))

    def take(self, int64_t size, int64_t bound):
        """Count `size` bytes more if all are then within `bound`; return whether they are."""
        if count_add(self.count, size) <= bound:
            return True
        count_add(self.count, -size)
        return False

    def give(self, int64_t size):
        """Count `size` bytes less."""
        if count_add(self.count, -size) < 0:
            count_store(self.count, 0)

    def correct(self, int64_t size):
        """Let the count be `size`, which is what there is."""
        count_store(self.count, size)
