"""A blocking connection to one worker: the sync client's driver.

The one rule: a call on it ends by its deadline. The kernel keeps the time (SO_RCVTIMEO), so an answer costs one `send` and one `recv`
and no poll. A stream that failed in any way is dropped, never used again: a late answer cannot meet the next request. A stream
belongs to the process that opened it; after a fork the child opens its own. With keys, a TCP stream is under TLS.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy, memmove, memset, strerror

cimport cython
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from anna.buffer cimport Buffer
from anna.codec cimport TAG_BYTES
from anna.requests cimport check_reply
from anna.shared.caller cimport Caller
from anna.wire cimport HEADER_BYTES, LENGTH_BYTES, LWW_HEADER_BYTES, LWW_NUMBER, OP_RINGS, PROTOCOL_VERSION, STATUS_OK, ReplyHeader, RequestHeader

import os
import socket as sockets

from anna.address import UnixAddress, parse_address
from anna.config import RINGS_AFTER_REQUESTS
from anna.errors import ConnectionLost, RequestTimeout
from anna.gate import WANTS_KEYS, wants_keys
from anna.shared.segment import Segment, rings_wanted

cdef extern from "sys/socket.h" nogil:
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags)
    ssize_t c_recv "recv"(int fd, void* data, size_t size, int flags)
    int c_setsockopt "setsockopt"(int fd, int level, int option, const void* value, unsigned int size)
    int SOL_SOCKET, SO_RCVTIMEO, SO_SNDTIMEO, MSG_MORE, MSG_NOSIGNAL, MSG_PEEK, MSG_DONTWAIT

cdef extern from "sys/time.h":
    cdef struct timeval:
        long tv_sec
        long tv_usec

cdef enum:
    RECEIVED_BYTES_FIRST = 65536
    IDLE_NS = 20_000_000
    UNBLOCKING_BYTES_MAX = 16384
    BULK_BYTES_MIN = 32768
    # What stands before a large value: the reply's header, the register's stamp and writer, the value's tag.
    BULK_HEADER_BYTES = HEADER_BYTES + LWW_HEADER_BYTES + 1

cdef int RINGS_AFTER = RINGS_AFTER_REQUESTS
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

    def __init__(self, str address, int64_t deadline_ns, keys=None):
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
            if keys is not None and not isinstance(place, UnixAddress):
                from anna.handshake import shake_hands  # who shows no keys needs no TLS, either

                self.seal = shake_hands(self.socket, keys, address)
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
        self.place = -1
        self.requests_left = RINGS_AFTER if isinstance(place, UnixAddress) and rings_wanted() else -1
        self.used_ns = now_ns()
        self.arm(max(deadline_ns - self.used_ns, 1000))

    def close(self):
        """Close the socket; closing twice is harmless."""
        self.fd = -1
        if self.caller is not None:
            self.caller.fd = -1
        self.socket.close()

    def interrupt(self):
        """Let whoever waits here, in another thread, see the connection end."""
        try:
            self.socket.shutdown(sockets.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    cdef bint has_begun(self) noexcept:
        """Whether a part of an answer is here."""
        return self.incoming.size > self.begin

    cdef bint stale(self, int64_t now) noexcept:
        """Whether the peer is known to be gone, or the stream is another process's. Asks the kernel only after a pause."""
        cdef char byte
        cdef ssize_t got
        if self.generation != _generation:
            return True
        if now - self.used_ns < IDLE_NS:
            return False
        if self.caller is not None and not self.caller.is_quiet():
            return True
        got = c_recv(self.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT)
        # Bytes that nobody asked for are as bad as an end: both mean that this stream is out of step.
        return not (got < 0 and errno == EAGAIN)

    cdef int arm(self, int64_t left_ns) except -1:
        """Let the kernel give up a `send` or `recv` after `left_ns`; no system call when that was asked before."""
        cdef timeval limit
        if left_ns == self.timeout_ns or self.caller is not None:
            return 0
        limit.tv_sec = left_ns // 1_000_000_000
        limit.tv_usec = max((left_ns % 1_000_000_000) // 1000, 1 if limit.tv_sec == 0 else 0)
        c_setsockopt(self.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit))
        c_setsockopt(self.fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit))
        self.timeout_ns = left_ns
        return 0

    cdef int use_memory(self, int64_t deadline_ns) except -1:
        """Ask the worker for memory to share, and use it instead of the socket from now on; it may refuse. Raises OSError, UnavailableError.

        Only while nothing is under way. The answer comes with two descriptors.
        """
        cdef RequestHeader* head
        self.requests_left = -1
        if deadline_ns - now_ns() <= 0:
            raise RequestTimeout(f"no time was left to ask {self.address} for memory to share")
        head = <RequestHeader*>self.out.reserve(HEADER_BYTES)
        memset(head, 0, HEADER_BYTES)
        head.length, head.version, head.op, head.request = HEADER_BYTES - LENGTH_BYTES, PROTOCOL_VERSION, OP_RINGS, 1
        self.send(deadline_ns)
        try:
            data, descriptors, _, _ = sockets.recv_fds(self.socket, RECEIVED_BYTES_FIRST, 2, sockets.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            raise RequestTimeout(f"{self.address} did not answer by the deadline") from None
        self.incoming.append(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        try:
            self.receive(deadline_ns)
            if self.reply.status == STATUS_OK and len(descriptors) == 2:
                taken, descriptors = descriptors, ()
                self.caller = Caller(Segment.take_up(*taken), self.fd, self.address)
            elif self.reply.status == STATUS_OK:
                raise ConnectionLost(f"{self.address} shares memory and did not send it")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return 0

    cdef int send(self, int64_t deadline_ns) except -1:
        """Send all of `out`, then `tail` if there is one. Raises RequestTimeout or ConnectionLost."""
        if self.tail is None:
            self.push(self.out.data, self.out.size, MSG_NOSIGNAL, deadline_ns)
        else:
            self.push(self.out.data, self.out.size, MSG_NOSIGNAL | MSG_MORE, deadline_ns)
            self.push(PyBytes_AS_STRING(self.tail), PyBytes_GET_SIZE(self.tail), MSG_NOSIGNAL, deadline_ns)
            self.tail = None
        self.out.shrink()
        return 0

    cdef int push(self, const char* data, Py_ssize_t size, int flags, int64_t deadline_ns) except -1:
        """Send `size` bytes, whichever way they go."""
        cdef bytes sealed
        if self.caller is not None:
            return self.caller.push(data, size, flags & MSG_MORE, deadline_ns)
        if self.seal is None:
            return self.push_plain(data, size, flags, deadline_ns)
        self.seal.write(PyMemoryView_FromMemory(<char*>data, size, PyBUF_READ))
        if flags & MSG_MORE:
            return 0  # it goes with what comes next
        sealed = self.seal.take()
        return self.push_plain(PyBytes_AS_STRING(sealed), PyBytes_GET_SIZE(sealed), flags, deadline_ns)

    cdef int push_plain(self, const char* data, Py_ssize_t size, int flags, int64_t deadline_ns) except -1:
        """Send `size` bytes by the socket as they are."""
        cdef Py_ssize_t sent = 0
        cdef ssize_t count
        if size <= UNBLOCKING_BYTES_MAX:
            # A small frame nearly always fits the socket's buffer, and then the interpreter's lock is not worth giving up.
            sent = max(c_send(self.fd, data, size, flags | MSG_DONTWAIT), 0)
        while sent < size:
            with nogil:
                count = c_send(self.fd, data + sent, size - sent, flags)
            if count >= 0:
                sent += count
            elif errno == EINTR:
                PyErr_CheckSignals()
            elif errno != EAGAIN:
                raise ConnectionLost(f"the connection to {self.address} broke while sending: {strerror(errno).decode()}")
            if sent < size:
                self.check_time(deadline_ns)
        return 0

    cdef ssize_t pull(self, char* place, Py_ssize_t room, int64_t deadline_ns) except -1:
        """Receive some bytes, at least one, whichever way they come."""
        cdef ssize_t count
        cdef bytes sealed
        if self.caller is not None:
            return self.caller.pull(place, room, deadline_ns)
        if self.seal is None:
            return self.pull_plain(place, room, deadline_ns)
        while True:
            count = self.unseal(place, room)
            if count > 0:
                return count
            sealed = PyBytes_FromStringAndSize(NULL, RECEIVED_BYTES_FIRST)
            count = self.pull_plain(PyBytes_AS_STRING(sealed), RECEIVED_BYTES_FIRST, deadline_ns)
            self.seal.feed(sealed[:count])

    cdef ssize_t unseal(self, char* place, Py_ssize_t room) except -1:
        """Put some of what was said in what has arrived into `place`; 0: more has to arrive."""
        return self.seal.read_into(PyMemoryView_FromMemory(place, room, PyBUF_WRITE))

    cdef ssize_t pull_plain(self, char* place, Py_ssize_t room, int64_t deadline_ns) except -1:
        """Receive some bytes of the socket's, at least one."""
        cdef ssize_t count
        while True:
            with nogil:
                count = c_recv(self.fd, place, room, 0)
            if count > 0:
                return count
            if count == 0:
                if PyBytes_FromStringAndSize(self.incoming.data + self.begin, self.incoming.size - self.begin) == WANTS_KEYS:
                    raise wants_keys(self.address)
                raise ConnectionLost(f"{self.address} closed the connection before it answered")
            if errno == EINTR:
                PyErr_CheckSignals()
            elif errno != EAGAIN:
                raise ConnectionLost(f"the connection to {self.address} broke: {strerror(errno).decode()}")
            self.check_time(deadline_ns)

    cdef int receive(self, int64_t deadline_ns) except -1:
        """Wait for one whole answer; it is in `reply`, `payload` and `payload_bytes` until the next call.

        With `bulk_wanted`, a large register of bytes is received into `bulk`, the value itself, and `payload` is what stands before it.
        """
        cdef Py_ssize_t total
        if self.begin == self.incoming.size:
            self.begin = 0
            self.incoming.shrink()
        if self.incoming.size - self.begin < HEADER_BYTES:
            self.fill(HEADER_BYTES, deadline_ns)
        memcpy(&self.reply, self.incoming.data + self.begin, HEADER_BYTES)
        total = check_reply(&self.reply)
        self.payload_bytes = total - HEADER_BYTES
        if self.bulk_wanted and total > BULK_BYTES_MIN and self.reply.status == STATUS_OK and self.reply.type == LWW_NUMBER:
            self.fill(BULK_HEADER_BYTES, deadline_ns)
            if self.incoming.data[self.begin + BULK_HEADER_BYTES - 1] == TAG_BYTES:
                return self.receive_bulk(total, deadline_ns)
        if self.incoming.size - self.begin < total:
            self.fill(total, deadline_ns)
        self.payload = self.incoming.data + self.begin + HEADER_BYTES
        self.begin += total
        return 0

    cdef bint has_come(self) except -1:
        """Take in what has arrived, without waiting; return whether `receive` has a whole answer. Not with shared memory. Raises ConnectionLost."""
        cdef Buffer incoming = self.incoming
        cdef Py_ssize_t wanted
        cdef ssize_t count
        cdef bytes sealed
        while True:
            wanted = HEADER_BYTES
            if incoming.size - self.begin >= HEADER_BYTES:
                memcpy(&self.reply, incoming.data + self.begin, HEADER_BYTES)
                wanted = check_reply(&self.reply)
                if incoming.size - self.begin >= wanted:
                    return True
            self.make_room(wanted)
            if self.seal is not None:
                count = self.unseal(incoming.data + incoming.size, incoming.capacity - incoming.size)
                if count > 0:
                    incoming.size += count
                    continue
                sealed = PyBytes_FromStringAndSize(NULL, RECEIVED_BYTES_FIRST)
                count = c_recv(self.fd, PyBytes_AS_STRING(sealed), RECEIVED_BYTES_FIRST, MSG_DONTWAIT)
                if count > 0:
                    self.seal.feed(sealed[:count])
                    continue
            else:
                count = c_recv(self.fd, incoming.data + incoming.size, incoming.capacity - incoming.size, MSG_DONTWAIT)
            if count > 0:
                incoming.size += count
            elif count < 0 and errno == EAGAIN:
                return False
            elif count == 0 or errno != EINTR:
                raise ConnectionLost(f"{self.address} closed the connection")

    cdef int receive_bulk(self, Py_ssize_t total, int64_t deadline_ns) except -1:
        """Receive the rest of a large answer straight into the bytes that the caller will get."""
        cdef Py_ssize_t size = total - BULK_HEADER_BYTES
        cdef Py_ssize_t here = min(self.incoming.size - self.begin - BULK_HEADER_BYTES, size)
        cdef bytes bulk = PyBytes_FromStringAndSize(NULL, size)
        cdef char* place = PyBytes_AS_STRING(bulk)
        self.payload = self.incoming.data + self.begin + HEADER_BYTES
        memcpy(place, self.incoming.data + self.begin + BULK_HEADER_BYTES, here)
        self.begin += BULK_HEADER_BYTES + here
        while here < size:
            here += self.pull(place + here, size - here, deadline_ns)
            if here < size:
                self.check_time(deadline_ns)
        self.bulk = bulk
        return 0

    cdef int fill(self, Py_ssize_t wanted, int64_t deadline_ns) except -1:
        """Receive until `wanted` bytes of the present answer are here."""
        cdef Buffer incoming = self.incoming
        while incoming.size - self.begin < wanted:
            self.make_room(wanted)
            incoming.size += self.pull(incoming.data + incoming.size, incoming.capacity - incoming.size, deadline_ns)
            if incoming.size - self.begin < wanted:
                self.check_time(deadline_ns)
        return 0

    cdef int make_room(self, Py_ssize_t wanted) except -1:
        """Have room for the whole of the present answer, and for some bytes at least."""
        cdef Buffer incoming = self.incoming
        if self.begin and (self.begin == incoming.size or incoming.capacity - self.begin < wanted):
            memmove(incoming.data, incoming.data + self.begin, incoming.size - self.begin)
            incoming.size -= self.begin
            self.begin = 0
        if incoming.capacity - self.begin < wanted or incoming.capacity < RECEIVED_BYTES_FIRST:
            incoming.grow(max(wanted, RECEIVED_BYTES_FIRST))
        return 0

    def check_time(self, int64_t deadline_ns):
        """Let the kernel wait only for what is left. Raises RequestTimeout when nothing is."""
        cdef int64_t left_ns = deadline_ns - now_ns()
        if left_ns <= 0:
            raise RequestTimeout(f"{self.address} did not answer by the deadline")
        self.arm(left_ns)
