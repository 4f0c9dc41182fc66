"""The client's side of a connection through shared memory: what `send` and `recv` are for a socket.

The one rule: it behaves as a socket that waits until its deadline. The Unix socket of the connection stays open beside it and carries nothing any more: that
it ends is how either side learns of the other's end. A sleep is cut into slices, and after each the socket is looked at.
"""

from libc.errno cimport EINTR, ETIMEDOUT, EAGAIN, errno
from libc.stdint cimport int64_t, uint32_t
from cpython.exc cimport PyErr_CheckSignals
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from anna.shared.patience cimport Patience
from anna.shared.rings cimport DATA, ROOM
from anna.shared.segment cimport Segment, processor

from anna.config import RING_LOOK_NS, RING_STAY_NS
from anna.errors import ConnectionLost, RequestTimeout

cdef extern from "sys/socket.h" nogil:
    ssize_t c_recv "recv"(int fd, void* data, size_t size, int flags)
    int MSG_PEEK, MSG_DONTWAIT

cdef int64_t LOOK_NS = RING_LOOK_NS


cdef int64_t now_ns() noexcept nogil:
    cdef timespec moment
    clock_gettime(CLOCK_MONOTONIC, &moment)
    return <int64_t>moment.tv_sec * 1_000_000_000 + moment.tv_nsec


cdef class Caller:
    """Rings that were taken up for the Unix socket `fd` to `address`."""

    def __init__(self, Segment segment, int fd, str address):
        self.segment = segment
        self.rings = segment.rings(False)
        self.patience = Patience(RING_STAY_NS)
        self.fd = fd
        self.address = address

    cdef int push(self, const char* data, Py_ssize_t size, bint more, int64_t deadline_ns) except -1:
        """Send `size` bytes; with `more`, what comes next is about to be sent, and the worker need not hurry. Raises ConnectionLost, RequestTimeout."""
        cdef Py_ssize_t count
        self.rings.stand_on(processor())
        while size:
            count = self.rings.put(data, size)
            if count < 0:
                raise ConnectionLost(f"{self.address} took what was never sent to it")
            data += count
            size -= count
            if not (more and size == 0) and self.rings.must_wake(DATA):
                self.segment.ring_bell()
            if size:
                self.wait(ROOM, deadline_ns)
        return 0

    cdef ssize_t pull(self, char* place, Py_ssize_t room, int64_t deadline_ns) except -1:
        """Receive some bytes, at least one. Raises ConnectionLost, RequestTimeout."""
        cdef Py_ssize_t count
        while True:
            count = self.rings.take(place, room)
            if count > 0:
                if self.rings.must_wake(ROOM):
                    self.segment.ring_bell()
                return count
            if count < 0:
                raise ConnectionLost(f"{self.address} sent more than a ring holds")
            self.wait(DATA, deadline_ns)

    cdef bint is_quiet(self) noexcept nogil:
        """Whether nothing has come."""
        return self.rings.readable() == 0

    cdef bint is_there(self, uint32_t wanted) noexcept nogil:
        return self.rings.readable() != 0 if wanted == DATA else self.rings.room() != 0

    cdef int wait(self, uint32_t wanted, int64_t deadline_ns) except -1:
        """Wait for DATA or ROOM, perhaps not until it is there. Raises ConnectionLost, RequestTimeout."""
        cdef int problem = 0
        cdef int64_t left
        cdef ssize_t got
        cdef char byte
        with nogil:
            if self.stay_awake(wanted):
                return 0
            if self.rings.sleep(wanted):
                left = min(deadline_ns - now_ns(), LOOK_NS)
                problem = self.segment.await_wake(wanted, left) if left > 0 else ETIMEDOUT
                self.rings.wake()
        if self.is_there(wanted):
            return 0
        if problem == EINTR:
            PyErr_CheckSignals()
        if problem == ETIMEDOUT:
            got = c_recv(self.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT)
            # What was sent before the end has come before it, too.
            if not (got < 0 and errno == EAGAIN) and not self.is_there(wanted):
                raise ConnectionLost(f"{self.address} closed the connection before it answered")
        if now_ns() >= deadline_ns and not self.is_there(wanted):
            raise RequestTimeout(f"{self.address} did not answer by the deadline")
        return 0

    cdef bint stay_awake(self, uint32_t wanted) noexcept nogil:
        """Stay awake for a moment, if that pays; whether what is wanted has come."""
        cdef int64_t begin = now_ns()
        cdef int64_t now = begin
        if not self.patience.pays(begin):
            return False
        while now - begin <= self.patience.most_ns:
            self.patience.stay(self.rings, now - begin)
            now = now_ns()
            if self.is_there(wanted):
                self.patience.count(now, now - begin, True)
                return True
        self.patience.count(now, now - begin, False)
        return self.is_there(wanted)
