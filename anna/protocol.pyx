"""One accepted connection of a worker: the hot part of its driver.

The one rule: bytes that arrive go to the core, what it returns goes back, in order. An answer is sent at once by the system call itself;
only what the socket does not take goes through the loop's buffer, which then keeps the order until it is empty. That, and being
Cython, takes a fifth off a single get's round trip. Who does not read what was answered is not read from, and who asks for much at once
is answered in parts, between which others have their turn.
"""

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t

from anna.kvs.answers cimport Connection
from anna.kvs.worker cimport Worker
from anna.stream cimport now_ns
from anna.wire cimport LENGTH_BYTES

import socket
import struct

import os

from anna.config import FRAME_BYTES_PER_S_MIN, FRAME_DEADLINE_S, UNREAD_BYTES_MAX, WRITE_BUFFER_BYTES_MAX

cdef extern from "sys/socket.h" nogil:
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags)
    int MSG_NOSIGNAL, MSG_DONTWAIT


@cython.final
cdef class Protocol:
    """An asyncio protocol between one socket and `server.worker`."""

    cdef object server
    cdef Worker worker
    cdef readonly Connection connection
    cdef readonly object transport
    cdef int fd
    cdef bint buffered
    # Whether the loop's buffer is as full as it may be.
    cdef bint unread
    # How many sweeps have seen the frame that has begun to arrive and is not whole; -1: there is none.
    cdef int sweeps

    def __init__(self, server):
        self.server = server
        self.worker = server.worker
        self.connection = Connection()
        self.fd = -1
        self.buffered = False
        self.unread = False
        self.sweeps = -1

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
        if self.connection.backlog is None:
            self.answer(data)
        else:
            self.connection.backlog += data

    cdef int answer(self, bytes data) except -1:
        """Give bytes to the core and send what it answers."""
        cdef uint64_t frames = self.worker.frames
        self.worker.absorb(self.connection, data, now_ns())
        if self.connection.pending.size == 0:
            self.sweeps = -1
        elif self.sweeps < 0 or self.worker.frames != frames:
            self.sweeps = 0
            self.server.sweep_soon()
        if self.worker.chunks or not self.send_at_once(self.worker.out.data, self.worker.out.size):
            self.send(self.worker.take())
        else:
            self.worker.out.shrink()
        if self.worker.urgent:
            self.server.serve_soon()
        if self.worker.due():
            self.server.push_soon()
        if self.connection.failure is not None:
            self.server.log_malformed(self.connection.failure)
            self.transport.close()
        elif self.connection.backlog is not None:
            self.transport.pause_reading()
            if not self.unread:
                self.server.call_soon(self.go_on)
        return 0

    def go_on(self):
        """Answer more of what has arrived, now that others had their turn; then read on."""
        data = self.connection.backlog
        if data is None or self.fd < 0 or self.unread:
            return
        self.connection.backlog = None
        self.answer(data)
        if self.connection.backlog is None and not self.unread:
            self.transport.resume_reading()

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
        """Send bytes, or a list of bytes one after the other, in their turn. Who has left too much unread is not waited for any longer."""
        if type(data) is bytes and self.send_at_once(PyBytes_AS_STRING(<bytes>data), PyBytes_GET_SIZE(<bytes>data)):
            return
        if self.fd >= 0 and data:
            if self.buffered and self.transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
                self.transport.abort()
                return
            self.buffered = True
            self.transport.writelines([data] if isinstance(data, bytes) else data)

    def sweep(self):
        """Count a sweep of an unfinished frame, and end the connection when the frame has seen too many; whether one is still awaited.

        Sweeps are counted, not seconds: a worker that was stopped for a while must not blame its clients. Nor is counted what this
        side does not read.
        """
        if self.sweeps < 0 or self.fd < 0:
            return False
        if not self.transport.is_reading():
            return True
        self.sweeps += 1
        cdef Py_ssize_t size = self.connection.pending.size
        if size >= LENGTH_BYTES:
            size = (<uint32_t*>self.connection.pending.data)[0]
        if self.sweeps <= FRAME_DEADLINE_S + size // FRAME_BYTES_PER_S_MIN:
            return True
        self.worker.fail(self.connection, f"a frame was not whole {self.sweeps} s after its first byte")
        self.send_at_once(self.worker.out.data, self.worker.out.size)
        self.worker.out.shrink()
        self.server.log_malformed(self.connection.failure)
        self.transport.abort()
        return False

    def pause_writing(self):
        self.unread = True
        self.transport.pause_reading()

    def resume_writing(self):
        self.unread = False
        if self.connection.backlog is None:
            self.transport.resume_reading()
        else:
            self.server.call_soon(self.go_on)

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
