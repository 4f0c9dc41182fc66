"""What clients changed here, and what each replica is sent and has confirmed of it.

The one rule: what changed is sent at the end of the epoch, once a key, as one joined delta (`anna.kvs.changes`); a writer who waits for copies has
it sent at once, a bounded number of times an epoch. A link's body of deltas: u8 1, u64 epoch, cells (`anna.kvs.cells`). Source: DESIGN §4, §5.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from anna.buffer cimport Buffer
from anna.kvs.cells cimport append_cell
from anna.kvs.changes cimport Changes
from anna.kvs.clock cimport Clock
from anna.kvs.peers cimport Peers
from anna.kvs.store cimport Piece, Store
from anna.kvs.table cimport Slot
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64
from anna.routing.placement cimport SPAN_ROOM

from anna import config

cdef enum:
    # How many changed keys are fetched from memory at once.
    ANNOUNCED_MAX = 16

cdef Py_ssize_t BODY_BYTES = config.DELTA_BODY_BYTES
cdef int FLUSHES_MAX = config.FLUSHES_PER_EPOCH_MAX
cdef uint64_t BUSY_EPOCHS = config.BUSY_EPOCHS


cdef class Deltas(Peers):
    """The sending side: `changes` since the last cut; per peer the rounds that are `pending`, and the last that is `confirmed`."""

    def __init__(self, uint64_t mine, Store store, Clock clock):
        super().__init__(mine, store, clock)
        self.changes = Changes()
        self.log = None
        self.buffers = []
        self.pending = {}
        self.confirmed = {}

    # -- what changed here

    cdef int note_register(self, Slot* slot) except -1:
        """A register was written by a client."""
        self.busy_until = self.epoch + BUSY_EPOCHS
        if self.sharing:
            self.changes.note_sent(slot)
        if self.log is not None:
            self.log.note_register(slot)
        return 0

    cdef bint keeps_pieces(self) noexcept:
        """Whether somebody may come with a delete that is older than what is written now."""
        return self.sharing or self.comparing or self.mourning

    cdef int note_deleted(self, bytes key) except -1:
        """A key was deleted by a client."""
        self.busy_until = self.epoch + BUSY_EPOCHS
        if self.keeps_pieces() or self.changes.piece_of(key) is not None:
            self.changes.note(key)
        if self.log is not None:
            self.log.note(key)
        return 0

    cdef int note_delta(self, bytes key, uint64_t stamp, Lattice delta) except -1:
        """A client's write changed a key of another type by `delta`, which is this object's from now on."""
        cdef Piece piece
        self.busy_until = self.epoch + BUSY_EPOCHS
        if self.keeps_pieces():
            piece = self.changes.piece_of(key)
            if piece is None or type(piece.state) is not type(delta):
                self.changes.note_piece(key, self.store.keep_piece(key, self.epoch, stamp, delta))
            else:
                piece.state.merge(delta)
                piece.last = stamp
        if self.log is not None:
            self.log.note_delta(key, self.epoch, stamp, delta)
        return 0

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
        cdef Lattice state
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
            if slot.key is NULL:
                continue  # it was deleted since, and is noted so
            state = <Lattice>slot.state if type(<object>slot.state) is LWW else self.store.look(key)
            if type(state) is LWW:
                self.queue_cell(hash, key, state, 0)
        for key, piece in noted.items():
            hash = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            self.queue_cell(hash, key, self.store.read(key) if piece is None else piece.state, 0 if piece is None else piece.last)
        for index in range(len(self.buffers)):
            if self.buffers[index] is not None and (<Buffer>self.buffers[index]).size:
                self.send_buffer(index, round)
        self.settle()
        return 0

    cdef int queue_cell(self, uint64_t hash, bytes key, Lattice state, uint64_t last) except -1:
        """Append a cell to what each other owner of its key is sent."""
        cdef int owners[SPAN_ROOM]
        cdef int count = <int>len(self.ids) if self.everywhere else self.placement.span_at(hash, owners)
        cdef uint64_t reset = self.store.deleted_at(key) if self.store.resets else 0
        cdef uint64_t expires = self.store.expiry_of(key) if self.store.expiries else 0
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

    cdef int send_buffer(self, int place, uint32_t round) except -1:
        """Hand one run of cells to the link; once it is confirmed, so is `round`, as far as this replica is concerned."""
        cdef Buffer buffer = self.buffers[place]
        cdef bytes body = PyBytes_FromStringAndSize(NULL, 9 + buffer.size)
        cdef char* head = PyBytes_AS_STRING(body)
        peer = self.ids[place]
        head[0] = BODY_DELTAS
        memcpy(head + 1, &self.epoch, 8)
        memcpy(head + 9, buffer.data, buffer.size)
        buffer.shrink()
        self.bodies_sent += 1
        sequence = self.links[peer].send(body)
        self.pending[peer].append((round, self.epoch, sequence))
        return 0

    cdef int wait_for_copies(self) except -1:
        """A writer waits for copies: send at once what changed, unless much is under way, or was sent so often in this epoch."""
        if self.flushes >= FLUSHES_MAX:
            return 0
        for waiting in self.pending.values():
            if waiting:
                return 0
        self.flushes += 1
        return self.cut()

    # -- what they have confirmed

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

    def copies_of(self, uint32_t round, tuple peers):
        """Return how many of `peers` have confirmed the changes up to `round`."""
        return sum([1 for peer in peers if self.confirmed.get(peer, 0) >= round])
