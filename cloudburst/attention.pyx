"""Staying awake for a moment, for what will be there before a sleep and a wake-up would be over.

A warm call of a short function is answered in less time than it takes to put a processor to sleep and to wake it, on a
virtual machine several times less. The one rule: who stays awake offers the processor to others between its looks, and
sleeps at once where staying awake has been in vain (`anna.shared.patience`).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t

from anna.shared.patience cimport Patience
from anna.shared.segment cimport give_way
from cloudburst.page cimport clock_us

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* place, size_t size, int flags)
    int MSG_DONTWAIT

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* ends, unsigned long count, int timeout_ms)
    int POLLIN

cdef enum:
    ROOM = 4096


cdef class Attention:
    """One reader's: `most_us` is the longest that it stays awake."""

    cdef Patience patience

    def __init__(self, int64_t most_us):
        self.patience = Patience(1000 * most_us)

    def receive(self, int fd):
        """Return the next bytes of a socket, at most 4096, if they come soon; None if not, or when the socket has failed."""
        cdef char place[ROOM]
        cdef int64_t begun = 1000 * <int64_t>clock_us()
        cdef int64_t now = begun
        cdef ssize_t got = -1
        if not self.patience.pays(begun):
            return None
        with nogil:
            while True:
                got = recv(fd, place, ROOM, MSG_DONTWAIT)
                now = 1000 * <int64_t>clock_us()
                if got >= 0 or now - begun > self.patience.most_ns or errno not in (EAGAIN, EINTR):
                    break
                give_way()
            self.patience.count(now, now - begun, got >= 0)
        return PyBytes_FromStringAndSize(place, got) if got >= 0 else None

    def stay(self, int fd):
        """Return when a descriptor is readable, or not soon."""
        cdef pollfd end
        cdef int64_t begun = 1000 * <int64_t>clock_us()
        cdef int64_t now = begun
        cdef bint there = False
        if not self.patience.pays(begun):
            return
        end.fd, end.events, end.revents = fd, POLLIN, 0
        with nogil:
            while True:
                there = poll(&end, 1, 0) > 0
                now = 1000 * <int64_t>clock_us()
                if there or now - begun > self.patience.most_ns:
                    break
                give_way()
            self.patience.count(now, now - begun, there)
