"""The memory of two rings, and how each side wakes the other: the system calls beside `rings`.

The one rule: who made it can trust its size. A worker makes the memory (a memfd that is sealed, so that nobody can cut it off under it) and
the bell (an eventfd); a client gets both from it. The bell wakes the worker, whose loop polls descriptors; the client sleeps on the flag in the
memory itself (a futex). The memory lives as long as somebody refers to this object, so that a stream may be closed while
another thread still waits on it.
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from anna.shared.rings cimport AT_CLIENT_SLEEPS, AT_RING_BYTES, AT_VERSION, LAYOUT_VERSION, Rings, load, store

import fcntl
import os

from anna.errors import ProtocolError
from anna.shared.rings import memory_bytes

cdef extern from *:
    """
    #include <linux/futex.h>
    #include <sched.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>
    static inline int anna_futex(void* word, int op, uint32_t value, const struct timespec* wait) {
        return (int)syscall(SYS_futex, word, op, value, wait, NULL, 0);
    }
    static inline int anna_futex_wait(void* word, uint32_t value, int64_t wait_ns) {
        struct timespec wait = {wait_ns / 1000000000, wait_ns % 1000000000};
        return anna_futex(word, FUTEX_WAIT, value, &wait);
    }
    static inline void anna_futex_wake(void* word) { anna_futex(word, FUTEX_WAKE, 1, NULL); }
    /* An eventfd's flags belong to everybody who has it: asked like this, a read never blocks, whatever they were set to. */
    static inline void anna_drain(int fd) {
        uint64_t count;
        struct iovec place = {&count, sizeof count};
        ssize_t ignored = preadv2(fd, &place, 1, -1, RWF_NOWAIT);
        (void)ignored;
    }
    static inline void anna_pause(void) {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ __volatile__("yield");
    #endif
    }
    """
    int futex_wait "anna_futex_wait"(void* word, uint32_t value, int64_t wait_ns) noexcept nogil
    void futex_wake "anna_futex_wake"(void* word) noexcept nogil
    void drain "anna_drain"(int fd) noexcept nogil
    void c_pause "anna_pause"() noexcept nogil
    int sched_getcpu() noexcept nogil
    int sched_yield() noexcept nogil
    void* mmap(void* place, size_t size, int protection, int flags, int fd, long offset) noexcept nogil
    int munmap(void* place, size_t size) noexcept nogil
    ssize_t c_write "write"(int fd, const void* data, size_t size) noexcept nogil
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void* MAP_FAILED

cdef int SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def rings_wanted():
    """Whether memory may be shared at all: unless the environment says ANNA_RINGS=0."""
    return os.environ.get("ANNA_RINGS") != "0"


cdef int processor() noexcept nogil:
    """Return the number of the processor on which this runs."""
    return sched_getcpu()


cdef void give_way() noexcept nogil:
    """Let others run on this processor, if there are any that want to."""
    sched_yield()


cdef void pause() noexcept nogil:
    """Let a few dozen cycles pass."""
    c_pause()


cdef class Segment:
    """The shared memory of one connection, and its bell. Made by `make` at the worker and by `take_up` at the client."""

    def __cinit__(self):
        self.memory_fd = self.bell_fd = -1

    @staticmethod
    def make(ring_bytes):
        """Return new memory for two rings, all zeros but for what it says of itself. Raises OSError."""
        cdef Segment segment = Segment()
        segment.memory_fd = os.memfd_create("anna-rings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(segment.memory_fd, memory_bytes(ring_bytes))
        fcntl.fcntl(segment.memory_fd, fcntl.F_ADD_SEALS, SEALS)
        segment.bell_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        segment.map(ring_bytes)
        store(segment.base + AT_VERSION, LAYOUT_VERSION)
        store(segment.base + AT_RING_BYTES, ring_bytes)
        return segment

    @staticmethod
    def take_up(int memory_fd, int bell_fd):
        """Return what another process made; the descriptors belong to it from now on. Raises ProtocolError when it is nothing of the kind."""
        cdef Segment segment = Segment()
        segment.memory_fd, segment.bell_fd = memory_fd, bell_fd
        size = os.fstat(memory_fd).st_size
        try:
            seals = fcntl.fcntl(memory_fd, fcntl.F_GET_SEALS)
        except OSError:
            seals = 0
        head = os.pread(memory_fd, 8, 0)
        version, ring_bytes = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
        if seals & SEALS != SEALS or version != LAYOUT_VERSION:
            raise ProtocolError(f"the worker's memory has layout {version} and seals {seals}; this client knows layout {LAYOUT_VERSION}")
        if size != memory_bytes(ring_bytes):
            raise ProtocolError(f"the worker's memory has {size:,} bytes; two rings of {ring_bytes:,} were promised")
        segment.map(ring_bytes)
        segment.forget_memory_fd()
        return segment

    cdef int map(self, uint32_t ring_bytes) except -1:
        cdef Py_ssize_t size = memory_bytes(ring_bytes)
        cdef void* base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self.memory_fd, 0)
        if base == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self.base, self.size, self.ring_bytes = <char*>base, size, ring_bytes
        return 0

    def forget_memory_fd(self):
        """Close the memory's descriptor: it is mapped."""
        fd, self.memory_fd = self.memory_fd, -1
        if fd >= 0:
            os.close(fd)

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)
        for fd in (self.memory_fd, self.bell_fd):
            if fd >= 0:
                os.close(fd)

    @property
    def layout(self):
        """The version of what is where in the memory."""
        return LAYOUT_VERSION

    def rings(self, bint worker):
        """Return one side's view."""
        cdef Rings rings = Rings.__new__(Rings)
        rings.look(self.base, self.ring_bytes, worker)
        rings.memory = self
        return rings

    cdef void ring_bell(self) noexcept nogil:
        """Wake the worker. A bell that cannot be rung has been already."""
        cdef uint64_t one = 1
        c_write(self.bell_fd, &one, sizeof(one))

    cdef void silence_bell(self) noexcept nogil:
        """Forget that the bell was rung."""
        drain(self.bell_fd)

    cdef void wake_client(self) noexcept nogil:
        """Wake the client; its flag was cleared before."""
        futex_wake(self.base + AT_CLIENT_SLEEPS)

    cdef int await_wake(self, uint32_t wanted, int64_t wait_ns) noexcept nogil:
        """Sleep, as the client, while its flag is `wanted`, at most so long; return 0, or the error number: EAGAIN, EINTR, ETIMEDOUT."""
        return errno if futex_wait(self.base + AT_CLIENT_SLEEPS, wanted, wait_ns) < 0 else 0
