"""A blocking connection to one worker: the sync client's driver.

The one rule: a call on it ends by its deadline. The kernel keeps the time (SO_RCVTIMEO), so an answer costs one `send` and one `recv`
and no poll. A stream that failed in any way is dropped, never used again: a late answer cannot meet the next request. A stream
belongs to the process that opened it; after a fork the child opens its own.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy, memmove, strerror

cimport cython
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from anna.buffer cimport Buffer
from anna.requester cimport check_reply
from anna.wire cimport HEADER_BYTES, ReplyHeader

import os
import socket as sockets

from anna.address import UnixAddress, parse_address
from anna.errors import ConnectionLost, RequestTimeout

cdef extern from "sys/socket.h" nogil:
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags)
    ssize_t c_recv "recv"(int fd, void* data, size_t size, int flags)
    int c_setsockopt "setsockopt"(int fd, int level, int option, const void* value, unsigned int size)
    int SOL_SOCKET, SO_RCVTIMEO, SO_SNDTIMEO, MSG_NOSIGNAL, MSG_PEEK, MSG_DONTWAIT

cdef extern from "sys/time.h":
    cdef struct timeval:
        long tv_sec
        long tv_usec

cdef enum:
    RECEIVED_BYTES_FIRST = 65536
    IDLE_NS = 20_000_000

cdef int _generation = 0


def _forked():
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_forked)


cdef int fork_generation() noexcept:
    """Return a number that differs between this process and the one it was forked from."""
    return _generation


cdef int64_t now_ns() noexcept nogil:
    """Return the monotonic clock."""
    cdef timespec moment
    clock_gettime(CLOCK_MONOTONIC, &moment)
    return <int64_t>moment.tv_sec * 1_000_000_000 + moment.tv_nsec


@cython.final
cdef class Stream:
    """A connected socket with what is to be sent (`out`) and what has arrived. Raises OSError when it cannot connect."""

    def __init__(self, str address, int64_t deadline_ns):
        place = parse_address(address)
        cdef double left_s = (deadline_ns - now_ns()) / 1e9
        if left_s <= 0:
            raise RequestTimeout(f"no time was left to connect to {address}")
        self.address = address
        if isinstance(place, UnixAddress):
            self.socket = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
            target = place.path
        else:
            family = sockets.AF_INET6 if ":" in place.host else sockets.AF_INET
            self.socket = sockets.socket(family, sockets.SOCK_STREAM)
            self.socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
            target = (place.host, place.port)
        try:
            self.socket.settimeout(left_s)
            self.socket.connect(target)
            self.socket.settimeout(None)
        except BaseException:
            self.socket.close()
            raise
        self.fd = self.socket.fileno()
        self.generation = _generation
        self.out = Buffer()
        self.incoming = Buffer()
        self.begin = 0
        self.timeout_ns = 0
        self.pending = 0
        self.used_ns = now_ns()
        self.arm(max(deadline_ns - self.used_ns, 1000))

    def close(self):
        """Close the socket; closing twice is harmless."""
        self.fd = -1
        self.socket.close()

    cdef bint stale(self) noexcept:
        """Whether the peer is known to be gone, or the stream is another process's. Asks the kernel only after a pause."""
        cdef char byte
        cdef ssize_t got
        if self.generation != _generation:
            return True
        if now_ns() - self.used_ns < IDLE_NS:
            return False
        got = c_recv(self.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT)
        # Bytes that nobody asked for are as bad as an end: both mean that this stream is out of step.
        return not (got < 0 and errno == EAGAIN)

    cdef int arm(self, int64_t left_ns) except -1:
        """Let the kernel give up a `send` or `recv` after `left_ns`; no system call when that was asked before."""
        cdef timeval limit
        if left_ns == self.timeout_ns:
            return 0
        limit.tv_sec = left_ns // 1_000_000_000
        limit.tv_usec = max((left_ns % 1_000_000_000) // 1000, 1 if limit.tv_sec == 0 else 0)
        c_setsockopt(self.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit))
        c_setsockopt(self.fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit))
        self.timeout_ns = left_ns
        return 0

    cdef int send(self, int64_t deadline_ns) except -1:
        """Send all of `out`. Raises RequestTimeout or ConnectionLost."""
        cdef Py_ssize_t sent = 0
        cdef ssize_t count
        cdef Py_ssize_t size = self.out.size
        cdef char* data = self.out.data
        while sent < size:
            with nogil:
                count = c_send(self.fd, data + sent, size - sent, MSG_NOSIGNAL)
            if count >= 0:
                sent += count
                if sent < size:
                    self.check_time(deadline_ns)
            elif errno == EINTR:
                PyErr_CheckSignals()
                self.check_time(deadline_ns)
            elif errno == EAGAIN:
                self.check_time(deadline_ns)
            else:
                raise ConnectionLost(f"the connection to {self.address} broke while sending: {strerror(errno).decode()}")
        self.out.shrink()
        return 0

    cdef int receive(self, int64_t deadline_ns) except -1:
        """Wait for one whole answer; it is in `reply`, `payload` and `payload_bytes` until the next call."""
        cdef Py_ssize_t total
        if self.begin == self.incoming.size:
            self.begin = 0
            self.incoming.shrink()
        if self.incoming.size - self.begin < HEADER_BYTES:
            self.fill(HEADER_BYTES, deadline_ns)
        memcpy(&self.reply, self.incoming.data + self.begin, HEADER_BYTES)
        total = check_reply(&self.reply)
        if self.incoming.size - self.begin < total:
            self.fill(total, deadline_ns)
        self.payload = self.incoming.data + self.begin + HEADER_BYTES
        self.payload_bytes = total - HEADER_BYTES
        self.begin += total
        return 0

    cdef int fill(self, Py_ssize_t wanted, int64_t deadline_ns) except -1:
        """Receive until `wanted` bytes of the present answer are here."""
        cdef Buffer incoming = self.incoming
        cdef ssize_t count
        cdef char* place
        cdef Py_ssize_t room
        if self.begin and incoming.capacity - self.begin < wanted:
            memmove(incoming.data, incoming.data + self.begin, incoming.size - self.begin)
            incoming.size -= self.begin
            self.begin = 0
        while incoming.size - self.begin < wanted:
            if incoming.capacity - self.begin < wanted or incoming.capacity < RECEIVED_BYTES_FIRST:
                incoming.grow(max(wanted, RECEIVED_BYTES_FIRST))
            place = incoming.data + incoming.size
            room = incoming.capacity - incoming.size
            with nogil:
                count = c_recv(self.fd, place, room, 0)
            if count > 0:
                incoming.size += count
                if incoming.size - self.begin < wanted:
                    self.check_time(deadline_ns)
            elif count == 0:
                raise ConnectionLost(f"{self.address} closed the connection before it answered")
            elif errno == EINTR:
                PyErr_CheckSignals()
                self.check_time(deadline_ns)
            elif errno == EAGAIN:
                self.check_time(deadline_ns)
            else:
                raise ConnectionLost(f"the connection to {self.address} broke: {strerror(errno).decode()}")
        return 0

    def check_time(self, int64_t deadline_ns):
        """Let the kernel wait only for what is left. Raises RequestTimeout when nothing is."""
        cdef int64_t left_ns = deadline_ns - now_ns()
        if left_ns <= 0:
            raise RequestTimeout(f"{self.address} did not answer by the deadline")
        self.arm(left_ns)
