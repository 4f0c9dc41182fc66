"""The order of answers: what waits for an owner holds back what was asked behind it on the same connection, and nothing else.

The one rule: a connection's answers leave in the order of its requests. An answer that cannot be given at once is a `Slot` in its connection's queue; what
is answered while the queue is not empty is put behind it. A slot is whole when nothing is missing of it, and leaves with the whole ones behind it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy

cimport cython

from anna.buffer cimport Buffer
from anna.kvs.answers cimport Connection
from anna.kvs.batches cimport batch_count
from anna.kvs.clock cimport Clock
from anna.kvs.worker cimport Worker
from anna.wire cimport *

from collections import deque

import msgpack

from anna.errors import ProtocolError


@cython.final
cdef class Slot:
    """The place of one answer in its connection's order: whole when nothing is missing.

    Of a batch, `items` are the parts of the answer as they come, and `failures` [[index, status, message], …].
    """


cdef class Order(Worker):
    """A worker's core whose answers may have to wait for others."""

    def __init__(self, view, int place, Clock clock):
        super().__init__(view, place, clock)
        self.queues = {}

    cdef int handle(self, Connection connection, const char* frame, Py_ssize_t size) except -1:
        cdef Buffer out = self.out
        cdef list chunks = self.chunks
        cdef Slot slot
        queue = self.queues.get(connection)
        if queue is None:
            queue = self.queues[connection] = deque()
        self.parked = None
        if not queue:
            Worker.handle(self, connection, frame, size)
            if self.parked is not None:
                self.parked.connection = connection
                queue.append(self.parked)
            return 0
        # Something ahead on this connection still waits: this answer is kept behind it.
        self.out, self.chunks = Buffer(), []
        try:
            Worker.handle(self, connection, frame, size)
            slot = self.parked
            if slot is None:
                slot = Slot.__new__(Slot)
                slot.answer = self.take()
            slot.connection = connection
            queue.append(slot)
        finally:
            self.out, self.chunks = out, chunks
        return 0

    cdef const char* fill_bulk(self, Connection connection, const char* data, Py_ssize_t* size) except NULL:
        """A large put is forwarded as any other; its answer has its place in the order too."""
        cdef const char* rest
        cdef Slot slot
        queue = self.queues.setdefault(connection, deque())
        cdef Buffer out = self.out
        cdef list chunks = self.chunks
        self.parked = None
        self.out, self.chunks = Buffer(), []
        try:
            rest = Worker.fill_bulk(self, connection, data, size)
            slot = self.parked
            answered = self.take()
        finally:
            self.out, self.chunks = out, chunks
        if slot is None and answered:
            slot = Slot.__new__(Slot)
            slot.answer = answered
        if slot is not None:
            slot.connection = connection
            queue.append(slot)
        return rest

    def leave(self, Connection connection):
        self.queues.pop(connection, None)

    cdef Slot park(self, RequestHeader* head):
        """Begin an answer that has to wait."""
        cdef Slot slot = Slot.__new__(Slot)
        slot.head = head[0]
        slot.answer = None
        self.parked = slot
        return slot

    cdef int count_down(self, Slot slot, list finished) except -1:
        """One thing less is missing of an answer; its connection joins the `finished` when it was the last."""
        slot.missing -= 1
        if slot.missing:
            return 0
        if slot.answer is None:
            slot.answer = self.whole(slot)
        finished.append(slot.connection)
        return 0

    cdef object whole(self, Slot slot):
        """Return the answer of a batch of which nothing is missing any more."""
        if slot.items is not None:
            return self.join_items(slot)
        if slot.failures:
            slot.failures.sort()
            return self.relay(slot, STATUS_PARTIAL, msgpack.packb(slot.failures))
        return self.relay_write(slot, STATUS_OK, b"")

    cdef bytes relay_write(self, Slot slot, int status, bytes payload):
        """Return the answer to a write, or a batch of them, that says how safe it is."""
        cdef char* place = self.reply(&slot.head, status, slot.copies if status <= STATUS_MISSING else 0, PyBytes_GET_SIZE(payload))
        memcpy(place, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        if slot.durable and status <= STATUS_MISSING:
            (<ReplyHeader*>(place - HEADER_BYTES)).flags |= REPLY_DURABLE
        return self.take()

    cdef object join_items(self, Slot slot):
        """Return a multi-get's answer from its items; the first failure stands for all."""
        cdef bytes body
        if slot.failures:
            return self.relay(slot, slot.failures[0][1], slot.failures[0][2].encode())
        body = b"".join(slot.items)
        cdef char* place = self.reply(&slot.head, STATUS_OK, 0, 4 + PyBytes_GET_SIZE(body))
        cdef uint32_t count = <uint32_t>len(slot.items)
        memcpy(place, &count, 4)
        memcpy(place + 4, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        return self.take()

    cdef bytes relay(self, Slot slot, int status, bytes payload):
        """Return an answer with what an owner has said."""
        return self.relay_state(slot, status, 0, payload)

    cdef bytes relay_state(self, Slot slot, int status, int kind, bytes payload):
        """The same with the type of the state that it has."""
        cdef char* place = self.reply(&slot.head, status, kind, PyBytes_GET_SIZE(payload))
        memcpy(place, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        return self.take()

    cdef list release(self, list finished):
        """Return what can be sent now, in order, to the connections of `finished`."""
        cdef Slot slot
        ready = []
        for connection in dict.fromkeys(finished):
            queue = self.queues.get(connection)
            parts = []
            while queue:
                slot = queue[0]
                if slot.answer is None:
                    break
                queue.popleft()
                parts += [slot.answer] if isinstance(slot.answer, bytes) else slot.answer
            if parts:
                ready.append((connection, parts))
        return ready

    def check(self):
        """Assert the invariants of the answers that wait."""
        assert self.out.size == 0 and not self.chunks, "an answer was left behind"
        for queue in self.queues.values():
            assert not queue or (<Slot>queue[0]).answer is None, "a whole answer waits at the head of its queue"


cdef list read_keys(const char* payload, Py_ssize_t size):
    """Return the keys of a multi-get. Raises ProtocolError."""
    cdef uint32_t count = batch_count(payload, size)
    cdef const char* end = payload + size
    cdef const char* place = payload + 4
    cdef uint16_t key_bytes
    cdef list names = []
    cdef uint32_t index
    for index in range(count):
        if end - place < 2:
            raise ProtocolError(f"a multi-get of {count} keys ends within key {index}")
        memcpy(&key_bytes, place, 2)
        place += 2
        if end - place < key_bytes:
            raise ProtocolError(f"a multi-get of {count} keys ends within key {index}")
        names.append(PyBytes_FromStringAndSize(place, key_bytes))
        place += key_bytes
    return names
