"""Who is told what keys hold at the end of each stable epoch, as it becomes stable: the caches of nodes that have sessions.

The one rule: a *mark* (epoch, view) says that its listener has, of all keys that it asked for, what they hold at the end of that epoch; what has changed since the mark before goes ahead of it,
on the same stream. The mark is the stable epoch as this worker knows it, never what it has closed itself: another owner may have written in that
epoch what has not arrived yet. So a listener knows each key from the epoch that its answer or push names up to the last mark, unless it was told something later.

A listener has a lease, as every reader at epochs has. Where what was told cannot be carried on (the view is another, the past was forgotten, the
lease is over), a mark of epoch 0 ends all that it had asked for: it begins anew, and loses only what it would have learnt. Whoever has no listeners pays nothing. Source: DESIGN §4 (caches); docs/decisions/0029.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

cimport cython

from anna.kvs.answers cimport Connection
from anna.kvs.clock cimport Clock
from anna.kvs.commits cimport Commits
from anna.kvs.history cimport History
from anna.lattices.base cimport Lattice
from anna.wire cimport *

import struct

from anna import config
from anna.errors import NotSupported, ProtocolError, SnapshotExpired, ValueTooLarge
from anna.kvs.faults import PLANTED

cdef uint64_t LEASE_US_MAX = config.EPOCH_LEASE_US_MAX

_MARK = struct.Struct("<QQ")
_ANSWER = struct.Struct("<QQQ")
_KEY = struct.Struct("<H")


@cython.final
cdef class Listener:
    """What one connection is told at epochs: of these `keys`, `until` its lease ends, in monotonic ns."""

    def __init__(self):
        self.keys = set()


cdef class Marks(Commits):
    """The listeners of one worker, by connection, and by the keys that they asked for."""

    def __init__(self, view, int place, Clock clock, tuple seeds):
        self.listeners = {}
        self.listening = {}
        self.telling = None
        super().__init__(view, place, clock, seeds)

    def take_view(self, view):
        Commits.take_view(self, view)
        self.end_listeners()

    # -- what is asked

    cdef int subscribe_at(self, Connection connection, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        """Without a key: tell this connection the marks for u64 microseconds; u64 an epoch that it waits for may follow.

        With a key: answer with what it holds at the end of an epoch (u64 epoch, u64 view), and tell what it holds at later ones from then on; without
        a payload, not any more.
        """
        cdef uint64_t[2] asked = [0, 0]
        if head.key_bytes == 0:
            if size != 8 and size != 16:
                raise ProtocolError(f"who wants marks says for how long in 8 bytes and which epoch he waits for in 8 more, got {size}")
            memcpy(asked, payload, size)
            self.begin_to_listen(connection, <int64_t>min(asked[0], LEASE_US_MAX))
            if asked[1] > self.replication.stable:
                self.replication.hurry()
            self.reply(head, STATUS_OK, 0, 0)
            return 0
        self.check_key(key, head.key_bytes, head.flags)
        if size == 0:
            self.listen(connection, PyBytes_FromStringAndSize(key, head.key_bytes), False)
            self.reply(head, STATUS_OK, 0, 0)
            return 0
        if size != 16:
            raise ProtocolError(f"a read at an epoch names it in 16 bytes, got {size}")
        memcpy(asked, payload, 16)
        self.check_epoch(asked[0], asked[1])
        if not self.owns(key, head.key_bytes):
            return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
        self.gets_at += 1
        if not self.has(key, head.key_bytes):
            self.stale += 1
            return self.reply_text(head, STATUS_STALE, b"this worker is about to take the key over; another owner has it")
        return self.answer_at(connection, head, PyBytes_FromStringAndSize(key, head.key_bytes), asked[0])

    cdef int begin_to_listen(self, Connection connection, int64_t lease_us) except -1:
        """Tell this connection the marks from now on, for so long at least."""
        cdef Listener listener
        self.want_history(lease_us)
        self.mark()
        if self.telling is None:
            self.telling = self.replication.history
            self.telling_from = self.telling.kept_from
            self.telling.take_changed(0, 0, {})
        listener = self.listeners.get(connection)
        if listener is None:
            if not self.listeners:
                self.told = self.telling.told = self.replication.stable
            listener = self.listeners[connection] = Listener()
            if self.entire and not self.returning and self.told >= self.telling.oldest and self.telling.view_of(self.told) not in self.partial:
                self.released.append((connection, self.unasked(OP_MARK, STATUS_OK, 0, _MARK.pack(self.told, self.telling.view_of(self.told)), b"")))
                self.urgent = True
        listener.until = max(listener.until, self.now + lease_us * 1000)
        return 0

    cdef int answer_at(self, Connection connection, RequestHeader* head, bytes name, uint64_t epoch) except -1:
        """Answer with u64, u64 the first and the last epoch in which the key held what follows, and u64 since which epoch its changes are told, 0 if they are not.

        They are not of a key with a time to live, which may end without a change.
        """
        cdef History history = self.replication.history
        cdef Lattice state = history.read(name, epoch)
        cdef bytes payload
        cdef uint64_t first = epoch, last = epoch, since = 0
        if state is None and name in self.store.lost:
            return self.reply_absent(head, PyBytes_AS_STRING(name))
        if not history.is_mortal(name):
            self.begin_to_listen(connection, LEASE_US_MAX)
            self.listen(connection, name, True)
            history.held_for(name, epoch, self.told, &first, &last)
            since = self.told
        payload = b"" if state is None else state.encode()
        if PyBytes_GET_SIZE(payload) > <Py_ssize_t>VALUE_MAX:
            raise ValueTooLarge(f"the state has {len(payload):,} bytes; a frame carries {VALUE_MAX:,}")
        span = _ANSWER.pack(first, last, since)
        cdef char* place = self.reply(head, STATUS_MISSING if state is None else STATUS_OK, 0 if state is None else state.NUMBER,
                                      24 + PyBytes_GET_SIZE(payload))
        memcpy(place, PyBytes_AS_STRING(span), 24)
        memcpy(place + 24, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        return 0

    # -- who is told

    cdef int listen(self, Connection connection, bytes name, bint wanted) except -1:
        """Begin or end to tell a listener of a key."""
        cdef Listener listener = self.listeners.get(connection)
        if listener is None:
            return 0
        if wanted:
            listener.keys.add(name)
            self.listening.setdefault(name, {})[connection] = None
        elif name in listener.keys:
            listener.keys.discard(name)
            del self.listening[name][connection]
            if not self.listening[name]:
                del self.listening[name]
        return 0

    cdef int end_listener(self, Connection connection) except -1:
        """This connection is told nothing any more."""
        cdef Listener listener = self.listeners.get(connection)
        if listener is None:
            return 0
        for name in list(listener.keys):
            self.listen(connection, name, False)
        del self.listeners[connection]
        return 0 if self.listeners else self.end_listeners()

    cdef int end_listeners(self) except -1:
        """Nothing that was told is carried on: say so, and begin anew with who asks again."""
        for connection in self.listeners:
            self.released.append((connection, self.unasked(OP_MARK, STATUS_OK, 0, _MARK.pack(0, 0), b"")))
            self.urgent = True
        self.listeners.clear()
        self.listening.clear()
        if self.telling is not None:
            self.telling.told = 0
            self.telling = None
        return 0

    # -- what they are told

    cdef int mark(self) except -1:
        """If more is stable than was told, tell the listeners what has changed, and then the mark."""
        cdef History history = None if self.replication is None else self.replication.history
        cdef uint64_t stable
        if not self.listeners or not self.entire or self.returning:
            return 0
        if history is None or history is not self.telling or history.kept_from != self.telling_from or self.gone:
            return self.end_listeners()
        stable = self.replication.stable if "own-closing-marks" not in PLANTED else max(self.told, self.replication.closed)
        if stable == self.told or history.view_of(stable) in self.partial:
            return 0
        pushes = {connection: [] for connection in self.listeners}
        for name in history.take_changed(self.told, stable, self.listening):
            data = self.push_at(name, stable)
            for connection in list(self.listening[name]):
                pushes[connection].append(data or self.unasked(OP_SUBSCRIBE_AT, STATUS_EXPIRED, 0, _KEY.pack(len(name)) + name, b""))
                if not data:
                    self.listen(connection, name, False)
        self.told = history.told = stable
        if stable < history.oldest:
            return 0
        view = history.view_of(stable) or self.view.digest
        mark = self.unasked(OP_MARK, STATUS_OK, 0, _MARK.pack(stable, view), b"")
        for connection, parts in pushes.items():
            parts.append(mark)
            self.released.append((connection, b"".join(parts)))
        self.marks_told += 1
        self.urgent = True
        return 0

    cdef bytes push_at(self, bytes name, uint64_t epoch):
        """Return the push of what a key holds at the end of `epoch`, b"" where that is not to be said: it is to be asked for."""
        cdef History history = self.replication.history
        cdef Lattice state
        cdef bytes payload
        cdef uint64_t first = epoch, last = epoch
        if history.is_mortal(name) or not history.reads(epoch):
            return b""
        try:
            state = history.read(name, epoch)
        except SnapshotExpired:
            return b""
        if state is None and name in self.store.lost:
            return b""
        payload = b"" if state is None else state.encode()
        if PyBytes_GET_SIZE(payload) > <Py_ssize_t>VALUE_MAX:
            return b""
        history.held_for(name, epoch, epoch, &first, &last)
        head = _KEY.pack(len(name)) + name + _MARK.pack(first, epoch)
        return self.unasked(OP_SUBSCRIBE_AT, STATUS_MISSING if state is None else STATUS_OK, 0 if state is None else state.NUMBER, head, payload)

    cdef bytes unasked(self, int op, int status, int type, bytes head, bytes payload):
        """Return a frame that answers nothing: request 0, with the operation in its flags."""
        cdef ReplyHeader answer
        answer.length = <uint32_t>(HEADER_BYTES - LENGTH_BYTES + PyBytes_GET_SIZE(head) + PyBytes_GET_SIZE(payload))
        answer.version = PROTOCOL_VERSION
        answer.status = status
        answer.type = type
        answer.flags = op
        answer.request = 0
        answer.stable = <uint32_t>self.replication.stable
        answer.stamp = self.clock.last
        return PyBytes_FromStringAndSize(<char*>&answer, HEADER_BYTES) + head + payload

    def settle_history(self):
        """Tell what is stable by now before anything of it is let go, and end the listeners whose lease is over."""
        cdef Listener listener
        self.mark()
        Commits.settle_history(self)
        if self.replication.history is None:
            self.end_listeners()
        for connection in [connection for connection, listener in self.listeners.items() if listener.until < self.now]:
            self.released.append((connection, self.unasked(OP_MARK, STATUS_OK, 0, _MARK.pack(0, 0), b"")))
            self.urgent = True
            self.end_listener(connection)

    def status_of_listeners(self):
        """Return the figures of those who are told what keys hold at epochs."""
        return {"listeners": len(self.listeners), "listened": len(self.listening), "marks": self.marks_told}

    def check_listeners(self):
        """Assert the invariants of who is told what."""
        cdef Listener listener
        for connection, listener in self.listeners.items():
            assert all([connection in self.listening[name] for name in listener.keys])
        for name, connections in self.listening.items():
            assert connections and all([name in (<Listener>self.listeners[connection]).keys for connection in connections])
