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
from anna.wire cimport HEADER_BYTES, LENGTH_BYTES, OP_RINGS, PROTOCOL_VERSION, STATUS_OK, RequestHeader

import socket
import struct

import os

from anna.config import FRAME_BYTES_PER_S_MIN, FRAME_DEADLINE_S, UNREAD_BYTES_MAX, WRITE_BUFFER_BYTES_MAX

cdef extern from "sys/socket.h" nogil:
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags)
    int MSG_NOSIGNAL, MSG_DONTWAIT


cdef class Outlet:
    """Where answers go that do not go to the socket (`anna.shared.transport`)."""

    cdef Py_ssize_t put(self, const char* data, Py_ssize_t size) except -1:
        """Take as many of the bytes as there is room for at once; return how many."""
        raise NotImplementedError


@cython.final
cdef class Protocol:
    """An asyncio protocol between one socket and `server.worker`."""

    def __init__(self, server):
        self.server = server
        self.worker = server.worker
        self.connection = Connection()
        self.outlet = None
        self.fd = -1
        self.local = False
        self.sealed = False
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
        self.local = peer.family == socket.AF_UNIX
        self.sealed = transport.get_extra_info("identity") is not None
        self.server.protocols[self.connection] = self

    def data_received(self, bytes data):
        if self.outlet is not None:
            self.server.log_malformed("bytes came by the socket of a connection that has rings")
            self.transport.abort()
        elif self.connection.backlog is not None:
            self.connection.backlog += data
        elif not (self.local and PyBytes_GET_SIZE(data) == HEADER_BYTES and self.begins_rings(data)):
            self.answer(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef bint begins_rings(self, bytes data) except -1:
        """Whether this is a request for shared memory that was granted: all that comes from now on comes by its rings.

        It is only with nothing else under way. Any other is refused by the core, and the connection stays as it is.
        """
        cdef RequestHeader* head = <RequestHeader*>PyBytes_AS_STRING(data)
        cdef Connection connection = self.connection
        cdef bint at_rest = connection.pending.size == 0 and connection.bulk is None and not connection.holds and not connection.subscriptions
        cdef uint32_t* place
        if head.op != OP_RINGS or head.length != HEADER_BYTES - LENGTH_BYTES or head.version != PROTOCOL_VERSION:
            return False
        if not at_rest or (self.buffered and self.transport.get_write_buffer_size()):
            return False
        segment = self.server.rings.grant()
        if segment is None:
            return False
        place = <uint32_t*>self.worker.reply(head, STATUS_OK, 0, 2 * sizeof(uint32_t))
        place[0], place[1] = segment.layout, segment.ring_bytes
        transport = self.server.rings.open(self, segment, self.worker.take())
        if transport is None:
            self.transport.abort()  # of an answer that was not sent nobody knows how much will be
            return True
        self.transport, self.outlet = transport, transport
        self.buffered = False
        return True

    cdef int answer(self, const char* data, Py_ssize_t size) except -1:
        """Give bytes to the core and send what it answers."""
        cdef uint64_t frames = self.worker.frames
        self.worker.absorb_at(self.connection, data, size, now_ns())
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
        cdef bytes data = self.connection.backlog
        if data is None or self.fd < 0 or self.unread:
            return
        self.connection.backlog = None
        self.answer(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
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
        if self.outlet is not None:
            sent = self.outlet.put(data, size)
        elif self.sealed:
            return False
        else:
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
        if self.outlet is not None:
            outlet, self.outlet = self.outlet, None
            outlet.end()
        self.worker.leave(self.connection)
        self.server.protocols.pop(self.connection, None)


def same_user(peer):
    """Whether a connected Unix socket's other end belongs to this user or to root."""
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (os.getuid(), 0)
