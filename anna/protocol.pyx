"""One accepted connection of a worker: the hot part of its driver.

The one rule: bytes that arrive go to the core, what it returns goes back, in order. An answer is sent at once by the system call itself;
only what the socket does not take goes through the loop's buffer, which then keeps the order until it is empty. That, and being
Cython, takes a fifth off a single get's round trip.
"""

cimport cython

from anna.kvs.worker cimport Connection, Worker
from anna.stream cimport now_ns

import socket
import struct

import os

cdef extern from "sys/socket.h" nogil:
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags)
    int MSG_NOSIGNAL, MSG_DONTWAIT

WRITE_BUFFER_BYTES_MAX = 8 * 1024 * 1024
"""Answers that may wait for a client that does not read, before its requests are no longer read either."""


@cython.final
cdef class Protocol:
    """An asyncio protocol between one socket and `server.worker`."""

    cdef object server
    cdef Worker worker
    cdef readonly Connection connection
    cdef readonly object transport
    cdef int fd
    cdef bint buffered

    def __init__(self, server):
        self.server = server
        self.worker = server.worker
        self.connection = Connection()
        self.fd = -1
        self.buffered = False

    def connection_made(self, transport):
        self.transport = transport
        peer = transport.get_extra_info("socket")
        if peer.family == socket.AF_UNIX and not same_user(peer):
            transport.abort()
            return
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        self.fd = peer.fileno()
        self.server.protocols[self.connection] = self

    def data_received(self, bytes data):
        self.worker.absorb(self.connection, data, now_ns())
        if self.worker.chunks or not self.send_at_once(self.worker.out.data, self.worker.out.size):
            self.send(self.worker.take())
        else:
            self.worker.out.shrink()
        if self.worker.due():
            self.server.push_soon()
        if self.connection.failure is not None:
            self.server.log_malformed(self.connection.failure)
            self.transport.close()

    cdef bint send_at_once(self, const char* data, Py_ssize_t size) except -1:
        """Whether the socket took all of it. What it took a part of is sent on by the loop; what it took nothing of is not begun."""
        cdef ssize_t sent
        if size == 0 or self.fd < 0:
            return True
        if self.buffered and self.transport.get_write_buffer_size():
            return False
        self.buffered = False
        sent = c_send(self.fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT)
        if 0 < sent < size:
            self.buffered = True
            self.transport.write(data[sent:size])
        return sent > 0

    def send(self, data):
        """Send bytes, or a list of bytes one after the other, in their turn."""
        if self.fd >= 0 and data:
            self.buffered = True
            self.transport.writelines([data] if isinstance(data, bytes) else data)

    def pause_writing(self):
        self.transport.pause_reading()

    def resume_writing(self):
        self.transport.resume_reading()

    def eof_received(self):
        return False

    def connection_lost(self, error):
        self.fd = -1
        self.worker.leave(self.connection)
        self.server.protocols.pop(self.connection, None)


def same_user(peer):
    """Whether a connected Unix socket's other end belongs to this user or to root."""
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (os.getuid(), 0)
