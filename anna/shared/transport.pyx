"""The worker's side of one connection through shared memory: what uvloop's transport is for a socket.

The one rule: what a client does in the memory is its own affair. Its indexes are checked each time, and a lie ends its connection; its bytes are copied
before they are read; what it does not take waits here, up to the bounds that hold for sockets. The socket's own transport lives on
beneath: when it ends, so does this.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from anna.buffer cimport Buffer
from anna.protocol cimport Outlet, Protocol
from anna.shared.rings cimport DATA, ROOM
from anna.shared.segment cimport Segment

from collections import deque

from anna import config

cdef Py_ssize_t TURN_BYTES = config.RING_TURN_BYTES
cdef Py_ssize_t UNSENT_BYTES = config.WRITE_BUFFER_BYTES_MAX

# What was taken out of a ring is handled before anything else is taken, so one such place is enough.
cdef Buffer _taken = Buffer()


cdef class RingTransport(Outlet):
    """A transport of asyncio's kind, as far as `Protocol` and `WorkerServer` use it, over `segment` and the transport of its socket."""

    def __init__(self, Protocol protocol, poller, Segment segment, socket):
        self.protocol = protocol
        self.poller = poller
        self.segment = segment
        self.rings = segment.rings(True)
        self.socket = socket
        self.unsent = deque()
        self.reading = True

    def end(self):
        """The socket has ended: let go of the memory."""
        self.poller.forget(self)
        self.rings = None
        self.segment = None
        self.unsent.clear()
        self.unsent_bytes = 0

    # -- what Protocol asks of a transport

    cdef Py_ssize_t put(self, const char* data, Py_ssize_t size) except -1:
        cdef Py_ssize_t count
        if self.rings is None or self.unsent_bytes:
            return 0
        count = self.rings.put(data, size)
        if count < 0:
            self.accuse()
            return 0
        self.moved |= DATA
        if not self.serving:
            self.tell()
        return count

    def write(self, data):
        """Send bytes when there is room."""
        self.writelines((data,))

    def writelines(self, chunks):
        """Send bytes one after the other, when there is room."""
        if self.rings is None:
            return
        for data in chunks:
            if data:
                self.unsent.append(data)
                self.unsent_bytes += len(data)
        self.flush()
        if not self.serving:
            self.tell()
        if self.unsent_bytes:
            self.poller.wake(self)  # when it falls asleep, it says that it waits for room

    def get_write_buffer_size(self):
        return self.unsent_bytes

    def is_reading(self):
        return self.reading

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        if not self.reading and not self.closing:
            self.reading = True
            self.poller.wake(self)

    def close(self):
        """End the connection when all has been taken that was sent."""
        self.closing = True
        self.reading = False
        if not self.unsent_bytes:
            self.socket.close()

    def abort(self):
        """End the connection."""
        self.closing = True
        self.reading = False
        self.socket.abort()

    # -- the rings

    cdef bint serve(self) except -1:
        """Move what can be moved, both ways; whether that was anything."""
        cdef Py_ssize_t size = 0
        cdef bint busy
        if self.rings is None:
            return False
        self.serving = True
        try:
            if self.unsent_bytes:
                self.flush()
            if self.reading and self.rings is not None:
                size = self.rings.readable()
                if size < 0:
                    self.accuse()
                elif size:
                    self.receive(size)
        finally:
            self.serving = False
        busy = self.moved != 0
        if busy:
            self.tell()
        return busy

    cdef int receive(self, Py_ssize_t size) except -1:
        """Give the protocol what has come, a part of it if it is much."""
        cdef bytes bulk = self.protocol.connection.bulk
        cdef const char* place
        self.moved |= ROOM
        if bulk is None:
            _taken.size = 0
            size = self.rings.take(_taken.reserve(TURN_BYTES), min(size, TURN_BYTES))
            if size > 0:
                self.protocol.answer(_taken.data, size)
            return 0
        # The value of a large put is copied from here to where it is stored, and nobody looks at it on the way.
        place = self.rings.front(&size)
        size = min(size, min(TURN_BYTES, PyBytes_GET_SIZE(bulk) - self.protocol.connection.bulk_bytes))
        if size > 0:
            self.protocol.answer(place, size)
            if self.rings is not None:
                self.rings.skip(size)
        return 0

    cdef int flush(self) except -1:
        """Send of what is unsent as much as there is room for."""
        cdef bytes data
        cdef Py_ssize_t count
        while self.unsent_bytes:
            data = self.unsent[0]
            count = self.rings.put(PyBytes_AS_STRING(data) + self.offset, PyBytes_GET_SIZE(data) - self.offset)
            if count < 0:
                return self.accuse()
            if count == 0:
                break
            self.moved |= DATA
            self.unsent_bytes -= count
            self.offset += count
            if self.offset == PyBytes_GET_SIZE(data):
                self.unsent.popleft()
                self.offset = 0
        if self.unsent_bytes > UNSENT_BYTES and not self.paused:
            self.paused = True
            self.protocol.pause_writing()
        elif self.unsent_bytes <= UNSENT_BYTES // 4 and self.paused:
            self.paused = False
            self.protocol.resume_writing()
        if self.closing and not self.unsent_bytes:
            self.socket.close()
        return 0

    cdef int tell(self) except -1:
        """Wake the client if it waits for what was moved."""
        cdef int moved = self.moved
        self.moved = 0
        if moved and self.rings is not None and self.rings.must_wake(moved):
            self.segment.wake_client()
        return 0

    cdef bint falls_asleep(self) except -1:
        """Wait for the bell from now on; False when there is something to do."""
        cdef int wanted = (DATA if self.reading else 0) | (ROOM if self.unsent_bytes else 0)
        if self.rings is not None and wanted and not self.rings.sleep(wanted):
            return False
        self.awake = False
        return True

    cdef int accuse(self) except -1:
        """End a connection whose client's indexes cannot be."""
        self.protocol.server.log_malformed("an index of a ring is out of the ring")
        self.abort()
        return 0
