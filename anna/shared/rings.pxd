from libc.stdint cimport uint32_t

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint32_t anna_load(const void* p) { return __atomic_load_n((const uint32_t*)p, __ATOMIC_ACQUIRE); }
    static inline void anna_store(void* p, uint32_t value) { __atomic_store_n((uint32_t*)p, value, __ATOMIC_RELEASE); }
    static inline uint32_t anna_swap(void* p, uint32_t value) { return __atomic_exchange_n((uint32_t*)p, value, __ATOMIC_SEQ_CST); }
    static inline void anna_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    uint32_t load "anna_load"(const void* place) noexcept nogil
    void store "anna_store"(void* place, uint32_t value) noexcept nogil
    uint32_t swap "anna_swap"(void* place, uint32_t value) noexcept nogil
    void fence "anna_fence"() noexcept nogil

cdef enum:
    LAYOUT_VERSION = 1
    PAGE_BYTES = 4096
    # What a sleeper waits for, and what the other side has moved.
    DATA = 1
    ROOM = 2

# Where what is in the page. Each group is written by one side only, and has cache lines of its own.
cdef enum Place:
    AT_VERSION = 0
    AT_RING_BYTES = 4
    # Written by the client.
    AT_REQUESTS_TAIL = 64
    AT_CLIENT_CPU = 68
    AT_REPLIES_HEAD = 128
    # Written by the worker.
    AT_REQUESTS_HEAD = 192
    AT_REPLIES_TAIL = 256
    AT_WORKER_CPU = 260
    # Set by who sleeps, cleared by who wakes it.
    AT_CLIENT_SLEEPS = 320
    AT_WORKER_SLEEPS = 384


cdef class Rings:
    cdef object memory
    cdef readonly uint32_t ring_bytes
    cdef char* base
    cdef char* outgoing
    cdef char* incoming
    # Own copies of what this side writes: what stands in the page is never read back.
    cdef uint32_t tail
    cdef uint32_t head
    cdef char* own_tail
    cdef char* own_head
    cdef char* their_tail
    cdef char* their_head
    cdef char* own_sleep
    cdef char* their_sleep
    cdef char* own_cpu
    cdef char* their_cpu
    cdef uint32_t cpu

    cdef int look(self, char* base, uint32_t ring_bytes, bint worker) except -1
    cdef Py_ssize_t readable(self) noexcept nogil
    cdef Py_ssize_t room(self) noexcept nogil
    cdef Py_ssize_t put(self, const char* data, Py_ssize_t size) noexcept nogil
    cdef Py_ssize_t take(self, char* place, Py_ssize_t room) noexcept nogil
    cdef const char* front(self, Py_ssize_t* size) noexcept nogil
    cdef void skip(self, Py_ssize_t size) noexcept nogil
    cdef bint sleep(self, uint32_t wanted) noexcept nogil
    cdef void wake(self) noexcept nogil
    cdef bint must_wake(self, uint32_t moved) noexcept nogil
    cdef void stand_on(self, int cpu) noexcept nogil
    cdef bint beside(self) noexcept nogil
