"""What replicas and the log send: cells, joined into the store.

The one rule: a cell may arrive twice, late, or after one that is newer; what it says is joined unless a later delete has voided it. Where two types
meet under one key, all replicas come to the same one. Source: decisions 0012 and 0014.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from anna.kvs.cells cimport CELL_DROPPED, CELL_WHOLE, CellReader
from anna.kvs.clock cimport COUNTER_BITS, Clock, epoch_of
from anna.kvs.deltas cimport Deltas
from anna.kvs.store cimport Piece, Store
from anna.kvs.table cimport Slot
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64
from anna.wire cimport LWW_HEADER_BYTES, LWW_NUMBER

from anna.errors import LatticeTypeMismatch, ProtocolError
from anna.lattices import REGISTRY


cdef class Arrivals(Deltas):
    """The receiving side. `touched` are the keys that may have changed, for those who watch them."""

    def __init__(self, uint64_t mine, Store store, Clock clock):
        super().__init__(mine, store, clock)
        self.touched = set()
        self.leftovers = {}
        self.ends = {}
        self.lives = {}

    def take_cells(self, bytes body, Py_ssize_t place, uint64_t epoch):
        """Join cells into the store."""
        cdef CellReader reader = CellReader(body, place)
        self.busy_until = max(self.busy_until, self.epoch + 2)
        while reader.next_of(self.store.states):
            self.deltas_taken += 1
            if self.leftovers:
                self.drop_leftover(reader.key[:reader.head.key_bytes])
            if self.take_cell(reader, epoch) and self.watching:
                self.touched.add(reader.key[:reader.head.key_bytes])

    cdef int drop_leftover(self, bytes key) except -1:
        """What is still here of a key that had ceased to be this worker's is not to be joined with what its owners say of it."""
        if key in self.leftovers:
            del self.leftovers[key]
            self.drop(key)
        return 0

    cdef int drop(self, bytes key) except -1:
        """Forget a key that is another worker's; the log, too."""
        self.store.drop(key)
        self.dropped += 1
        if self.history is not None:
            self.history.blur(key, self.epoch)
        if self.log is not None:
            self.log.note_dropped(key)
        return 0

    cdef bint take_cell(self, CellReader reader, uint64_t epoch) except -1:
        """Join one cell; whether that may have changed its key."""
        cdef bytes key = None
        cdef uint64_t reset = 0
        cdef bint changed = False
        if self.store.lost and not self.is_wanted(reader):
            return False
        if self.snapshot is not None:
            self.snapshot.take(reader, epoch)
        if self.history is not None:
            self.history.take(reader, epoch, reader.head.reset if epoch_of(reader.head.reset) > self.floor else 0)
        if reader.head.reset or self.store.resets or self.store.ended or reader.head.type != LWW_NUMBER or reader.expires:
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

    cdef bint is_wanted(self, CellReader reader) except -1:
        """Whether a cell may be joined, though its key's state may be lost here; if it makes up for what was lost, it is lost no more.

        A register does that is not older, another state that is whole. A delta alone does not, and need not be kept: who sent it
        sends the whole, too.
        """
        cdef bytes key = reader.key[:reader.head.key_bytes]
        cdef uint64_t stamp = 0
        if key not in self.store.lost or reader.head.type == 0:
            return True
        if reader.head.type == LWW_NUMBER and reader.head.payload_bytes >= LWW_HEADER_BYTES:
            memcpy(&stamp, reader.payload, 8)
            if self.store.lost_later(key, stamp):
                return False
        elif not reader.head.flags & CELL_WHOLE:
            return False
        self.store.recover(key)
        return True

    def void(self, bytes key, uint64_t reset):
        """A reset came from elsewhere: what was to be sent and is older is void; what survived it is logged again, after it."""
        cdef Piece piece = self.changes.piece_of(key)
        if piece is not None and piece.last <= reset:
            self.changes.note(key)
        if self.log is not None:
            self.log.note_survivor(key, self.epoch)

    cdef bint take_register(self, CellReader reader, bytes key, uint64_t reset) except -1:
        cdef uint64_t stamp, writer
        cdef Slot* slot
        cdef const char* payload = reader.payload + LWW_HEADER_BYTES
        cdef Py_ssize_t size = <Py_ssize_t>reader.head.payload_bytes - LWW_HEADER_BYTES
        if size < 0:
            raise ProtocolError(f"an LWW has at least {LWW_HEADER_BYTES} bytes, got {size + LWW_HEADER_BYTES}")
        memcpy(&stamp, reader.payload, 8)
        memcpy(&writer, reader.payload + 8, 8)
        if stamp <= reset:
            return False
        self.clock.follow(stamp)
        try:
            slot = self.store.write_register(reader.key, reader.head.key_bytes, reader.hash, stamp, writer, payload, size, None)
        except LatticeTypeMismatch:
            if not self.settled(reader.key[:reader.head.key_bytes], LWW):
                return False
            slot = self.store.write_register(reader.key, reader.head.key_bytes, reader.hash, stamp, writer, payload, size, None)
        if reader.expires or self.store.expiries:
            self.store.expire_at(<object>slot.key, reader.expires, stamp)
        if self.log is not None:
            self.log.note_register(slot)
        return True

    cdef bint take_state(self, CellReader reader, bytes key, uint64_t reset, uint64_t epoch) except -1:
        cdef Lattice state
        cdef bint whole = reader.head.flags & CELL_WHOLE
        kind = REGISTRY.get(reader.head.type)
        if kind is None:
            raise ProtocolError(f"lattice type {reader.head.type} is not known to this worker")
        if reader.head.last <= reset and not (whole and reader.head.reset >= reset):
            if reset > self.store.deleted_at(key):
                self.ends[key] = reset  # who still has the key is to say why
            return False  # it is older than the delete
        if self.store.expiries and not whole:
            self.end_before(key, reader.head.last)
        if self.store.survived and not whole and reader.head.last <= <uint64_t>self.store.survived.get(key, 0):
            self.lives[key] = self.store.survived[key]  # who had ended the key meanwhile has dropped it
        state = kind.decode(reader.payload[:reader.head.payload_bytes])
        if not self.settled(key, kind):
            return False
        self.clock.follow(reader.head.last)
        self.store.write(key, state)
        if reader.expires or self.store.expiries:
            self.store.expire_at(key, reader.expires, reader.head.last)
        if epoch_of(reader.head.last) > self.floor:
            self.store.keep_piece(key, epoch, reader.head.last, state)
        if self.log is not None:
            self.log.note_delta(key, self.epoch, reader.head.last, state)
        return True

    def end_before(self, bytes key, uint64_t stamp):
        """A write of `stamp` is about to be joined: if the time of what is here was over by then, end that first."""
        expires, last = self.store.expiries.get(key, (0, 0))
        if expires and last < stamp and expires <= stamp >> COUNTER_BITS and self.store.kind_of(key) is not LWW:
            self.end_life(key)

    def end_life(self, bytes key):
        """The time of a key is over. The other owners are told, unless it is theirs alone by now: then they know more of it."""
        cdef uint64_t stamp
        kind = self.store.kind_of(key)
        register = kind is None or kind is LWW
        if self.history is not None:
            # Of a register the past knows its time. Of another type the owners come to the same only when they have told each other.
            self.history.open(key, self.epoch) if register else self.history.blur(key, max(self.epoch, self.clock.epoch()))
        stamp = self.store.end_life(key)
        if register:
            self.note_deleted(key)
            return
        self.void_ended(key, stamp)
        self.busy_until = max(self.busy_until, self.epoch + 2)
        if self.placement.spans(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), self.place):
            self.ends[key] = stamp

    def void_ended(self, bytes key, uint64_t stamp):
        """A key has ended here: what was to be sent of it is void, and so is what was logged."""
        cdef Piece piece = self.changes.piece_of(key)
        if piece is not None and piece.last <= stamp:
            del self.changes.noted[key]
        if self.log is not None:
            self.log.note_ended(key)

    def settled(self, bytes key, kind):
        """Whether a replica's state of type `kind` may be joined into `key`: two types never stay, the lesser number wins."""
        present = self.store.read(key)
        if present is None or type(present) is kind:
            return True
        self.quarantined += 1
        return self.store.settle_type(key, kind)

    cdef bint recovers(self, CellReader reader) except -1:
        """Take a logged cell that is no key's; False for any other. (`anna.kvs.transactions`.)"""
        return False

    def recover(self, bytes cells):
        """Join logged cells back, in the order of the log: a newer reset voids what stood before it."""
        cdef CellReader reader = CellReader(cells, 0)
        while reader.next_of(self.store.states):
            key = reader.key[:reader.head.key_bytes]
            if reader.key[0] == 0 and self.recovers(reader):
                continue
            if reader.head.flags & CELL_DROPPED:
                self.store.drop(key)
                continue
            if reader.head.reset > self.store.reset_of(key):
                self.store.pieces.pop(key, None)
                self.store.remove(key)
                self.store.reset(key, reader.head.reset)
            if reader.head.type:
                reader.head.flags |= CELL_WHOLE
                self.take_cell(reader, self.epoch)
