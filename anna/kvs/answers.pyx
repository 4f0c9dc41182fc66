"""What a worker says to its clients: answers, one behind the other, until the driver takes them.

The one rule: an answer is written straight into the bytes that are sent. Only a payload that is too large to be copied is handed over as
the object that it is, between the runs of bytes before and behind it; the order never changes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

cimport cython

from anna.buffer cimport Buffer
from anna.kvs.clock cimport Clock
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.wire cimport *

cdef enum:
    # Payloads up to this size are copied into the reply buffer; larger ones are handed to the driver as they are.
    COPIED_BYTES_MAX = 16384


@cython.final
cdef class Connection:
    """What a worker keeps of one connection: an unfinished frame, its subscriptions, and why it must end (`failure`).

    `backlog`: whole frames that have arrived and wait until what was answered before has been sent; None: there are none.
    """

    def __init__(self):
        self.pending = Buffer()
        self.bulk = None
        self.bulk_bytes = 0
        self.failure = None
        self.subscriptions = set()
        self.held = None
        self.holds = None
        self.backlog = None


cdef class Answers:
    """The answers of one worker that are not sent yet: `chunks`, then `out`. Each carries the clock's last stamp and the stable epoch."""

    def __init__(self, Clock clock):
        self.clock = clock
        self.replication = None
        self.out = Buffer()
        self.chunks = []

    cdef char* reply(self, RequestHeader* head, int status, int type, Py_ssize_t payload_bytes) except NULL:
        """Begin a reply and return where its payload goes."""
        cdef char* place = self.out.reserve(HEADER_BYTES + payload_bytes)
        cdef ReplyHeader* answer = <ReplyHeader*>place
        answer.length = <uint32_t>(HEADER_BYTES - LENGTH_BYTES + payload_bytes)
        answer.version = PROTOCOL_VERSION
        answer.status = status
        answer.type = type
        answer.flags = self.view_mark
        answer.request = head.request
        answer.stable = 0 if self.replication is None else <uint32_t>self.replication.stable
        answer.stamp = self.clock.last
        return place + HEADER_BYTES

    cdef int reply_text(self, RequestHeader* head, int status, bytes payload) except -1:
        cdef char* place = self.reply(head, status, 0, PyBytes_GET_SIZE(payload))
        memcpy(place, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        if head.request == 0:
            # What nobody asked for tells of no view: of one view in 128 the mark would make a push of it.
            (<ReplyHeader*>(place - HEADER_BYTES)).flags = 0
        return 0

    cdef int reply_state(self, RequestHeader* head, Lattice state) except -1:
        cdef uint64_t* place
        cdef LWW register
        cdef bytes payload
        cdef Py_ssize_t size
        if type(state) is LWW:
            register = <LWW>state
            size = PyBytes_GET_SIZE(register.payload)
            if size <= COPIED_BYTES_MAX:
                place = <uint64_t*>self.reply(head, STATUS_OK, LWW_NUMBER, LWW_HEADER_BYTES + size)
                memcpy(<char*>place + LWW_HEADER_BYTES, PyBytes_AS_STRING(register.payload), size)
            else:
                place = <uint64_t*>self.reply(head, STATUS_OK, LWW_NUMBER, LWW_HEADER_BYTES)
                (<ReplyHeader*>(<char*>place - HEADER_BYTES)).length += <uint32_t>size
            place[0] = register.stamp
            place[1] = register.writer
            if size > COPIED_BYTES_MAX:
                self.chunks.append(PyBytes_FromStringAndSize(self.out.data, self.out.size))
                self.out.size = 0
                self.chunks.append(register.payload)
            return 0
        payload = state.encode()
        size = PyBytes_GET_SIZE(payload)
        if size > <Py_ssize_t>VALUE_MAX:
            return self.reply_text(head, STATUS_TOO_LARGE,
                                   f"the state has {size:,} bytes; a frame carries {VALUE_MAX:,}".encode())
        memcpy(self.reply(head, STATUS_OK, state.NUMBER, size), PyBytes_AS_STRING(payload), size)
        return 0

    cdef int fail(self, Connection connection, str why) except -1:
        """Give up on a connection whose bytes are not of the protocol."""
        self.malformed += 1
        connection.failure = why
        cdef RequestHeader head
        head.request = 0
        return self.reply_text(&head, STATUS_MALFORMED, why.encode())

    cdef object take(self):
        """Return what was answered since the last call."""
        cdef bytes result
        if not self.chunks:
            result = PyBytes_FromStringAndSize(self.out.data, self.out.size)
            self.out.shrink()
            return result
        if self.out.size:
            self.chunks.append(PyBytes_FromStringAndSize(self.out.data, self.out.size))
            self.out.shrink()
        chunks = self.chunks
        self.chunks = []
        return chunks
