"""One worker: the protocol between its clients and its keys, from bytes to bytes.

The one rule: what goes in is (connection, bytes, now), what comes out is bytes; there is no socket, clock or randomness here, so a
cluster of workers runs in one test. A frame is answered in the order of its arrival on its connection. A client's mistake becomes a
reply with a status; bytes that are not of the protocol end their own connection and nothing else. Source: DESIGN §2, §5; the
sans-I/O form is h11's.

A worker is built in layers, each a class that knows those below it alone. From the bottom: `answers` (what is said), `frames` (from bytes to
frames), `member` (of which cluster, and whose keys), `held` (what has to wait until it is safe), `pushes` (who is told of changes),
`operations` (on a key), `batches` (of keys), `scans` (of all keys), `epochs` (at an epoch), `commits` (of keys together), `marks` (who is told of epochs). This is the top: which frame is which operation, and what is
due when time passes. That they are one object and not twelve spares each operation its way through the others.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from anna.kvs.answers cimport Connection
from anna.kvs.clock cimport Clock
from anna.kvs.peers cimport KIND_LINK, LINK_HEADER_BYTES
from anna.kvs.marks cimport Marks
from anna.lattices.lww cimport LWW
from anna.wire cimport *

from struct import error as struct_error

import msgpack

from anna import config
from anna.errors import AnnaError, NotSupported, ProtocolError, UnavailableError
from anna.routing.hash import key_hash
from anna.vectors import change_from_wire

cdef int EXPIRED_KEYS_MAX = config.EXPIRED_KEYS_MAX

# A driver's Python has both classes from here; a type that is cimported is no name of the module by itself.
globals()["Connection"] = Connection


cdef class Worker(Marks):
    """A worker's core. `place` is its index in `view.workers`; `clock` is its own.

    Call `receive` for bytes that arrived and send what it returns: `bytes`, or a list of `bytes` to be sent one after the other.
    When `connection.failure` is set, send that too and close the connection. Call `tick` when `pushes_due` says so.
    """

    def __init__(self, view, int place, Clock clock, tuple seeds=(), str cluster="anna"):
        super().__init__(view, place, clock, seeds)
        self.started_us = clock.physical_us
        self.take_view(view)
        self.take_part(seeds, cluster)

    # -- which frame is which operation

    cdef int handle(self, Connection connection, const char* frame, Py_ssize_t size) except -1:
        """Answer one whole frame."""
        cdef RequestHeader head
        cdef const char* key = frame + HEADER_BYTES
        memcpy(&head, frame, HEADER_BYTES)
        self.frames += 1
        if head.version != PROTOCOL_VERSION:
            return self.fail(connection, f"a frame has protocol version {head.version}; this worker speaks {PROTOCOL_VERSION}")
        size -= HEADER_BYTES + head.key_bytes
        if head.op == OP_PEER and size >= 0 and head.flags & FLAG_SYSTEM and self.replication is not None:
            return self.hear_frame(connection, &head, key + head.key_bytes, size)
        if size < 0:
            return self.fail(connection, f"a frame says that its key has {head.key_bytes} bytes, {-size} more than the frame")
        # A read needs no clock: it is answered whatever its client has seen, in another life of this cluster perhaps.
        if not self.clock.observe(head.stamp) and not reads_only(head.op):
            self.refused += 1
            return self.reply_text(&head, STATUS_STAMP_AHEAD, b"the request's stamp is more than a minute ahead of this worker's clock")
        if head.op == OP_GET and 1 <= head.key_bytes <= KEY_MAX and key[0] and self.owns(key, head.key_bytes):
            return self.get(&head, key)
        try:
            return self.dispatch(connection, &head, key, key + head.key_bytes, size)
        except AnnaError as error:
            self.refused += 1
            return self.reply_text(&head, status_of(error), str(error).encode())

    cdef int dispatch(self, Connection connection, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        if head.op <= OP_DELETE:
            self.check_key(key, head.key_bytes, head.flags)
            if not self.owns(key, head.key_bytes) or (self.closing and head.op != OP_GET):
                return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
            if head.op == OP_PUT:
                return self.put(head, key, payload, size)
            if head.op == OP_DELETE:
                return self.delete(head, key)
            return self.get(head, key)
        if head.op == OP_MGET:
            return self.multi_get(head, payload, size)
        if head.op == OP_MPUT:
            return self.multi_put(head, payload, size)
        if head.op == OP_VIEW:
            return self.reply_text(head, STATUS_OK, self.view_payload)
        if head.op == OP_STATUS:
            return self.reply_text(head, STATUS_OK, msgpack.packb(self.status()))
        if head.op == OP_SUBSCRIBE or head.op == OP_UNSUBSCRIBE:
            return self.change_subscription(connection, head, key, payload, size)
        if head.op == OP_SCAN:
            return self.scan(head, key, payload, size)
        if head.op == OP_BACKUP:
            return self.backup(head, payload, size)
        if head.op == OP_MGET_AT:
            return self.multi_get_at(head, payload, size)
        if head.op == OP_GET_AT:
            return self.get_at(head, key, payload, size)
        if head.op == OP_PIN:
            return self.pin(head, payload, size)
        if head.op == OP_PREPARE:
            return self.prepare(head, payload, size)
        if head.op == OP_COMMIT:
            return self.commit(head, payload, size)
        if head.op == OP_FINISH:
            return self.finish(head, payload, size)
        if head.op == OP_SUBSCRIBE_AT:
            return self.subscribe_at(connection, head, key, payload, size)
        if head.op == OP_REPLICATE:
            return self.replicate(head, payload, size)
        if head.op == OP_RINGS:
            raise NotSupported("this connection goes on by its socket: no shared memory is to be had for it")
        raise NotSupported(f"operation {head.op} is not known to this worker")

    cdef int change_subscription(self, Connection connection, RequestHeader* head, const char* key, const char* payload,
                                 Py_ssize_t size) except -1:
        """Answer as a get does, and begin to push what changes from then on, in one step; or end it.

        Who is not told what the key holds is not subscribed either: it has to ask again, here or elsewhere. Who says which register it
        has itself, and has the newest, is told so and no more.
        """
        cdef Py_ssize_t begin = self.out.size
        cdef Py_ssize_t chunks = len(self.chunks)
        self.check_key(key, head.key_bytes, head.flags)
        if not self.owns(key, head.key_bytes):
            return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
        if head.op == OP_UNSUBSCRIBE:
            self.subscribe(connection, PyBytes_FromStringAndSize(key, head.key_bytes), False)
            self.reply(head, STATUS_OK, 0, 0)
            return 0
        if size == LWW_HEADER_BYTES and self.has_still(head, key, payload):
            self.subscribe(connection, PyBytes_FromStringAndSize(key, head.key_bytes), True)
            self.reply(head, STATUS_OK, 0, 0)
            return 0
        self.get(head, key)
        # A large state has gone to the chunks, and its answer with it; nothing else that is answered is large.
        if len(self.chunks) > chunks or (<ReplyHeader*>(self.out.data + begin)).status <= STATUS_MISSING:
            self.subscribe(connection, PyBytes_FromStringAndSize(key, head.key_bytes), True)
        return 0

    cdef bint has_still(self, RequestHeader* head, const char* key, const char* known) except -1:
        """Whether the key's state, as a get would answer it now, is the register with the stamp and the writer at `known`."""
        cdef PyObject* found = self.store.states.find(key, head.key_bytes)
        cdef uint64_t place[2]
        if found is NULL or type(<object>found) is not LWW or head.flags & FLAG_STRICT or self.settling:
            return False
        if self.store.expiries and self.has_expired(key, head.key_bytes):
            return False
        memcpy(place, known, LWW_HEADER_BYTES)
        return (<LWW><object>found).stamp == place[0] and (<LWW><object>found).writer == place[1]

    cdef int replicate(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Give keys another replication vector, and answer with the view that says so: their copies are then on the move."""
        keys, vector = change_from_wire(payload[:size])
        for key in keys:
            self.check_key(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), head.flags)
        if self.membership is None:
            raise NotSupported("a cache does not decide who holds a key")
        if self.gone:
            raise UnavailableError("this worker is no part of the cluster any more")
        vectors = self.view.vectors.changed([key_hash(key) for key in keys], vector, self.clock.tick())
        if vectors != self.view.vectors:
            self.adopt(self.view.with_vectors(vectors))
            self.urgent = True
        return self.reply_text(head, STATUS_OK, self.view_payload)

    cdef int hear_frame(self, Connection connection, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Take a message of another worker from the whole frame that it came in."""
        cdef Py_ssize_t first = min(size, <Py_ssize_t>LINK_HEADER_BYTES) if head.type == KIND_LINK else size
        return self.hear_peer(connection, head, PyBytes_FromStringAndSize(payload, first), PyBytes_FromStringAndSize(payload + first, size - first))

    cdef int hear_peer(self, Connection connection, RequestHeader* head, bytes payload, bytes fragment) except -1:
        """Take a message of another worker; it is not answered."""
        self.frames -= 1  # which counts what clients ask
        self.peer_frames += 1
        self.urgent = True
        try:
            self.hear_message(head.type, payload, fragment, head.stamp)
        except (ProtocolError, struct_error) as error:
            return self.fail(connection, str(error))
        self.note_touched()
        if self.listeners:
            self.mark()
        if self.holding:
            self.release_held()
        return 0

    def leave(self, Connection connection):
        """Forget a connection that has ended."""
        for key in sorted(connection.subscriptions):
            self.subscribe(connection, key, False)
        self.end_listener(connection)
        self.holding.pop(connection, None)

    # -- what is due when time passes

    @property
    def pushes_due(self):
        """Whether `tick` has something to push."""
        return self.due()

    cdef bint due(self) except -1:
        """Whether something is to be done at the end of this epoch."""
        return len(self.changed) > 0 or (self.replication is not None and self.replication.busy_until > self.replication.epoch)

    def next_due(self):
        """Return when `tick` is due though nothing arrives, in monotonic ns; None: never. While `pushes_due`, it is due each epoch."""
        due = super().next_due()
        if due is None or self.snapshot is not None or not self.store.expiries_by_time:
            return due
        return min(due, (self.store.expiries_by_time[0][0] - self.clock.offset_us) * 1000)

    def tick(self, int64_t monotonic_ns):
        """Do what is due at the end of an epoch; return [(connection, bytes), …], the pushes to subscribers."""
        self.clock.advance(monotonic_ns // 1000)
        self.now = monotonic_ns
        cdef bytes key
        if self.replication is not None:
            self.keep_time()
            if self.snapshot is not None and self.snapshot.is_forgotten(self.now):
                self.end_snapshot()
            # What a snapshot may still want is deleted when it has ended; until then it counts as deleted.
            for key in self.replication.expire(self.clock.physical_us, 0 if self.snapshot is not None else EXPIRED_KEYS_MAX):
                self.note(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            self.beat()
            self.come_to_rest()
            self.replication.close(self.is_complete)
            self.replication.forget(self.membership.gc_floor(self.replication.stable))
            if self.replication.history is not None:
                self.settle_history()
            self.release_held()
        return self.take_pushes()

    # -- the log

    def open_log(self, number):
        """Begin to log what changes, in batches numbered from `number`; writes may then be acknowledged as durable."""
        self.replication.open_log(number)
        self.logging = True

    @property
    def log_wanted(self):
        """Whether somebody waits for `log_out`."""
        return self.replication is not None and self.replication.log is not None and self.replication.log.wanted and len(self.holding) > 0

    def log_out(self):
        """Return [(number, cells)] that is to be made durable now: one batch at a time, nothing while one is under way."""
        batch = None if self.replication is None else self.replication.take_log()
        return [] if batch is None else [batch]

    def logged(self, number, int64_t monotonic_ns):
        """The batch `number` is durable."""
        self.clock.advance(monotonic_ns // 1000)
        self.disk_full = False
        self.replication.log.logged(number)
        self.release_held()

    def log_is_full(self, bint full):
        """Refuse durable writes, before they are written, while the disk is full."""
        self.disk_full = full

    @property
    def logged_number(self):
        """The number of the last batch that is durable."""
        return self.replication.log.durable_number

    def cells(self, keys=None):
        """Yield (key, cell) of `keys`, each as it is when its turn comes, deletes that are remembered too; all that are here now if None."""
        for key in self.store.keys_now() if keys is None else keys:
            cell = self.replication.cell_of(key)
            if cell:
                if self.store.memory is not None:
                    self.store.memory.gather(key)
                yield key, cell
        yield from self.replication.logged_transactions()

    def kept(self, keys, int64_t monotonic_ns):
        """The cells of `keys` are durable as `cells` gave them: what has not changed since may leave memory, for what waits for room."""
        self.clock.advance(monotonic_ns // 1000)
        self.now = monotonic_ns
        self.store.memory.keep(keys)
        self.release_held()

    def take_forgotten(self):
        """Return the keys of which nothing is known any more, since the last call."""
        forgotten = self.store.forgotten
        if not forgotten:
            return []
        self.store.forgotten = []
        return forgotten

    def recover(self, bytes cells):
        """Join cells of a checkpoint or of the log, in their order, before anything is served."""
        self.replication.recover(cells)

    # -- for those who look at it

    def status(self):
        """Return this worker's figures, as plain data."""
        return {
            "worker_id": self.worker_id,
            "place": self.place,
            "cluster": "" if self.membership is None else self.membership.cluster,
            "view": self.view.version,
            "view_digest": self.view.digest,
            "keys": len(self.store),
            "bytes": self.store.size_bytes,
            "memory_bytes": self.store.taken_bytes,
            "memory_limit": self.store.limit_bytes,
            "cold": 0 if self.store.memory is None else self.store.memory.cold_count,
            "lost": len(self.store.lost),
            "gets": self.gets,
            "puts": self.puts,
            "deletes": self.deletes,
            "frames": self.frames,
            "refused": self.refused,
            "malformed": self.malformed,
            "uptime_us": self.clock.physical_us - self.started_us,
            "stamp": self.clock.last,
            "factor": self.placement.copies_usual,
            "own_vectors": len(self.view.vectors.target),
            "epoch": self.clock.epoch(),
            "complete": self.replication is None or bool(self.is_complete),
            "closed": 0 if self.replication is None else self.replication.closed,
            "stable": 0 if self.replication is None else self.replication.stable,
            "stable_age_p50": 0 if self.replication is None else self.replication.ages.percentile(50),
            "stable_age_p99": 0 if self.replication is None else self.replication.ages.percentile(99),
            "prepared": 0 if self.replication is None else len(self.replication.prepared),
            "commits": 0 if self.replication is None else self.replication.commits,
            "finished": 0 if self.replication is None else self.replication.finished_here,
            "stale": self.stale,
            "peer_frames": self.peer_frames,
            "held": len(self.holding),
            "deltas_sent": 0 if self.replication is None else self.replication.deltas_sent,
            "deltas_taken": 0 if self.replication is None else self.replication.deltas_taken,
            "quarantined": len(self.store.quarantine),
            "tombstones": len(self.store.resets),
            "expiring": len(self.store.expiries),
            "scans": self.scans,
            "logging": bool(self.logging),
            "disk_full": bool(self.disk_full),
            "snapshot": 0 if self.snapshot is None else self.snapshot.epoch,
            "gets_at": self.gets_at,
            **self.status_of_history(),
            **self.status_of_listeners(),
        }

    def status_of_history(self):
        """Return the figures of what is kept for those who read at epochs: since which epoch (0: nothing is), of how many keys, in how many bytes."""
        history = None if self.replication is None else self.replication.history
        if history is None:
            return {"history_from": 0, "history_keys": 0, "history_bytes": 0, "pins": 0}
        return {"history_from": history.floor, "history_keys": len(history.pasts), "history_bytes": history.size_bytes, "pins": len(history.pins)}

    def check(self):
        """Assert the worker's invariants."""
        self.store.check()
        self.check_listeners()
        assert self.out.size == 0 and not self.chunks and not self.deferred, "an answer was left behind"
        if self.replication is not None:
            self.replication.check()
        if self.snapshot is not None:
            self.snapshot.check()
        if self.replication is not None and self.replication.history is not None:
            self.replication.history.check()
        assert self.preserving == (self.snapshot is not None or (self.replication is not None and self.replication.history is not None))
        cdef Connection connection
        for connection in self.holding:
            assert connection.holds, "a connection is held back for nothing"
        for key, listeners in self.subscribers.items():
            assert listeners and all(key in connection.subscriptions for connection in listeners), key
        assert self.changed <= self.subscribers.keys() | self.store.states.keys() | self.changed


cdef bint reads_only(int op) noexcept:
    """Whether an operation changes nothing."""
    return op != OP_PUT and op != OP_DELETE and op != OP_MPUT and op != OP_PREPARE
