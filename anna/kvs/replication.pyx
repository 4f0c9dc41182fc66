"""What a worker and the other owners of its keys tell each other: the deltas of each epoch, and how far everybody is.

The one rule: an epoch is closed here when the clock has passed it and every replica has confirmed what it got of it; the *stable epoch*,
the least that any worker of the view has closed, never goes back. All that was written up to it is on all its replicas.

Every owner takes writes. What changed is sent at the end of the epoch, once a key, as one joined delta (`anna.kvs.changes`); a writer who waits for
copies has it sent at once, a bounded number of times an epoch. Deltas travel on links (`anna.kvs.link`), in order, confirmed and sent
again; closings are announced without, because a later one says all. Nothing waits for anything here: what waits is an
answer whose client asked for copies, and it waits in its connection. Source: DESIGN §4, §5.

A peer's message is a request frame with the operation PEER, its kind as the type, and a payload that begins with the sender's and the
receiver's worker ids. Kinds: 1 a link's frame; 2 a heartbeat; 3 a closing (u64 digest of the view, u64 closed epoch, u64 epoch that is on disk, u8 busy). Link
bodies begin with their kind: 1 deltas (u64 epoch, cells); 3 to 6 repair (`anna.kvs.repair`).

When the view changes, each pair of workers compares what the one holds and the other should. Only then is a worker complete for the
view, and only complete workers close epochs.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

cimport cython

from anna.buffer cimport Buffer
from anna.kvs.cells cimport CELL_WHOLE, CellReader, append_cell, append_register
from anna.kvs.changes cimport Changes
from anna.kvs.clock cimport Clock, epoch_begin, epoch_of
from anna.kvs.snapshot cimport Snapshot
from anna.kvs.store cimport Piece, Store
from anna.kvs.table cimport Slot
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64
from anna.routing.placement cimport Placement
from anna.wire cimport FLAG_SYSTEM, HEADER_BYTES, LENGTH_BYTES, LWW_HEADER_BYTES, LWW_NUMBER, OP_PEER, PROTOCOL_VERSION, RequestHeader

import struct
from collections import deque

from anna import config
from anna.errors import LatticeTypeMismatch, ProtocolError
from anna.kvs.digest import cell_hash, register_hash
from anna.kvs.faults import PLANTED
from anna.kvs.link import Link
from anna.kvs.repair import Repair
from anna.lattices import REGISTRY
from anna.messages import NodeStatus

cdef enum:
    OWNERS_MAX = 16
    KIND_LINK = 1
    KIND_HEARTBEAT = 2
    KIND_CLOSED = 3
    BODY_DELTAS = 1
    # How many changed keys are fetched from memory at once.
    ANNOUNCED_MAX = 16

cdef uint64_t NOTHING_UNLOGGED = 0xFFFFFFFFFFFFFFFF
cdef Py_ssize_t BODY_BYTES = config.DELTA_BODY_BYTES
cdef int FLUSHES_MAX = config.FLUSHES_PER_EPOCH_MAX
cdef uint64_t BUSY_EPOCHS = config.BUSY_EPOCHS
REPAIR_QUEUE_BYTES = config.REPAIR_QUEUE_BYTES
REPAIR_SLICE_BYTES = config.REPAIR_SLICE_BYTES
REPAIR_SLICE_KEYS = config.REPAIR_SLICE_KEYS

_PEERS = struct.Struct("<QQ")
_CLOSED = struct.Struct("<QQQB")
_EPOCH = struct.Struct("<Q")


@cython.final
cdef class Replication:
    """The replicas' side of one worker. `mine` is its id; store and clock are the worker's own."""

    def __init__(self, uint64_t mine, Store store, Clock clock):
        self.mine = mine
        self.store = store
        self.clock = clock
        self.changes = Changes()
        self.log = None
        self.links = {}
        self.sessions = {}
        self.repairs = {}
        self.repair_sent = {}
        self.offered = None
        self.floor = 0
        self.buffers = []
        self.pending = {}
        self.confirmed = {}
        self.closed_of = {}
        self.kept_of = {}
        self.unlogged_from = NOTHING_UNLOGGED
        self.under_way_from = NOTHING_UNLOGGED
        self.outbox = []
        self.touched = set()
        self.epoch = clock.epoch()
        self.closed = self.epoch - 1
        self.stable = 0
        self.factor = 1
        self.ids = ()

    def adopt(self, view, Placement placement, int place):
        """Take up a newer view: keep the links to the workers that stay, begin those to new ones, drop the others."""
        self.former, self.former_view, self.former_factor = self.placement, self.view, self.factor
        if self.snapshot is not None:
            self.snapshot.spoil()
        self.view = view
        self.placement = placement
        self.place = place
        self.factor = view.factor
        self.ids = tuple([worker.worker_id for worker in view.workers])
        self.buffers = [None] * len(self.ids)
        for gone in [peer for peer in self.links if peer not in self.ids]:
            del self.links[gone], self.pending[gone], self.confirmed[gone], self.repairs[gone]
            self.repair_sent.pop(gone, None)
        for peer in self.ids:
            if peer != self.mine and peer not in self.links:
                self.sessions[peer] = self.sessions.get(peer, 0) + 1
                self.links[peer] = Link(self.mine, peer, self.sessions[peer])
                self.pending[peer] = deque()
                self.confirmed[peer] = self.changes.round - 1
                self.repairs[peer] = Repair()
        # What was closed by the old view says nothing of the new one's replicas.
        self.closed = self.stable
        self.announced = self.stable
        self.closed_of.clear()
        self.kept_of.clear()
        self.sweeping = None
        in_motion = view.serving != view.target
        self.everywhere = self.factor >= len(self.ids) and not in_motion
        self.sharing = len(self.ids) > 1 and (self.factor > 1 or in_motion)
        self.busy_until = self.clock.epoch() + BUSY_EPOCHS
        for peer, repair in self.repairs.items():
            repair.start(view.version, view.digest, self.scanner(peer), self.offer(peer))
        self.settle()

    # -- what the others lack

    @property
    def complete(self):
        """Whether every other worker has sent what this one should have under the view."""
        if "repair-off" in PLANTED:
            return True
        if self.is_alone_at_the_door:
            return False
        for repair in self.repairs.values():
            if not repair.complete:
                return False
        return True

    @property
    def is_alone_at_the_door(self):
        """Whether this node is to join and has heard nobody yet: what its workers have is to be compared with others', not among them."""
        return len(self.view.nodes) == 1 and not self.view.serving

    def keep_to_own(self):
        """This worker is complete. Once every other worker has all of its own from here, nothing else is offered to anybody.

        What is no longer this worker's may be deleted by those whose it is, without a word to it.
        """
        for peer, repair in self.repairs.items():
            if not repair.sent_done or self.links[peer].acked < self.repair_sent.get(peer, 0):
                return
        self.offered, self.offered_factor, self.offered_place = self.placement, self.factor, self.place

    def scanner(self, peer):
        """Return the scan of the keys here that `peer` should have (see `anna.kvs.repair.Scan`)."""
        cdef int place = self.view.index_of(peer)
        cdef int former_place = index_in(self.former_view, peer)
        keys = []

        def scan(cursor, limit):
            nonlocal keys
            if cursor == 0:
                # What comes later is sent as it comes, so the keys of now are enough.
                keys = self.store.keys_now()
            entries = self.entries_of(place, former_place, keys, cursor, cursor + limit)
            return entries, cursor + limit if cursor + limit < len(keys) else None

        return scan

    def offer(self, peer):
        """Return what gives the cell of a key, nothing for a key that `peer` should not have."""
        cdef int place = self.view.index_of(peer)

        def cell(key):
            return self.cell_of(key) if self.is_for(key, place) else b""

        return cell

    def is_for(self, bytes key, int place):
        cdef int owners[2 * OWNERS_MAX]
        cdef int count = self.placement.span_at(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), self.factor, owners)
        return place in [owners[i] for i in range(count)]

    cdef bint may_offer(self, uint64_t hash) noexcept:
        """Whether this worker is to have a key, or was when it had last given everybody what was theirs."""
        cdef int owners[2 * OWNERS_MAX]
        cdef int index
        for index in range(self.placement.span_at(hash, self.factor, owners)):
            if owners[index] == self.place:
                return True
        if self.offered is None:
            return True
        for index in range(self.offered.span_at(hash, self.offered_factor, owners)):
            if owners[index] == self.offered_place:
                return True
        return False

    cdef bint is_shared(self, uint64_t hash, int place, int former_place) noexcept:
        """Whether the peer should have a key that is here, or may still have it from the view before: both ends must count the same."""
        cdef int owners[2 * OWNERS_MAX]
        cdef int index
        for index in range(self.placement.span_at(hash, self.factor, owners)):
            if owners[index] == place:
                return True
        if self.former is None or former_place < 0:
            return False
        for index in range(self.former.span_at(hash, self.former_factor, owners)):
            if owners[index] == former_place:
                return True
        return False

    cdef list entries_of(self, int place, int former_place, list keys, Py_ssize_t begin, Py_ssize_t end):
        """Return (key, key hash, cell hash) of those of `keys[begin:end]` that the worker at `place` should have."""
        cdef int owners[2 * OWNERS_MAX]
        cdef list entries = []
        cdef Py_ssize_t index
        cdef int count, owner
        cdef uint64_t hash
        cdef bytes key
        cdef Lattice state
        cdef LWW register
        for index in range(begin, min(end, len(keys))):
            key = <bytes>keys[index]
            hash = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            if not self.is_shared(hash, place, former_place) or not self.may_offer(hash):
                continue
            state = self.store.read(key)
            if type(state) is LWW:
                register = <LWW>state
                entries.append((key, hash, register_hash(key, 0, register.stamp, register.writer, register.payload, self.expiry_of(key) if self.store.expiries else 0)))
            elif state is not None:
                entries.append((key, hash, cell_hash(key, state.NUMBER, 0, 0, state.encode(), self.expiry_of(key) if self.store.expiries else 0)))
            elif self.store.reset_of(key):
                entries.append((key, hash, cell_hash(key, 0, self.store.reset_of(key), 0, b"")))
        return entries

    def cell_of(self, bytes key):
        """Return all that is known of `key`, as one cell and one for each piece that is not stable yet.

        The first is known to lack no delete up to its `last`, the floor, and is void for whoever knows of a later one. The
        pieces then say what was written after that delete: in the joined state the two cannot be told apart.
        """
        cdef Buffer buffer = Buffer()
        cdef Lattice state = self.store.read(key)
        cdef uint64_t reset = self.store.reset_of(key)
        append_cell(buffer, key, state, reset, epoch_begin(self.floor + 1) - 1, CELL_WHOLE, self.expiry_of(key))
        for piece in self.store.pieces.get(key, ()):
            append_cell(buffer, key, (<Piece>piece).state, reset, (<Piece>piece).last, 0, self.expiry_of(key))
        return PyBytes_FromStringAndSize(buffer.data, buffer.size)

    def repair(self):
        """Do a slice of comparing and sending; whether there is more to do, or to wait for."""
        cdef bint waiting = False
        if "repair-off" in PLANTED or self.is_alone_at_the_door:
            return False
        for peer, repair in self.repairs.items():
            link = self.links[peer]
            if repair.busy and link.queued_bytes < REPAIR_QUEUE_BYTES:
                for body in repair.poll(REPAIR_SLICE_BYTES, REPAIR_SLICE_KEYS):
                    self.repair_sent[peer] = link.send(body)
                    self.pending[peer].append((self.changes.round - 1, self.epoch, self.repair_sent[peer]))
            waiting = waiting or repair.busy or not (repair.sent_done and repair.heard_done)
        return waiting

    # -- what changed here

    cdef int note_register(self, Slot* slot) except -1:
        """A register was written by a client."""
        self.busy_until = self.epoch + BUSY_EPOCHS
        if self.sharing:
            self.changes.note_sent(slot)
        if self.log is not None:
            self.log.note_logged(slot)
        return 0

    cdef int note_deleted(self, bytes key) except -1:
        """A key was deleted by a client."""
        self.busy_until = self.epoch + BUSY_EPOCHS
        if self.sharing:
            self.changes.note(key)
        if self.log is not None:
            self.log.note(key)
        return 0

    cdef int note_delta(self, bytes key, uint64_t stamp, Lattice delta) except -1:
        """A client's write changed a key of another type by `delta`, which is this object's from now on."""
        cdef Piece piece
        self.busy_until = self.epoch + BUSY_EPOCHS
        if self.sharing:
            piece = self.changes.piece_of(key)
            if piece is None or type(piece.state) is not type(delta):
                self.changes.note_piece(key, self.store.keep_piece(key, self.epoch, stamp, delta))
            else:
                piece.state.merge(delta)
                piece.last = stamp
        self.log_delta(key, stamp, delta)
        return 0

    def log_delta(self, bytes key, uint64_t stamp, Lattice delta):
        """Note a delta for the log, joined with those of this round; it may be another round's too, so it is copied."""
        cdef Piece piece
        if self.log is None:
            return
        piece = self.log.piece_of(key)
        if piece is None or type(piece.state) is not type(delta):
            self.log.note_piece(key, Piece(self.epoch, stamp, delta.copy()))
        else:
            piece.state.merge(delta)
            piece.last = max(piece.last, stamp)

    # -- what the replicas are sent

    cdef int turn(self, uint64_t epoch) except -1:
        """The clock has reached `epoch`: send what is left of the one before."""
        self.cut()
        self.epoch = epoch
        self.flushes = 0
        return 0

    cdef int cut(self) except -1:
        """Give every replica its part of what changed since the last cut."""
        cdef uint32_t round = self.changes.round
        cdef Buffer hashes
        cdef bytes key
        cdef Piece piece
        cdef list registers
        cdef dict noted
        cdef Slot* slot
        cdef Py_ssize_t index
        cdef uint64_t hash
        if not len(self.changes):
            return 0
        registers, hashes, noted = self.changes.take()
        for index in range(len(registers)):
            if index % ANNOUNCED_MAX == 0:
                self.store.states.announce(<uint64_t*>hashes.data + index, <int>min(len(registers) - index, <Py_ssize_t>ANNOUNCED_MAX))
            key = <bytes>registers[index]
            hash = (<uint64_t*>hashes.data)[index]
            slot = self.store.states.slot_of(hash, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            if slot.key is NULL or type(<object>slot.state) is not LWW:
                continue  # it was deleted since, and is noted so
            self.queue_cell(hash, key, <Lattice>slot.state, 0)
        for key, piece in noted.items():
            hash = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            self.queue_cell(hash, key, self.store.read(key) if piece is None else piece.state, 0 if piece is None else piece.last)
        for index in range(len(self.buffers)):
            if self.buffers[index] is not None:
                self.send_buffer(index, round)
        self.settle()
        return 0

    cdef int queue_cell(self, uint64_t hash, bytes key, Lattice state, uint64_t last) except -1:
        """Append a cell to what each other owner of its key is sent."""
        cdef int owners[2 * OWNERS_MAX]
        cdef int count = <int>len(self.ids) if self.everywhere else self.placement.span_at(hash, self.factor, owners)
        cdef uint64_t reset = self.store.reset_of(key) if self.store.resets else 0
        cdef uint64_t expires = self.expiry_of(key) if self.store.expiries else 0
        cdef Buffer buffer
        cdef int index, place
        if state is None and reset == 0:
            return 0
        for index in range(count):
            place = index if self.everywhere else owners[index]
            if place == self.place:
                continue
            buffer = <Buffer>self.buffers[place]
            if buffer is None:
                buffer = self.buffers[place] = Buffer()
            append_cell(buffer, key, state, reset, last, 0, expires)
            self.deltas_sent += 1
            if buffer.size >= BODY_BYTES:
                self.send_buffer(place, self.changes.round - 1)
        return 0

    def expiry_of(self, bytes key):
        """Return when the key's state counts as deleted; 0: never."""
        found = self.store.expiries.get(key)
        return 0 if found is None else found[0]

    cdef int send_buffer(self, int place, uint32_t round) except -1:
        """Hand one run of cells to the link; once it is confirmed, so is `round`, as far as this replica is concerned."""
        cdef Buffer buffer = self.buffers[place]
        cdef bytes body = PyBytes_FromStringAndSize(NULL, 9 + buffer.size)
        cdef char* head = PyBytes_AS_STRING(body)
        peer = self.ids[place]
        head[0] = BODY_DELTAS
        memcpy(head + 1, &self.epoch, 8)
        memcpy(head + 9, buffer.data, buffer.size)
        self.buffers[place] = None
        self.bodies_sent += 1
        sequence = self.links[peer].send(body)
        self.pending[peer].append((round, self.epoch, sequence))
        return 0

    def settle(self):
        """See what the replicas have confirmed by now."""
        for peer, waiting in self.pending.items():
            acked = self.links[peer].acked
            while waiting and waiting[0][2] <= acked:
                waiting.popleft()
            self.confirmed[peer] = waiting[0][0] - 1 if waiting else self.changes.round - 1

    @property
    def drained(self):
        """Whether the other workers have confirmed all that changed here."""
        self.settle()
        return not len(self.changes) and not any(self.pending.values())

    cdef int wait_for_copies(self) except -1:
        """A writer waits for copies: send at once what changed, unless much is under way, or was sent so often in this epoch."""
        if self.flushes >= FLUSHES_MAX:
            return 0
        for waiting in self.pending.values():
            if waiting:
                return 0
        self.flushes += 1
        return self.cut()

    def mend(self, peer):
        """A peer has forgotten this end of the link: begin a new one. What was confirmed to the old one is compared anew."""
        self.sessions[peer] += 1
        self.links[peer] = self.links[peer].successor(self.sessions[peer])
        self.pending[peer].clear()
        self.repair_sent.pop(peer, None)
        self.confirmed[peer] = self.changes.round - 1
        self.repairs[peer].start(self.view.version, self.view.digest, self.scanner(peer), self.offer(peer))

    def copies_of(self, uint32_t round, tuple peers):
        """Return how many of `peers` have confirmed the changes up to `round`."""
        return sum([1 for peer in peers if self.confirmed.get(peer, 0) >= round])

    def peers_of(self, bytes key):
        """Return the ids of the other workers that a write to `key` goes to."""
        cdef int owners[2 * OWNERS_MAX]
        cdef int count = self.placement.span_at(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), self.factor, owners)
        return tuple([self.ids[owners[index]] for index in range(count) if owners[index] != self.place])

    # -- what the replicas send

    def knows(self, bytes payload):
        """Whether a message is from a worker of the view, and for this one."""
        sender, receiver = _PEERS.unpack_from(payload)
        return receiver == self.mine and sender in self.links

    def hear(self, int kind, bytes payload, int64_t now):
        """Take one message of a peer. Raises ProtocolError."""
        sender, receiver = _PEERS.unpack_from(payload)
        if receiver != self.mine or sender not in self.links:
            return
        if kind == KIND_LINK:
            link = self.links[sender]
            failure = None
            for body in link.receive(payload, now):
                try:
                    self.take_body(sender, body)
                except ProtocolError as error:
                    failure = error  # the link has confirmed the bodies behind this one: they are not to be lost with it
            if failure is not None:
                raise failure
            if link.broken:
                self.mend(sender)
            self.settle()
        elif kind == KIND_CLOSED:
            self.take_closing(sender, payload[16:])
        else:
            raise ProtocolError(f"a peer's message has the unknown kind {kind}")

    def take_body(self, sender, bytes body):
        """Take one body of a link."""
        if not body:
            raise ProtocolError("a link's body is empty")
        if body[0] == BODY_DELTAS:
            (epoch,) = _EPOCH.unpack_from(body, 1)
            self.take_cells(body, 9, epoch)
            return
        cells = self.repairs[sender].hear(body)
        if cells:
            if self.snapshot is not None:
                self.snapshot.spoil()
            self.take_cells(cells, 0, self.epoch)

    def take_cells(self, bytes body, Py_ssize_t place, uint64_t epoch):
        """Join cells into the store."""
        cdef CellReader reader = CellReader(body, place)
        self.busy_until = max(self.busy_until, self.epoch + 2)
        while reader.next_of(self.store.states):
            self.deltas_taken += 1
            if self.take_cell(reader, epoch) and self.watching:
                self.touched.add(reader.key[:reader.head.key_bytes])

    cdef bint take_cell(self, CellReader reader, uint64_t epoch) except -1:
        """Join one cell; whether that may have changed its key."""
        cdef bytes key = None
        cdef uint64_t reset = 0
        cdef bint changed = False
        if self.snapshot is not None:
            self.snapshot.take(reader, epoch)
        if reader.head.reset or self.store.resets or reader.head.type != LWW_NUMBER or reader.expires:
            key = reader.key[:reader.head.key_bytes]
            # What is not above the floor is settled here: the key's state may be of later writes alone, and says no more so.
            if epoch_of(reader.head.reset) > self.floor and self.store.reset(key, reader.head.reset):
                changed = True
                self.void(key, reader.head.reset)
            reset = self.store.reset_of(key)
        if reader.head.type == 0:
            return changed
        if reader.head.type == LWW_NUMBER:
            return self.take_register(reader, key, reset) or changed
        return self.take_state(reader, key, reset, epoch) or changed

    def void(self, bytes key, uint64_t reset):
        """A reset came from elsewhere: what was to be sent and is older is void; what survived it is logged again, after it."""
        cdef Lattice state
        cdef Piece piece = self.changes.piece_of(key)
        if piece is not None and piece.last <= reset:
            self.changes.note(key)
        if self.log is None:
            return
        state = self.store.read(key)
        if state is None or type(state) is LWW:
            self.log.note(key)
        else:
            self.log.note_piece(key, Piece(self.epoch, max([piece.last for piece in self.store.pieces.get(key, ())], default=0), state.copy()))

    cdef bint take_register(self, CellReader reader, bytes key, uint64_t reset) except -1:
        cdef uint64_t stamp, writer
        cdef Slot* slot
        cdef bytes payload
        cdef Py_ssize_t size = reader.head.payload_bytes
        if size < LWW_HEADER_BYTES:
            raise ProtocolError(f"an LWW has at least {LWW_HEADER_BYTES} bytes, got {size}")
        memcpy(&stamp, reader.payload, 8)
        memcpy(&writer, reader.payload + 8, 8)
        if stamp <= reset:
            return False
        self.clock.follow(stamp)
        payload = PyBytes_FromStringAndSize(reader.payload + LWW_HEADER_BYTES, size - LWW_HEADER_BYTES)
        try:
            slot = self.store.write_register(reader.key, reader.head.key_bytes, stamp, writer, payload)
        except LatticeTypeMismatch:
            if not self.settled(reader.key[:reader.head.key_bytes], LWW):
                return False
            slot = self.store.write_register(reader.key, reader.head.key_bytes, stamp, writer, payload)
        if reader.expires or self.store.expiries:
            self.store.expire_at(<object>slot.key, reader.expires, stamp)
        if self.log is not None:
            self.log.note_logged(slot)
        return True

    cdef bint take_state(self, CellReader reader, bytes key, uint64_t reset, uint64_t epoch) except -1:
        cdef Lattice state
        cdef bint whole = reader.head.flags & CELL_WHOLE
        kind = REGISTRY.get(reader.head.type)
        if kind is None:
            raise ProtocolError(f"lattice type {reader.head.type} is not known to this worker")
        if reader.head.last <= reset and not (whole and reader.head.reset >= reset):
            return False  # it is older than the delete
        state = kind.decode(reader.payload[:reader.head.payload_bytes])
        if not self.settled(key, kind):
            return False
        self.clock.follow(reader.head.last)
        self.store.write(key, state)
        if reader.expires or self.store.expiries:
            self.store.expire_at(key, reader.expires, reader.head.last)
        if epoch_of(reader.head.last) > self.stable:
            self.store.keep_piece(key, epoch, reader.head.last, state)
        self.log_delta(key, reader.head.last, state)
        return True

    def settled(self, bytes key, kind):
        """Whether a replica's state of type `kind` may be joined into `key`: two types never stay, the lesser number wins."""
        present = self.store.read(key)
        if present is None or type(present) is kind:
            return True
        self.quarantined += 1
        return self.store.settle_type(key, kind)

    # -- closings

    def closing(self):
        """Return what this worker says of its epochs: which it has closed, and whether there is work."""
        return _CLOSED.pack(self.view.digest, self.closed, self.kept, self.epoch + 2 <= self.busy_until)

    @property
    def kept(self):
        """The epoch up to which a crash of this worker undoes nothing: all that it has of that is on disk, or it comes back with nothing."""
        if self.log is None:
            return NOTHING_UNLOGGED
        return min(self.logged_epoch, self.unlogged_from - 1, self.under_way_from - 1)

    def take_closing(self, sender, bytes closing):
        """A peer says which epoch it has closed."""
        if len(closing) != _CLOSED.size:
            raise ProtocolError(f"a closing has {_CLOSED.size} bytes, got {len(closing)}")
        view, closed, kept, busy = _CLOSED.unpack(closing)
        if sender in self.links and view == self.view.digest:
            self.closed_of[sender] = max(closed, self.closed_of.get(sender, 0))
            self.kept_of[sender] = kept
        if busy:
            self.busy_until = max(self.busy_until, self.clock.epoch() + 1)

    def close(self, bint complete):
        """Close what can be closed, announce it while there is work, and forget what the stable epoch has settled."""
        cdef uint64_t closed = self.clock.epoch() - 1
        if len(self.changes):
            closed = min(closed, self.epoch - 1)
        for waiting in self.pending.values():
            if waiting:
                closed = min(closed, <uint64_t>waiting[0][1] - 1)
        if complete and closed > self.closed:
            self.closed = closed
        if len(self.ids) > 1 and self.busy and self.closed > self.announced:
            self.announced = self.closed
            for peer in self.links:
                self.post(KIND_CLOSED, peer, self.closing())
        self.advance()

    def advance(self):
        """Move the stable epoch, if every worker has closed more."""
        cdef uint64_t stable = self.closed
        for peer in self.ids:
            if peer != self.mine:
                stable = min(stable, <uint64_t>self.closed_of.get(peer, 0))
        if stable > self.stable:
            self.stable = stable
            self.store.fold(min(stable, self.floor), stable)

    def forget(self, floor):
        """Forget the deletes of the epochs up to `floor`: every replica has them, and nobody is away who could undo them."""
        if "tombstone-early" in PLANTED:
            floor = self.epoch
        # Every log must say so first: who comes back from an older one would bring back what was deleted.
        floor = min(floor, self.kept)
        for peer in self.links:
            floor = min(floor, self.kept_of.get(peer, 0))
        if floor > self.floor:
            self.floor = floor
            self.store.forget(floor)
            self.store.fold(floor, self.stable)

    def sweep(self, int limit):
        """Drop keys that this worker is no owner of any more, some each time; whether there is more to look at."""
        cdef int owners[2 * OWNERS_MAX]
        cdef bytes key
        cdef int count, index
        if self.sweeping is None:
            self.sweeping = self.store.keys_now()
        for _ in range(limit):
            if not self.sweeping:
                return False
            key = self.sweeping.pop()
            count = self.placement.span_at(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), self.factor, owners)
            for index in range(count):
                if owners[index] == self.place:
                    break
            else:
                self.store.drop(key)
                self.dropped += 1
        return True

    @property
    def busy(self):
        """Whether closings are due each epoch."""
        return self.clock.epoch() < self.busy_until or len(self.changes) > 0 or self.closed > self.announced and self.epoch <= self.busy_until

    def hurry(self):
        """Somebody waits for the stable epoch: announce closings for a while."""
        self.busy_until = max(self.busy_until, self.clock.epoch() + BUSY_EPOCHS)

    @property
    def log_wanted(self):
        """Whether there is something to log and no batch is under way."""
        return self.log is not None and not self.log_under_way and len(self.log) > 0

    def post(self, int kind, target, bytes rest):
        """Put one message to a worker, or to whoever listens at an address, where `outgoing` finds it."""
        cdef RequestHeader head
        cdef bytes payload = rest if kind == KIND_LINK else _PEERS.pack(self.mine, 0 if isinstance(target, str) else target) + rest
        head.length = <uint32_t>(HEADER_BYTES - LENGTH_BYTES + PyBytes_GET_SIZE(payload))
        head.version = PROTOCOL_VERSION
        head.op = OP_PEER
        head.type = kind
        head.flags = FLAG_SYSTEM
        head.request = 0
        head.key_bytes = 0
        head.ack = 0
        head.stamp = self.clock.reading()
        self.outbox.append((target, PyBytes_FromStringAndSize(<char*>&head, HEADER_BYTES) + payload))

    def outgoing(self, int64_t now):
        """Return [(worker id, frame)] to be sent now."""
        for peer, link in self.links.items():
            for frame in link.poll(now):
                self.post(KIND_LINK, peer, frame)
        outbox = self.outbox
        self.outbox = []
        return outbox

    def link_due(self):
        """Return when (monotonic ns) a link has something to send again; None when none has."""
        return min([due for link in self.links.values() if (due := link.due()) is not None], default=None)

    # -- the log

    def open_log(self, number):
        """Begin to log what changes; the next batch has `number`."""
        self.log = Changes()
        self.log_number = number
        self.store.forgotten = []

    @property
    def round_to_log(self):
        """The round of the log that has to be on disk for what was written until now; also if that changed nothing."""
        return self.log.round if len(self.log) else self.log.round - 1

    @property
    def remembers(self):
        """Whether deletes have to be remembered: somebody else has the key, or may bring it back, or the log has it."""
        return self.sharing or self.log is not None or any([node.status == NodeStatus.DEAD for node in self.view.nodes])

    @property
    def logged_number(self):
        """The number of the last batch that is on disk."""
        return self.log_number - (2 if self.log_under_way else 1)

    def take_log(self):
        """Return (number, cells) of what is to be logged, or None: nothing is, or one batch is under way already."""
        cdef Buffer buffer
        cdef bytes key
        cdef Piece piece
        cdef Lattice state
        if self.log is None or self.log_under_way:
            return None
        if not len(self.log):
            self.logged_epoch = self.epoch - 1
            self.unlogged_from = NOTHING_UNLOGGED
            return None
        buffer = Buffer()
        self.log_under_way = self.log.round
        self.log_epoch = self.epoch
        self.under_way_from = self.unlogged_from
        self.unlogged_from = NOTHING_UNLOGGED
        registers, hashes, noted = self.log.take()
        for key in registers:
            state = self.store.read(key)
            if type(state) is LWW:
                append_register(buffer, key, <LWW>state, self.store.reset_of(key), self.expiry_of(key) if self.store.expiries else 0)
        for key, piece in noted.items():
            state = self.store.read(key) if piece is None else piece.state
            append_cell(buffer, key, state, self.store.reset_of(key), 0 if piece is None else piece.last, 0, self.expiry_of(key))
        self.log_number += 1
        return self.log_number - 1, PyBytes_FromStringAndSize(buffer.data, buffer.size)

    def logged(self, number):
        """The batch `number` is on disk."""
        if self.log_under_way and number == self.log_number - 1:
            self.log_round = self.log_under_way
            self.log_under_way = 0
            self.under_way_from = NOTHING_UNLOGGED
            self.logged_epoch = self.log_epoch - 1

    def recover(self, bytes cells):
        """Join logged cells back, in the order of the log: a newer reset voids what stood before it."""
        cdef CellReader reader = CellReader(cells, 0)
        while reader.next_of(self.store.states):
            key = reader.key[:reader.head.key_bytes]
            if reader.head.reset > self.store.reset_of(key):
                self.store.pieces.pop(key, None)
                self.store.remove(key)
                self.store.reset(key, reader.head.reset)
            if reader.head.type:
                reader.head.flags |= CELL_WHOLE
                self.take_cell(reader, self.epoch)

    def check(self):
        """Assert the invariants."""
        assert not any(buffer is not None for buffer in self.buffers), "cells were left behind"
        assert self.stable <= self.closed, (self.stable, self.closed)
        assert self.links.keys() == self.pending.keys() == self.confirmed.keys() == self.repairs.keys()
        for peer, repair in self.repairs.items():
            repair.check()
        for peer, waiting in self.pending.items():
            assert sorted(waiting) == list(waiting), "the rounds under way are out of order"
            self.links[peer].check()


def index_in(view, worker):
    """Return the worker's place in a view, -1 when it has none."""
    if view is None:
        return -1
    try:
        return view.index_of(worker)
    except KeyError:
        return -1
