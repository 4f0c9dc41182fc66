"""Who wants to be told when a key changes, and what they are told.

The one rule: a key that changed is pushed once an epoch, with its whole state as it is then, to everybody who subscribed to it. Changes in
between are joined in it, so nobody misses one, and a hot key costs what a cold one does. It comes behind all that was answered before it. A key that has moved is pushed as the view. Who cannot be told
ends: its connection is closed, so that it asks again, and hears why.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint16_t
from libc.string cimport memcpy

from anna.kvs.answers cimport Connection
from anna.kvs.clock cimport Clock
from anna.kvs.held cimport Held
from anna.lattices.base cimport Lattice
from anna.wire cimport *


cdef class Pushes(Held):
    """The subscriptions to one worker: `subscribers` of each key, and the keys that `changed` since the last push."""

    def __init__(self, view, int place, Clock clock, tuple seeds):
        super().__init__(view, place, clock, seeds)
        self.subscribers = {}
        self.changed = set()

    def take_view(self, view):
        Held.take_view(self, view)
        if self.replication is not None:
            for key in sorted(self.subscribers):
                if not self.owns(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)):
                    self.changed.add(key)

    def subscribe(self, Connection connection, bytes key, bint wanted):
        """Begin or end to push what changes under `key` to `connection`."""
        cdef dict listeners
        if wanted:
            connection.subscriptions.add(key)
            # In the order in which they came: nothing that can be seen depends on where they are in memory.
            self.subscribers.setdefault(key, {})[connection] = None
        else:
            connection.subscriptions.discard(key)
            listeners = self.subscribers.get(key)
            if listeners is not None:
                listeners.pop(connection, None)
                if not listeners:
                    del self.subscribers[key]
        if self.replication is not None:
            self.replication.watching = len(self.subscribers) > 0

    cdef int note(self, const char* key, Py_ssize_t key_bytes) except -1:
        """Remember that a key changed, if anybody subscribed to it."""
        cdef bytes name
        if self.subscribers:
            name = PyBytes_FromStringAndSize(key, key_bytes)
            if name in self.subscribers:
                self.changed.add(name)
        return 0

    def take_pushes(self):
        """Return [(connection, bytes), …]: every subscribed key that changed since the last call, in the order of the keys.

        A push is a reply frame with id 0 and the operation in `flags`: u16 key bytes, key, state; a deleted key is STATUS_MISSING.
        """
        cdef dict outboxes = {}
        cdef Connection connection
        for key in sorted(self.changed):
            for connection in self.subscribers.get(key, ()):
                outboxes.setdefault(connection, []).append(key)
        self.changed.clear()
        pushes = []
        for connection, keys in outboxes.items():
            for key in keys:
                if not self.push(key):
                    connection.failure = f"{key!r} has grown longer than a frame"
                    break
            self.send_behind(connection, self.take(), pushes)
        return pushes

    cdef int send_behind(self, Connection connection, object data, list pushes) except -1:
        """Add what is pushed to `pushes`, behind the answers of its connection that were released and are not sent yet, or to those that wait."""
        if connection.holds:
            data = data if isinstance(data, bytes) else b"".join(data)
            connection.held.append(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            return 0
        pushes.extend([entry for entry in self.released if entry[0] is connection])
        self.released = [entry for entry in self.released if entry[0] is not connection]
        pushes.append((connection, data))
        return 0

    cdef bint push(self, bytes key) except -1:
        """Write one push frame: the whole state of `key` as it is now; False where that is too long for one, which is said instead."""
        cdef RequestHeader head
        cdef Lattice state = self.store.look(key)
        cdef bytes payload = b"" if state is None else state.encode()
        cdef Py_ssize_t key_bytes = PyBytes_GET_SIZE(key)
        cdef uint16_t prefix = <uint16_t>key_bytes
        head.request = 0
        if state is None and key in self.store.lost:
            return True  # it will change again when another owner has sent it
        cdef int status = STATUS_MISSING if state is None else STATUS_OK
        if not self.owns(PyBytes_AS_STRING(key), key_bytes):
            # The key has moved: its subscribers have to go to its owner.
            self.reply_text(&head, STATUS_WRONG_WORKER, self.view_payload)
            (<ReplyHeader*>(self.out.data + self.out.size - PyBytes_GET_SIZE(self.view_payload) - HEADER_BYTES)).flags = OP_PUSH
            return True
        if PyBytes_GET_SIZE(payload) > <Py_ssize_t>VALUE_MAX:
            self.reply_text(&head, STATUS_TOO_LARGE, f"the state has {len(payload):,} bytes; a frame carries {VALUE_MAX:,}".encode())
            return False
        cdef char* place = self.reply(&head, status, 0 if state is None else state.NUMBER, 2 + key_bytes + PyBytes_GET_SIZE(payload))
        (<ReplyHeader*>(place - HEADER_BYTES)).flags = OP_PUSH
        memcpy(place, &prefix, 2)
        memcpy(place + 2, PyBytes_AS_STRING(key), key_bytes)
        memcpy(place + 2 + key_bytes, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        return True
