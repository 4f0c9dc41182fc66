"""One worker: the protocol between its clients and its keys, from bytes to bytes.

The one rule: what goes in is (connection, bytes, now), what comes out is bytes; there is no socket, clock or randomness here, so a
cluster of workers runs in one test. A frame is answered in the order of its arrival on its connection. A client's mistake becomes a
reply with a status; bytes that are not of the protocol end their own connection and nothing else. Source: DESIGN §2, §5; the
sans-I/O form is h11's.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

cimport cython

from anna.buffer cimport Buffer
from anna.kvs.clock cimport Clock, epoch_begin, epoch_of
from anna.kvs.replication cimport Replication
from anna.kvs.snapshot cimport Snapshot
from anna.kvs.store cimport Store
from anna.kvs.table cimport Slot
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64
from anna.routing.placement cimport Placement
from anna.wire cimport *

from collections import deque
from struct import error as struct_error

import msgpack

from anna import config
from anna.errors import AnnaError, BadKey, Changed, DiskFull, NotSupported, ProtocolError, SnapshotExpired, StaleReplica, StampAhead, UnavailableError, ValueTooLarge
from anna.kvs.faults import PLANTED
from anna.membership import Membership
from anna.lattices import REGISTRY
from anna.messages import View

cdef int EXPIRED_KEYS_MAX = config.EXPIRED_KEYS_MAX
cdef uint32_t SCAN_KEYS_MAX = config.SCAN_KEYS_MAX
cdef int SWEEP_KEYS_MAX = config.SWEEP_KEYS_MAX
cdef Py_ssize_t HELD_BYTES = config.HELD_BYTES_MAX

cdef enum:
    KIND_HEARTBEAT = 2
    # Payloads up to this size are copied into the reply buffer; larger ones are handed to the driver as they are.
    COPIED_BYTES_MAX = 16384
    BULK_BYTES_MIN = 32768
    # How many frames' keys are fetched from memory at once.
    ANNOUNCED_MAX = 16


@cython.final
cdef class Connection:
    """What a worker keeps of one connection: an unfinished frame, its subscriptions, and why it must end (`failure`)."""

    def __init__(self):
        self.pending = Buffer()
        self.bulk = None
        self.bulk_bytes = 0
        self.failure = None
        self.subscriptions = set()
        self.held = None
        self.holds = None


@cython.final
cdef class Hold:
    """An answer that waits, with all behind it on its connection, until its write is as safe as its client asked.

    It begins at byte `begin` of what the connection holds back. `round` must be confirmed by `need` of the workers `peers`, and
    the log's round `log_round` be on disk; 0 for what nobody waits for.
    """

    def __init__(self, uint32_t round, tuple peers, int need, uint32_t log_round, uint64_t epoch, bint usual):
        self.usual = usual
        self.round = round
        self.peers = peers
        self.need = need
        self.log_round = log_round
        self.epoch = epoch

    cdef bint same(self, Hold other):
        """Whether both wait for the same."""
        return (self.round == other.round and self.need == other.need and self.log_round == other.log_round
                and self.usual == other.usual and self.peers == other.peers)


cdef class Worker:
    """A worker's core. `place` is its index in `view.workers`; `clock` is its own.

    Call `receive` for bytes that arrived and send what it returns: `bytes`, or a list of `bytes` to be sent one after the other.
    When `connection.failure` is set, send that too and close the connection. Call `tick` when `pushes_due` says so.
    """

    def __init__(self, view, int place, Clock clock, tuple seeds=(), str cluster="anna"):
        self.clock = clock
        self.now = clock.monotonic_ns
        self.store = Store()
        self.out = Buffer()
        self.chunks = []
        self.subscribers = {}
        self.changed = set()
        self.started_us = clock.physical_us
        self.place = place
        self.worker_id = view.workers[place].worker_id if 0 <= place < len(view.workers) else 0
        self.replication = None
        self.membership = None
        self.deferred = []
        self.holding = {}
        self.released = []
        self.epoch_end = 0xFFFFFFFFFFFFFFFF
        self.seeds = seeds
        self.take_view(view)
        self.take_part(seeds, cluster)

    def take_part(self, tuple seeds, str cluster):
        """Take part in the cluster: send changes to the other owners, close epochs, watch the others. (A node's cache does not.)"""
        self.replication = Replication(self.worker_id, self.store, self.clock)
        self.epoch_end = epoch_begin(self.replication.epoch + 1)
        self.membership = Membership(self.worker_id, self.view.node_of(self.worker_id).node_id, self.view, seeds, self.now, cluster)
        self.take_view(self.view)

    def adopt(self, view):
        """Join what somebody else than a peer knows of the cluster, as the supervisor does of a replaced worker."""
        if self.membership is None:
            self.take_view(view)
            return
        self.membership.learn(view, self.now)
        self.follow_view()

    def follow_view(self):
        """Take up the view of the membership, when it is a new one."""
        view = self.membership.take_change()
        if view is None:
            return
        if view.node_of(self.worker_id).reachable if not self.membership.superseded else False:
            self.take_view(view)
            return
        # This worker is nobody's owner any more; who still asks it is told the view.
        self.view_payload = msgpack.packb(view.to_wire())
        self.gone = True

    def take_view(self, view):
        """Place keys by a newer view. Raises ValueError when it does not name this worker."""
        try:
            self.place = view.index_of(self.worker_id)
        except KeyError as error:
            raise ValueError(str(error)) from None
        self.view = view
        self.placement = Placement(view)
        self.factor = min(view.factor, len(view.workers))
        self.copies_usual = min(2, self.factor)
        self.owns_all = view.factor >= len(view.workers) and view.serving == view.target
        self.view_payload = msgpack.packb(view.to_wire())
        self.closing = False
        if self.replication is not None:
            self.settling = self.settled is not None or len(view.nodes) > 1 or len(self.seeds) > 0
            self.swept = False
            self.replication.adopt(view, self.placement, self.place)
            self.release_held()
            for key in sorted(self.subscribers):
                if not self.owns(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)):
                    self.changed.add(key)

    cpdef object receive(self, Connection connection, bytes data, int64_t monotonic_ns):
        """Take bytes from `connection` and return the answers to the frames that they complete."""
        self.absorb(connection, data, monotonic_ns)
        return self.take()

    cdef int absorb(self, Connection connection, bytes data, int64_t monotonic_ns) except -1:
        """`receive`, but the answers stay in `out` and `chunks`: a driver at C level sends them from there."""
        cdef const char* place = PyBytes_AS_STRING(data)
        cdef Py_ssize_t left = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t total
        cdef int announced = 0
        self.clock.advance(monotonic_ns // 1000)
        self.now = monotonic_ns
        if connection.failure is not None:
            return 0
        if connection.bulk is not None:
            place = self.fill_bulk(connection, place, &left)
        elif connection.pending.size:
            place = self.complete(connection, place, &left)
        while left >= LENGTH_BYTES and connection.failure is None:
            total = LENGTH_BYTES + <Py_ssize_t>(<uint32_t*>place)[0]
            if not HEADER_BYTES <= total <= <Py_ssize_t>FRAME_MAX + LENGTH_BYTES:
                self.fail(connection, f"a frame says that {total - LENGTH_BYTES:,} bytes follow; "
                                      f"{HEADER_BYTES - LENGTH_BYTES} to {FRAME_MAX:,} may")
                break
            if not announced:
                announced = self.announce(place, left)
            announced -= 1
            if left < total:
                if total > BULK_BYTES_MIN and self.begin_bulk(connection, place, left, total):
                    left = 0
                break
            self.handle(connection, place, total)
            place += total
            left -= total
        if left and connection.failure is None:
            connection.pending.append(place, left)
        if self.deferred or connection.holds:
            self.hold_back(connection)
        return 0

    cdef int announce(self, const char* place, Py_ssize_t left) noexcept:
        """Begin to fetch from memory what the next frames will ask for; return how many frames were looked at, at least one."""
        cdef uint64_t[ANNOUNCED_MAX] hashes
        cdef RequestHeader* head
        cdef int count = 0
        cdef int index
        cdef Py_ssize_t total
        while count < ANNOUNCED_MAX and left >= HEADER_BYTES:
            head = <RequestHeader*>place
            total = LENGTH_BYTES + <Py_ssize_t>head.length
            if total > left or total < HEADER_BYTES + <Py_ssize_t>head.key_bytes:
                break
            hashes[count] = hash64(place + HEADER_BYTES, head.key_bytes)
            if count or total < left:
                self.store.states.prefetch_slot(hashes[count])
            count += 1
            place += total
            left -= total
        if count > 1:
            for index in range(count):
                self.store.states.prefetch_entry(hashes[index])
            for index in range(count):
                self.store.states.prefetch_payload(hashes[index])
        return max(count, 1)

    cdef const char* complete(self, Connection connection, const char* data, Py_ssize_t* size) except? NULL:
        """Move bytes to the unfinished frame; handle it when it is whole. Returns where the next frame begins."""
        cdef Buffer pending = connection.pending
        cdef Py_ssize_t wanted, total
        while size[0] and connection.failure is None:
            total = LENGTH_BYTES
            if pending.size >= LENGTH_BYTES:
                total += (<uint32_t*>pending.data)[0]
                if not HEADER_BYTES <= total <= <Py_ssize_t>FRAME_MAX + LENGTH_BYTES:
                    self.fail(connection, f"a frame says that {total - LENGTH_BYTES:,} bytes follow; "
                                          f"{HEADER_BYTES - LENGTH_BYTES} to {FRAME_MAX:,} may")
                    break
            wanted = min(total - pending.size, size[0])
            pending.append(data, wanted)
            data += wanted
            size[0] -= wanted
            if pending.size == total and total > LENGTH_BYTES:
                self.handle(connection, pending.data, total)
                pending.shrink()
                break
        return data

    cdef int begin_bulk(self, Connection connection, const char* frame, Py_ssize_t size, Py_ssize_t total) except -1:
        """Begin to receive a large register straight into the bytes that will be stored; False when the frame is no such put."""
        cdef RequestHeader* head = <RequestHeader*>frame
        cdef Py_ssize_t prefix = HEADER_BYTES + LWW_HEADER_BYTES
        if size < HEADER_BYTES or head.op != OP_PUT or head.type != LWW_NUMBER or head.version != PROTOCOL_VERSION:
            return False
        if head.flags & (FLAG_COMPARE | FLAG_EXPIRES):
            return False  # its state begins later
        prefix += head.key_bytes
        if size < prefix:
            return False
        connection.pending.append(frame, prefix)
        connection.bulk = PyBytes_FromStringAndSize(NULL, total - prefix)
        connection.bulk_bytes = size - prefix
        memcpy(PyBytes_AS_STRING(connection.bulk), frame + prefix, size - prefix)
        return True

    cdef const char* fill_bulk(self, Connection connection, const char* data, Py_ssize_t* size) except NULL:
        """Move bytes to the large register under way; store and answer it when it is whole. Returns where the next frame begins."""
        cdef Py_ssize_t wanted = min(PyBytes_GET_SIZE(connection.bulk) - connection.bulk_bytes, size[0])
        cdef RequestHeader* head = <RequestHeader*>connection.pending.data
        cdef uint64_t* place
        memcpy(PyBytes_AS_STRING(connection.bulk) + connection.bulk_bytes, data, wanted)
        connection.bulk_bytes += wanted
        size[0] -= wanted
        if connection.bulk_bytes < PyBytes_GET_SIZE(connection.bulk):
            return data + wanted
        bulk, connection.bulk = connection.bulk, None
        self.frames += 1
        key = connection.pending.data + HEADER_BYTES
        place = <uint64_t*>(key + head.key_bytes)
        try:
            self.put_bulk(head, key, place, bulk)
        except AnnaError as error:
            self.refused += 1
            self.reply_text(head, status_of(error), str(error).encode())
        connection.pending.shrink()
        return data + wanted

    cdef int put_bulk(self, RequestHeader* head, const char* key, uint64_t* place, bytes bulk) except -1:
        """`put` of a large register whose bytes are an object already; `place` holds its stamp and writer."""
        if not self.clock.observe(head.stamp):
            raise StampAhead("the request's stamp is more than a minute ahead of this worker's clock")
        self.check_key(key, head.key_bytes, head.flags)
        if not self.owns(key, head.key_bytes) or self.closing:
            return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
        if PyBytes_GET_SIZE(bulk) + LWW_HEADER_BYTES > <Py_ssize_t>VALUE_MAX:
            raise ValueTooLarge(f"a value has {len(bulk) + LWW_HEADER_BYTES:,} bytes; value_bytes_max is {VALUE_MAX:,}")
        self.check_copies(key, head.key_bytes, head.ack)
        self.puts += 1
        self.write_register(key, head.key_bytes, place[0], place[1], bulk)
        if self.store.expiries:
            self.expire_after(PyBytes_FromStringAndSize(key, head.key_bytes), 0)
        return self.acknowledge(head, key)

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
            return self.hear_peer(connection, &head, key + head.key_bytes, size)
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
            return self.change_subscription(connection, head, key)
        if head.op == OP_SCAN:
            return self.scan(head, key, payload, size)
        if head.op == OP_BACKUP:
            return self.backup(head, payload, size)
        raise NotSupported(f"operation {head.op} is not known to this worker")

    cdef int scan(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        """Answer with the next keys here that begin with the request's key: msgpack [keys, whether there are more].

        The payload is u32 limit and the key after which to go on. Keys of which this worker holds a copy count too.
        """
        cdef uint32_t limit
        if size < 4:
            raise ProtocolError(f"a scan begins with a limit of 4 bytes, got {size}")
        memcpy(&limit, payload, 4)
        limit = max(1, min(limit, SCAN_KEYS_MAX))
        begin = PyBytes_FromStringAndSize(key, head.key_bytes)
        cursor = PyBytes_FromStringAndSize(payload + 4, size - 4)
        if not head.flags & FLAG_SYSTEM:
            cursor = max(cursor, b"\x00" + b"\xff" * KEY_MAX) if not begin else cursor
            if begin[:1] == b"\x00":
                raise BadKey("keys that begin with a zero byte are reserved for the system")
        keys = self.store.states.after(begin, cursor, limit)
        more = len(keys) == limit
        if self.store.expiries:
            keys = [name for name in keys if not self.store.expired(name, self.clock.physical_us)]
        self.scans += 1
        return self.reply_text(head, STATUS_OK, msgpack.packb([keys, more]))

    # -- the state at one epoch

    cdef int backup(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """One step of reading this worker's keys as they are at the end of an epoch that has not ended yet.

        The payload is u64 epoch, u64 place; the answer's u64 digest of the view, u64 place to go on at (0: that was all), cells. BEGIN
        and END are without cells. SnapshotExpired: begin again with a later epoch; StaleReplica: ask again soon.
        """
        cdef uint64_t epoch, place
        cdef uint64_t rest = 0
        cells = b""
        if self.replication is None or head.type not in (BACKUP_BEGIN, BACKUP_PAGE, BACKUP_END):
            raise NotSupported(f"step {head.type} of a backup is not known to this worker")
        if size != 16:
            raise ProtocolError(f"a step of a backup has 16 bytes, got {size}")
        memcpy(&epoch, payload, 8)
        memcpy(&place, payload + 8, 8)
        if head.type == BACKUP_BEGIN:
            self.begin_snapshot(epoch)
        elif self.snapshot is None or self.snapshot.epoch != epoch or self.snapshot.spoiled:
            raise SnapshotExpired(f"epoch {epoch} is not kept here, or the cluster changed while it was")
        elif head.type == BACKUP_END:
            self.end_snapshot()
        elif self.replication.stable < epoch:
            self.replication.hurry()
            raise StaleReplica(f"epoch {epoch} is not stable yet, {self.replication.stable} is")
        else:
            cells, rest = self.snapshot.page(place, self.is_first_owner, self.now)
        digest = self.view.digest
        return self.reply_text(head, STATUS_OK, digest.to_bytes(8, "little") + int(rest).to_bytes(8, "little") + cells)

    def begin_snapshot(self, uint64_t epoch):
        """Keep the state at the end of `epoch` from now on. Raises SnapshotExpired when it is too late, Unavailable while another is kept."""
        self.keep_time()
        if epoch < self.replication.epoch:
            raise SnapshotExpired(f"epoch {epoch} has ended here, {self.replication.epoch} runs")
        if self.snapshot is not None and not self.snapshot.spoiled and self.snapshot.epoch != epoch:
            raise UnavailableError(f"another backup is under way, of epoch {self.snapshot.epoch}")
        self.snapshot = Snapshot(self.store, epoch, self.now)
        self.replication.snapshot = self.snapshot
        self.replication.hurry()

    def end_snapshot(self):
        """Let go of the state that was kept."""
        self.snapshot = None
        self.replication.snapshot = None

    def is_first_owner(self, bytes key):
        """Whether this worker is the one owner that a backup has the key of."""
        return self.placement.owner(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)) == self.place and not self.gone

    cdef int preserve(self, const char* key, Py_ssize_t key_bytes) except -1:
        """A client is about to change `key`, and a snapshot is kept: copy the key's state aside if it belongs there."""
        if self.replication.epoch > self.snapshot.epoch:
            self.snapshot.keep(PyBytes_FromStringAndSize(key, key_bytes))
        return 0

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

    cdef char* reply(self, RequestHeader* head, int status, int type, Py_ssize_t payload_bytes) except NULL:
        """Begin a reply and return where its payload goes."""
        cdef char* place = self.out.reserve(HEADER_BYTES + payload_bytes)
        cdef ReplyHeader* answer = <ReplyHeader*>place
        answer.length = <uint32_t>(HEADER_BYTES - LENGTH_BYTES + payload_bytes)
        answer.version = PROTOCOL_VERSION
        answer.status = status
        answer.type = type
        answer.flags = 0
        answer.request = head.request
        answer.stable = 0 if self.replication is None else <uint32_t>self.replication.stable
        answer.stamp = self.clock.last
        return place + HEADER_BYTES

    cdef int reply_text(self, RequestHeader* head, int status, bytes payload) except -1:
        memcpy(self.reply(head, status, 0, PyBytes_GET_SIZE(payload)), PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
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

    cdef bint owns(self, const char* key, Py_ssize_t size) noexcept:
        """Whether this worker is one of the key's owners."""
        cdef int owners[32]
        cdef int index, count
        if self.owns_all or self.placement.owner(key, size) == self.place:
            return not self.gone
        if self.factor == 1 or self.gone:
            return False
        count = self.placement.owners_at(hash64(key, size), self.factor, owners)
        for index in range(1, count):
            if owners[index] == self.place:
                return True
        return False

    cdef int check_key(self, const char* key, Py_ssize_t size, int flags) except -1:
        if not 1 <= size <= <Py_ssize_t>KEY_MAX:
            raise BadKey(f"a key has 1 to {KEY_MAX:,} bytes, got {size:,}")
        if key[0] == 0 and not flags & FLAG_SYSTEM:
            raise BadKey("keys that begin with a zero byte are reserved for the system")
        return 0

    cdef int get(self, RequestHeader* head, const char* key) except -1:
        cdef PyObject* found = self.store.states.find(key, head.key_bytes)
        self.gets += 1
        if head.flags & FLAG_STRICT and not self.is_current(head.stamp):
            self.stale += 1
            return self.reply_text(head, STATUS_STALE, b"this replica may lack what the client has seen; it will soon have it")
        if self.settling and not self.has(key, head.key_bytes):
            self.stale += 1
            return self.reply_text(head, STATUS_STALE, b"this worker is about to take the key over; another owner has it")
        if found is NULL or (self.store.expiries and self.has_expired(key, head.key_bytes)):
            self.reply(head, STATUS_MISSING, 0, 0)
            return 0
        return self.reply_state(head, <Lattice>found)

    cdef bint is_current(self, uint64_t stamp) except -1:
        """Whether everything that was written up to `stamp` is here."""
        if self.replication is None:
            return True
        if epoch_of(stamp) <= self.replication.stable or self.clock.disbelieves(stamp) or "stale-owner" in PLANTED:
            return True
        self.replication.hurry()
        return False

    cdef int put(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        cdef uint64_t lives_us = 0
        if head.ack or self.copies_usual > 1:
            self.check_copies(key, head.key_bytes, head.ack)
        if head.flags & (FLAG_COMPARE | FLAG_EXPIRES):
            if head.flags & FLAG_COMPARE:
                self.compare(key, head.key_bytes, payload, size)
                payload += 8
                size -= 8
            if head.flags & FLAG_EXPIRES:
                if size < 8:
                    raise ProtocolError("a put that expires does not say when")
                memcpy(&lives_us, payload, 8)
                payload += 8
                size -= 8
        self.write(key, head.key_bytes, head.type, payload, size)
        if lives_us or self.store.expiries:
            self.expire_after(PyBytes_FromStringAndSize(key, head.key_bytes), lives_us)
        if head.ack > 1 or (head.ack == 0 and self.copies_usual > 1):
            return self.acknowledge(head, key)
        self.reply(head, STATUS_OK, 0, 0)
        return 0

    cdef int compare(self, const char* key, Py_ssize_t key_bytes, const char* payload, Py_ssize_t size) except -1:
        """Raise Changed unless the register under `key` has the stamp that the request names (0: there is none)."""
        cdef uint64_t expected
        cdef uint64_t found = 0
        cdef PyObject* state = self.store.states.find(key, key_bytes)
        if size < 8:
            raise ProtocolError("a put that compares does not say with what")
        memcpy(&expected, payload, 8)
        if not self.has(key, key_bytes):
            raise StaleReplica("this worker is about to take the key over; another owner has it")
        if state is not NULL and type(<object>state) is not LWW:
            raise self.store.mismatch(PyBytes_FromStringAndSize(key, key_bytes), <Lattice>state, LWW)
        if state is not NULL and not self.has_expired(key, key_bytes):
            found = (<LWW>state).stamp
        if found != expected:
            raise Changed(f"the register has stamp {found}, not {expected}")
        return 0

    def expire_after(self, bytes key, lives_us):
        """Let what was just written to `key` live for `lives_us` microseconds; 0: for ever."""
        state = self.store.read(key)
        stamp = state.stamp if type(state) is LWW else self.clock.last
        self.store.expire_at(key, self.clock.physical_us + lives_us if lives_us else 0, stamp)

    cdef bint has_expired(self, const char* key, Py_ssize_t key_bytes) except -1:
        return self.store.expired(PyBytes_FromStringAndSize(key, key_bytes), self.clock.physical_us) if self.store.expiries else False

    # -- how safe a write is

    cdef int check_copies(self, const char* key, Py_ssize_t key_bytes, int ack) except -1:
        """Raise, before anything is written, when a write cannot become as safe as `ack` asks."""
        cdef int owners[32]
        cdef int count
        if ack == 0 or ack == 1:
            return 0
        if ack == ACK_DISK:
            if not self.logging:
                raise NotSupported("ack='disk' asks for a log; this worker keeps none (anna serve --data DIR)")
            if self.disk_full:
                raise DiskFull("the disk is full; nothing was written")
            return 0
        count = self.replicas(key, key_bytes, owners)
        if count < ack:
            raise UnavailableError(f"ack={ack} asks for {ack} copies; the key has {count} owner{'s' if count != 1 else ''} now")
        return 0

    cdef int replicas(self, const char* key, Py_ssize_t key_bytes, int* owners) except -1:
        """Write the places of all to whom a write to `key` goes; return how many they are."""
        if self.replication is None:
            owners[0] = self.place
            return 1
        return self.placement.span_at(hash64(key, key_bytes), self.factor, owners)

    cdef int acknowledge(self, RequestHeader* head, const char* key) except -1:
        """Answer a write: at once, or when it is as safe as the client asked."""
        cdef int copies = head.ack
        cdef int durable = 0
        cdef Hold hold = None
        if self.replication is not None and head.ack != 1:
            if copies == ACK_DISK:
                durable = 1
                copies = 1
            elif copies == 0:
                copies = self.copies_usual
            hold = self.hold_for(PyBytes_FromStringAndSize(key, head.key_bytes), copies, durable, head.ack == 0)
        self.reply_held(head, STATUS_OK, max(copies, 1), durable, b"", hold)
        return 0

    cdef Hold hold_for(self, bytes key, int copies, bint durable, bint usual):
        """Return what a write to `key` has to wait for, None for nothing; `usual` takes fewer copies when there are fewer owners."""
        cdef tuple peers = ()
        if copies > 1:
            peers = self.replication.peers_of(key)
            copies = min(copies, len(peers) + 1)
        if "unsynced-log" in PLANTED:
            durable = False
        if "early-ack" in PLANTED or (copies <= 1 and not durable):
            return None
        cdef uint32_t log_round = self.replication.round_to_log if durable else 0
        return Hold(self.replication.changes.round, peers, copies - 1, log_round, self.replication.epoch, usual)

    cdef int reply_held(self, RequestHeader* head, int status, int copies, int durable, bytes payload, Hold hold) except -1:
        """Write an answer that says how safe the write is; with `hold`, it is kept back until that is true."""
        cdef ReplyHeader* answer
        cdef Py_ssize_t begin = self.out.size
        cdef char* place
        for chunk in self.chunks:
            begin += len(chunk)
        place = self.reply(head, status, copies - 1, PyBytes_GET_SIZE(payload))
        memcpy(place, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        answer = <ReplyHeader*>(place - HEADER_BYTES)
        answer.flags = durable
        if hold is not None:
            hold.begin = begin
            self.deferred.append(hold)
        return 0

    cdef int hold_back(self, Connection connection) except -1:
        """Keep back what was answered on `connection` from its first answer that has to wait on."""
        cdef Hold hold
        cdef bytes answers
        cdef Py_ssize_t base, first
        chunks = self.take()
        answers = chunks if isinstance(chunks, bytes) else b"".join(chunks)
        if not connection.holds:
            connection.holds = deque()
            connection.held = Buffer()
            first = (<Hold>self.deferred[0]).begin
            self.out.append(PyBytes_AS_STRING(answers), first)
            base = -first
            connection.held.append(PyBytes_AS_STRING(answers) + first, PyBytes_GET_SIZE(answers) - first)
        else:
            base = connection.held.size
            connection.held.append(PyBytes_AS_STRING(answers), PyBytes_GET_SIZE(answers))
        copies = False
        self.urgent = True
        for hold in self.deferred:
            hold.begin += base
            copies = copies or hold.need
            if not connection.holds or not hold.same(connection.holds[len(connection.holds) - 1]):
                connection.holds.append(hold)
        self.deferred = []
        self.holding[connection] = None
        if connection.held.size > HELD_BYTES:
            return self.give_up(connection, f"{connection.held.size:,} bytes of answers wait behind a write; held_bytes_max is {HELD_BYTES:,}")
        if copies:
            self.replication.wait_for_copies()
        return 0

    def release_held(self):
        """Move what need not wait any more to `released`: [(connection, bytes)], to be sent in that order."""
        cdef Connection connection
        cdef Hold hold
        cdef Py_ssize_t ready
        for connection in list(self.holding):
            ready = 0
            if self.is_hopeless(connection.holds[0]):
                self.give_up(connection, f"{self.factor} owner{'s' if self.factor != 1 else ''} of the key are left, fewer than the copies that were asked for")
                continue
            while connection.holds and self.holds_no_more(connection.holds[0]):
                connection.holds.popleft()
                ready = (<Hold>connection.holds[0]).begin if connection.holds else connection.held.size
            if not ready:
                continue
            self.released.append((connection, PyBytes_FromStringAndSize(connection.held.data, ready)))
            self.urgent = True
            if not connection.holds:
                connection.held = None
                del self.holding[connection]
                continue
            memmove(connection.held.data, connection.held.data + ready, connection.held.size - ready)
            connection.held.size -= ready
            for hold in connection.holds:
                hold.begin -= ready

    cdef bint holds_no_more(self, Hold hold) except -1:
        if hold.log_round and self.replication.log_round < hold.log_round:
            return False
        if not hold.need:
            return True
        if self.replication.copies_of(hold.round, hold.peers) >= hold.need:
            return True
        # Its peers may have left the view; what is closed is wherever the view of now wants it.
        return self.replication.closed >= hold.epoch and (hold.usual or self.factor > hold.need)

    cdef bint is_hopeless(self, Hold hold) except -1:
        """Whether there are not as many owners any more as a write's copies were to be."""
        return hold.need > 0 and not hold.usual and self.factor <= hold.need and self.replication.closed >= hold.epoch

    cdef int give_up(self, Connection connection, str why) except -1:
        """End a connection whose answers cannot be given: nobody knows what becomes of the writes that wait on it."""
        cdef RequestHeader head
        head.request = 0
        self.reply_text(&head, STATUS_LOST, why.encode())
        self.released.append((connection, self.take()))
        connection.failure = why
        connection.held = None
        connection.holds = None
        self.holding.pop(connection, None)
        self.urgent = True
        return 0

    def take_released(self):
        """Return [(connection, bytes), …] that waited and may be sent now."""
        released, self.released = self.released, []
        return released

    # -- peers

    cdef int hear_peer(self, Connection connection, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Take a message of another worker; it is not answered."""
        self.frames -= 1  # which counts what clients ask
        self.peer_frames += 1
        self.urgent = True
        try:
            self.hear_message(head.type, PyBytes_FromStringAndSize(payload, size), head.stamp)
        except (ProtocolError, struct_error) as error:
            return self.fail(connection, str(error))
        if self.replication.touched:
            for key in self.replication.touched:
                if key in self.subscribers:
                    self.changed.add(key)
            self.replication.touched.clear()
        if self.holding:
            self.release_held()
        return 0

    def hear_message(self, int kind, bytes payload, uint64_t stamp):
        """Take one message of another worker, whose clock shows `stamp`. Raises ProtocolError."""
        cdef uint64_t sender
        if len(payload) < 16:
            raise ProtocolError(f"a peer's message begins with 16 bytes of worker ids, got {len(payload)}")
        memcpy(&sender, PyBytes_AS_STRING(payload), 8)
        if kind != KIND_HEARTBEAT:
            # A stranger, or who takes this worker for another, moves nothing here, its clock least of all.
            if self.replication.knows(payload):
                self.clock.pull(stamp)
                self.keep_time()
                self.membership.alive(sender, self.now)
                self.replication.hear(kind, payload, self.now)
            return
        rider = self.membership.hear(sender, payload[16:], self.now)
        self.follow_view()
        if sender in self.replication.links:
            self.clock.pull(stamp)
            self.keep_time()
        if rider:
            self.replication.take_closing(sender, rider)

    def beat(self):
        """Send the heartbeats that are due, and judge who is dead."""
        self.membership.rider = self.replication.closing()
        for target, data in self.membership.poll(self.now):
            self.replication.post(KIND_HEARTBEAT, target, data)
        self.follow_view()

    @property
    def superseded(self):
        """Whether this worker must stop: its seat is another's by now, or its node was forgotten."""
        return self.membership is not None and self.membership.superseded

    @property
    def has_left(self):
        """Whether the node has handed over all its keys: its workers may stop."""
        return self.membership is not None and self.membership.has_left

    def depart(self):
        """Begin to hand over all keys of this worker's node, to be gone then. Raises NoWorkers when nobody could take them."""
        self.membership.leave(self.now)
        self.follow_view()

    cdef int keep_time(self) except -1:
        """Begin the next epoch when the clock has reached it."""
        cdef uint64_t epoch
        if self.replication is None:
            return 0
        epoch = self.clock.epoch()
        if epoch > self.replication.epoch:
            self.replication.turn(epoch)
            self.epoch_end = epoch_begin(epoch + 1)
        return 0

    cdef uint64_t stamp_write(self) except 0:
        """Return the stamp of a write that happens now."""
        cdef uint64_t stamp = self.clock.tick()
        if stamp >= self.epoch_end:
            self.keep_time()
        return stamp

    def outgoing(self):
        """Return [(worker id, frame), …] to be sent to other workers; what cannot be sent may be dropped."""
        self.urgent = False
        return [] if self.replication is None else self.replication.outgoing(self.now)

    # -- the log

    def open_log(self, number):
        """Begin to log what changes, in batches numbered from `number`; writes may then be acknowledged as durable."""
        self.replication.open_log(number)
        self.logging = True

    def log_out(self):
        """Return [(number, cells)] that is to be made durable now: one batch at a time, nothing while one is under way."""
        batch = None if self.replication is None else self.replication.take_log()
        return [] if batch is None else [batch]

    def logged(self, number, int64_t monotonic_ns):
        """The batch `number` is durable."""
        self.clock.advance(monotonic_ns // 1000)
        self.disk_full = False
        self.replication.logged(number)
        self.release_held()

    def log_is_full(self, bint full):
        """Refuse durable writes, before they are written, while the disk is full."""
        self.disk_full = full

    @property
    def logged_number(self):
        """The number of the last batch that is durable."""
        return self.replication.logged_number

    def cells(self):
        """Yield (key, cell) of every key that is here now, each as it is when its turn comes; deletes that are remembered too."""
        for key in self.store.keys_now():
            if key in self.store.states or self.store.reset_of(key):
                yield key, self.replication.cell_of(key)

    def take_forgotten(self):
        """Return the keys of which nothing is known any more, since the last call."""
        forgotten = self.store.forgotten
        if not forgotten:
            return []
        self.store.forgotten = []
        return forgotten

    @property
    def waiting(self):
        """How many connections wait until a write is as safe as they asked."""
        return len(self.holding)

    @property
    def log_wanted(self):
        """Whether somebody waits for `log_out`."""
        return self.replication is not None and self.replication.log_wanted and len(self.holding) > 0

    def recover(self, bytes cells):
        """Join cells of a checkpoint or of the log, in their order, before anything is served."""
        self.replication.recover(cells)

    cdef int write(self, const char* key, Py_ssize_t key_bytes, int type, const char* payload, Py_ssize_t size) except -1:
        """Join one written state into its key. Raises an AnnaError, and changes nothing, when it cannot be."""
        cdef uint64_t stamp, writer
        if size > <Py_ssize_t>VALUE_MAX:
            raise ValueTooLarge(f"a value has {size:,} bytes; value_bytes_max is {VALUE_MAX:,}")
        self.puts += 1
        if type == LWW_NUMBER:
            if size < LWW_HEADER_BYTES:
                raise ProtocolError(f"an LWW has at least {LWW_HEADER_BYTES} bytes, got {size}")
            memcpy(&stamp, payload, 8)
            memcpy(&writer, payload + 8, 8)
            return self.write_register(
                key, key_bytes, stamp, writer, PyBytes_FromStringAndSize(payload + LWW_HEADER_BYTES, size - LWW_HEADER_BYTES))
        self.write_state(PyBytes_FromStringAndSize(key, key_bytes), type, payload[:size])
        self.note(key, key_bytes)
        return 0

    cdef int write_register(self, const char* key, Py_ssize_t key_bytes, uint64_t stamp, uint64_t writer, bytes payload) except -1:
        """Join a register into its key, stamped here unless it has a stamp."""
        cdef Slot* slot
        if stamp == 0 and writer == 0:
            stamp = self.stamp_write()
            writer = self.worker_id
        elif not self.clock.observe(stamp):
            raise StampAhead("the register's stamp is more than a minute ahead of this worker's clock")
        else:
            self.keep_time()
            if self.store.resets and stamp <= self.store.reset_of(PyBytes_FromStringAndSize(key, key_bytes)):
                return 0  # the key was deleted later than this was written
        if self.snapshot is not None:
            self.preserve(key, key_bytes)
        slot = self.store.write_register(key, key_bytes, stamp, writer, payload)
        if self.replication is not None:
            self.replication.note_register(slot)
        self.note(key, key_bytes)
        return 0

    def write_state(self, bytes key, int number, bytes payload):
        """Join a state of any type into `key`, after the owner's part was assigned to it."""
        kind = REGISTRY.get(number)
        if kind is None:
            raise NotSupported(f"lattice type {number} is not known to this worker")
        cdef Lattice written = kind.decode(payload)
        cdef Lattice current = self.store.read(key)
        cdef Lattice delta
        cdef uint64_t stamp
        if current is not None and type(current) is not kind:
            raise self.store.mismatch(key, current, kind)
        stamp = self.stamp_write()
        if self.snapshot is not None:
            self.preserve(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        delta = written.assign(current, stamp, self.worker_id)
        self.store.write(key, delta)
        if self.replication is not None:
            self.replication.note_delta(key, stamp, delta)

    cdef int delete(self, RequestHeader* head, const char* key) except -1:
        cdef bytes name = PyBytes_FromStringAndSize(key, head.key_bytes)
        cdef uint64_t stamp
        cdef bint existed
        self.check_copies(key, head.key_bytes, head.ack)
        self.deletes += 1
        stamp = self.stamp_write()
        if self.snapshot is not None:
            self.preserve(key, head.key_bytes)
        existed = name in self.store.states and not self.has_expired(key, head.key_bytes)
        if self.replication is None or not self.replication.remembers:
            self.store.remove(name)
            self.store.expire_at(name, 0, stamp)
        else:
            self.store.reset(name, stamp)
            self.store.expire_at(name, 0, stamp)
            self.replication.note_deleted(name)
        if existed:
            self.note(key, head.key_bytes)
        if existed and (head.ack or self.copies_usual > 1):
            return self.acknowledge(head, key)
        self.reply(head, STATUS_OK if existed else STATUS_MISSING, 0, 0)
        return 0

    cdef int multi_get(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        cdef uint32_t count = batch_count(payload, size)
        cdef const char* end = payload + size
        cdef const char* place = payload + 4
        cdef Py_ssize_t begin = self.out.size
        cdef uint32_t index
        cdef uint16_t key_bytes
        if head.flags & FLAG_STRICT and not self.is_current(head.stamp):
            self.stale += 1
            return self.reply_text(head, STATUS_STALE, b"this replica may lack what the client has seen; it will soon have it")
        (<uint32_t*>self.reply(head, STATUS_OK, 0, 4))[0] = count
        try:
            for index in range(count):
                if end - place < 2:
                    raise ProtocolError(f"a multi-get of {count} keys ends within key {index}")
                memcpy(&key_bytes, place, 2)
                place += 2
                if end - place < key_bytes:
                    raise ProtocolError(f"a multi-get of {count} keys ends within key {index}")
                self.multi_get_item(place, key_bytes, head.flags)
                place += key_bytes
            if place != end:
                raise ProtocolError(f"a multi-get of {count} keys has {end - place} bytes too many")
        except BaseException:
            self.out.size = begin
            raise
        # The length is known only now: a reply of many keys may be longer than one frame may be.
        size = self.out.size - begin - LENGTH_BYTES
        if size > <Py_ssize_t>FRAME_MAX:
            self.out.size = begin
            raise ValueTooLarge(f"the {count} values have {size:,} bytes together; a frame may have {FRAME_MAX:,}: ask for fewer at once")
        (<ReplyHeader*>(self.out.data + begin)).length = <uint32_t>size
        return 0

    cdef int multi_get_item(self, const char* key, Py_ssize_t key_bytes, int flags) except -1:
        cdef ReplyItem* item
        cdef uint64_t* place
        cdef PyObject* found
        cdef LWW register
        cdef bytes payload
        cdef Py_ssize_t size
        self.check_key(key, key_bytes, flags)
        self.gets += 1
        if not self.owns(key, key_bytes):
            item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES)
            item[0] = ReplyItem(STATUS_WRONG_WORKER, 0, 0, 0)
            return 0
        if self.settling and not self.has(key, key_bytes):
            self.stale += 1
            item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES)
            item[0] = ReplyItem(STATUS_STALE, 0, 0, 0)
            return 0
        found = self.store.states.find(key, key_bytes)
        if found is NULL or (self.store.expiries and self.has_expired(key, key_bytes)):
            item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES)
            item[0] = ReplyItem(STATUS_MISSING, 0, 0, 0)
            return 0
        if type(<object>found) is LWW:
            register = <LWW>found
            size = PyBytes_GET_SIZE(register.payload)
            item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES + LWW_HEADER_BYTES + size)
            item[0] = ReplyItem(STATUS_OK, LWW_NUMBER, 0, <uint32_t>(LWW_HEADER_BYTES + size))
            place = <uint64_t*>(<char*>item + ITEM_HEADER_BYTES)
            memcpy(place, &register.stamp, 8)
            memcpy(place + 1, &register.writer, 8)
            memcpy(place + 2, PyBytes_AS_STRING(register.payload), size)
            return 0
        payload = (<Lattice>found).encode()
        size = PyBytes_GET_SIZE(payload)
        item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES + size)
        item[0] = ReplyItem(STATUS_OK, (<Lattice>found).NUMBER, 0, <uint32_t>size)
        memcpy(<char*>item + ITEM_HEADER_BYTES, PyBytes_AS_STRING(payload), size)
        return 0

    cdef int multi_put(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        cdef uint32_t count = batch_count(payload, size)
        cdef const char* end = payload + size
        cdef const char* place = payload + 4
        cdef PutItem item
        cdef uint32_t index
        cdef list failures = None
        cdef list holds = []
        cdef Hold hold
        cdef int copies = 1
        cdef bint waits = self.replication is not None and head.ack != 1 and (head.ack > 0 or self.copies_usual > 1)
        check_put_items(place, end, count)
        for index in range(count):
            memcpy(&item, place, ITEM_HEADER_BYTES)
            place += ITEM_HEADER_BYTES
            try:
                self.check_key(place, item.key_bytes, head.flags)
                if self.owns(place, item.key_bytes) and not self.closing:
                    if waits:
                        self.check_copies(place, item.key_bytes, head.ack)
                    self.write(place, item.key_bytes, item.type, place + item.key_bytes, item.payload_bytes)
                    if self.store.expiries:
                        self.expire_after(PyBytes_FromStringAndSize(place, item.key_bytes), 0)
                    if waits:
                        copies = self.copies_usual if head.ack == 0 else 1 if head.ack == ACK_DISK else head.ack
                        hold = self.hold_for(PyBytes_FromStringAndSize(place, item.key_bytes), copies, head.ack == ACK_DISK, head.ack == 0)
                        if hold is not None and not (holds and hold.same(holds[len(holds) - 1])):
                            holds.append(hold)
                else:
                    failures = failures or []
                    failures.append([index, STATUS_WRONG_WORKER, ""])
            except AnnaError as error:
                self.refused += 1
                failures = failures or []
                failures.append([index, status_of(error), str(error)])
            place += item.key_bytes + item.payload_bytes
        payload_out = b"" if failures is None else msgpack.packb(failures)
        self.reply_held(head, STATUS_OK if failures is None else STATUS_PARTIAL, copies, head.ack == ACK_DISK, payload_out, holds[0] if holds else None)
        for hold in holds[1:]:
            hold.begin = (<Hold>holds[0]).begin
            self.deferred.append(hold)
        return 0

    cdef int change_subscription(self, Connection connection, RequestHeader* head, const char* key) except -1:
        """Begin to push what changes under a key, and answer as a get does, in one step; or end it."""
        self.check_key(key, head.key_bytes, head.flags)
        if not self.owns(key, head.key_bytes):
            return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
        self.subscribe(connection, PyBytes_FromStringAndSize(key, head.key_bytes), head.op == OP_SUBSCRIBE)
        if head.op == OP_SUBSCRIBE:
            return self.get(head, key)
        self.reply(head, STATUS_OK, 0, 0)
        return 0

    def subscribe(self, Connection connection, bytes key, bint wanted):
        """Begin or end to push what changes under `key` to `connection`."""
        cdef set listeners
        if wanted:
            connection.subscriptions.add(key)
            self.subscribers.setdefault(key, set()).add(connection)
            return
        connection.subscriptions.discard(key)
        listeners = self.subscribers.get(key)
        if listeners is not None:
            listeners.discard(connection)
            if not listeners:
                del self.subscribers[key]

    cdef int note(self, const char* key, Py_ssize_t key_bytes) except -1:
        """Remember that a key changed, if anybody subscribed to it."""
        cdef bytes name
        if self.subscribers:
            name = PyBytes_FromStringAndSize(key, key_bytes)
            if name in self.subscribers:
                self.changed.add(name)
        return 0

    @property
    def pushes_due(self):
        """Whether `tick` has something to push."""
        return self.due()

    cdef bint due(self) except -1:
        """Whether something is to be done at the end of this epoch."""
        return len(self.changed) > 0 or (self.replication is not None and self.replication.busy_until > self.replication.epoch)

    @property
    def epoch_left_us(self):
        """Microseconds until this epoch ends."""
        return max(0, <int64_t>(epoch_begin(self.clock.epoch() + 1) >> 10) - self.clock.physical_us)

    def next_due(self):
        """Return when `tick` is due though nothing arrives, in monotonic ns; None: never. While `pushes_due`, it is due each epoch."""
        if self.replication is None:
            return None
        link_due = self.replication.link_due()
        return self.membership.due() if link_due is None else min(link_due, self.membership.due())

    @property
    def is_complete(self):
        """Whether this worker has all that it should have under its view."""
        return self.replication is None or self.replication.complete and not self.membership.was_paused(self.now)

    def come_to_rest(self):
        """See whether what this worker should have has arrived, and what it has is all elsewhere that should be."""
        if self.replication.repair():
            self.replication.hurry()
        if not self.is_complete:
            self.replication.hurry()
            return
        self.replication.keep_to_own()
        self.settling = False
        self.settled = self.placement
        self.settled_factor = self.factor
        self.settled_place = self.place
        if self.membership.handing_over and not self.has_handed_over():
            self.replication.hurry()
            return
        self.membership.completed(self.view.version)
        if not self.swept and self.membership.all_complete:
            self.swept = not self.replication.sweep(SWEEP_KEYS_MAX)
            if not self.swept:
                self.replication.hurry()

    cdef bint has_handed_over(self) except -1:
        """Whether the others have all that this worker of a leaving node ever took.

        Once they have all but the last, no more is taken: who writes is told to go to another, and has to try again until
        the node has left. Reads are answered to the end.
        """
        if not self.membership.handed_over:
            return False
        self.closing = True
        return self.replication.drained

    cdef bint has(self, const char* key, Py_ssize_t size) noexcept:
        """Whether a key's state here is as new as can be known: this worker is complete, or was to have the key when it was complete last."""
        cdef int owners[32]
        cdef int index, count
        if not self.settling or "stale-owner" in PLANTED:
            return True
        if self.settled is None:
            return False
        count = self.settled.span_at(hash64(key, size), self.settled_factor, owners)
        for index in range(count):
            if owners[index] == self.settled_place:
                return True
        return False

    def tick(self, int64_t monotonic_ns):
        """Return [(connection, bytes), …]: every subscribed key that changed since the last tick, in the order of the keys.

        A push is a reply frame with id 0 and the operation in `flags`: u16 key bytes, key, state; a deleted key is STATUS_MISSING.
        """
        self.clock.advance(monotonic_ns // 1000)
        self.now = monotonic_ns
        cdef dict outboxes = {}
        cdef RequestHeader head
        cdef bytes key
        if self.replication is not None:
            self.keep_time()
            if self.snapshot is not None and self.snapshot.is_forgotten(self.now):
                self.end_snapshot()
            # What a snapshot may still want is deleted when it has ended; until then it counts as deleted.
            for key in self.store.expire(self.clock.physical_us, 0 if self.snapshot is not None else EXPIRED_KEYS_MAX):
                self.replication.note_deleted(key)
                self.note(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            self.beat()
            self.come_to_rest()
            self.replication.close(self.is_complete)
            self.replication.forget(self.membership.gc_floor(self.replication.stable))
            self.release_held()
        head.request = 0
        for key in sorted(self.changed):
            for connection in self.subscribers.get(key, ()):
                outboxes.setdefault(connection, []).append(key)
        self.changed.clear()
        pushes = []
        for connection, keys in outboxes.items():
            for key in keys:
                self.push(key)
            pushes.append((connection, self.take()))
        return pushes

    def push(self, bytes key):
        """Write one push frame: the whole state of `key` as it is now."""
        cdef RequestHeader head
        cdef Lattice state = self.store.read(key)
        cdef bytes payload = b"" if state is None else state.encode()
        cdef Py_ssize_t key_bytes = PyBytes_GET_SIZE(key)
        cdef uint16_t prefix = <uint16_t>key_bytes
        head.request = 0
        cdef int status = STATUS_MISSING if state is None else STATUS_OK
        if not self.owns(PyBytes_AS_STRING(key), key_bytes):
            # The key has moved: its subscribers have to go to its owner.
            self.reply_text(&head, STATUS_WRONG_WORKER, self.view_payload)
            (<ReplyHeader*>(self.out.data + self.out.size - PyBytes_GET_SIZE(self.view_payload) - HEADER_BYTES)).flags = OP_PUSH
            return
        cdef char* place = self.reply(&head, status, 0 if state is None else state.NUMBER, 2 + key_bytes + PyBytes_GET_SIZE(payload))
        (<ReplyHeader*>(place - HEADER_BYTES)).flags = OP_PUSH
        memcpy(place, &prefix, 2)
        memcpy(place + 2, PyBytes_AS_STRING(key), key_bytes)
        memcpy(place + 2 + key_bytes, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))

    def leave(self, Connection connection):
        """Forget a connection that has ended."""
        for key in sorted(connection.subscriptions):
            self.subscribe(connection, key, False)
        self.holding.pop(connection, None)

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
            "gets": self.gets,
            "puts": self.puts,
            "deletes": self.deletes,
            "frames": self.frames,
            "refused": self.refused,
            "malformed": self.malformed,
            "uptime_us": self.clock.physical_us - self.started_us,
            "stamp": self.clock.last,
            "factor": self.factor,
            "epoch": self.clock.epoch(),
            "complete": self.replication is None or bool(self.is_complete),
            "closed": 0 if self.replication is None else self.replication.closed,
            "stable": 0 if self.replication is None else self.replication.stable,
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
        }

    def check(self):
        """Assert the worker's invariants."""
        self.store.check()
        assert self.out.size == 0 and not self.chunks and not self.deferred, "an answer was left behind"
        if self.replication is not None:
            self.replication.check()
        if self.snapshot is not None:
            self.snapshot.check()
        cdef Connection connection
        for connection in self.holding:
            assert connection.holds, "a connection is held back for nothing"
        for key, listeners in self.subscribers.items():
            assert listeners and all(key in connection.subscriptions for connection in listeners), key
        assert self.changed <= self.subscribers.keys() | self.store.states.keys() | self.changed


cdef bint reads_only(int op) noexcept:
    """Whether an operation changes nothing."""
    return op != OP_PUT and op != OP_DELETE and op != OP_MPUT


cdef uint32_t batch_count(const char* payload, Py_ssize_t size) except? 0xFFFFFFFF:
    """Return how many keys a batch says it has. Raises ProtocolError or ValueTooLarge."""
    cdef uint32_t count
    if size < 4:
        raise ProtocolError(f"a batch begins with a count of 4 bytes, got {size}")
    memcpy(&count, payload, 4)
    if count > BATCH_MAX:
        raise ValueTooLarge(f"a batch has {count:,} keys; batch_keys_max is {BATCH_MAX:,}")
    return count


cdef int check_put_items(const char* place, const char* end, uint32_t count) except -1:
    """Walk a multi-put's items before any is written, so that a malformed batch has no effect. Raises ProtocolError."""
    cdef PutItem item
    cdef uint32_t index
    for index in range(count):
        if end - place < ITEM_HEADER_BYTES:
            raise ProtocolError(f"a multi-put of {count} keys ends within key {index}")
        memcpy(&item, place, ITEM_HEADER_BYTES)
        place += ITEM_HEADER_BYTES
        if end - place < <Py_ssize_t>item.key_bytes + <Py_ssize_t>item.payload_bytes:
            raise ProtocolError(f"a multi-put of {count} keys ends within key {index}")
        place += item.key_bytes + item.payload_bytes
    if place != end:
        raise ProtocolError(f"a multi-put of {count} keys has {end - place} bytes too many")
    return 0
