"""What of a worker's keys is to be made durable, one batch after the other.

The one rule: a batch holds, in its order, all that changed before it was taken and was in no batch before; only one is under way at a time, and
the next one gathers meanwhile, which is the group commit. Source: decision 0010.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t

cimport cython

from anna.buffer cimport Buffer
from anna.kvs.cells cimport CELL_DROPPED, append_cell, append_register
from anna.kvs.changes cimport Changes
from anna.kvs.store cimport Piece, Store
from anna.lattices.base cimport Lattice
from anna.kvs.table cimport Slot
from anna.lattices.lww cimport LWW

cdef enum:
    # How many changed keys are fetched from memory at once.
    ANNOUNCED_MAX = 16


@cython.final
cdef class Log:
    """The log of one worker's `store`; its next batch has `number`."""

    def __init__(self, Store store, number):
        self.store = store
        self.changes = Changes()
        self.dropped = {}
        self.records = {}
        self.buffer = Buffer()
        self.number = number

    cdef int note(self, bytes key) except -1:
        """The store's state of `key` says what it has become."""
        self.changes.note(key)
        return 0

    cdef int note_delta(self, bytes key, uint64_t epoch, uint64_t stamp, Lattice delta) except -1:
        """Note a delta, joined with those of this batch; it may be another round's too, so it is copied."""
        cdef Piece piece = self.changes.piece_of(key)
        if piece is None or type(piece.state) is not type(delta):
            self.changes.note_piece(key, Piece(epoch, stamp, delta.copy()))
        else:
            piece.state.merge(delta)
            piece.last = max(piece.last, stamp)
        return 0

    cdef int note_survivor(self, bytes key, uint64_t epoch) except -1:
        """A reset came from elsewhere: what survived it is logged again, after it."""
        cdef Lattice state = self.store.read(key)
        cdef uint64_t last
        if state is None or type(state) is LWW:
            self.changes.note(key)
        else:
            last = max([piece.last for piece in self.store.pieces.get(key, ())], default=0)
            self.changes.note_piece(key, Piece(epoch, last, state.copy()))
        return 0

    cdef int note_dropped(self, bytes key) except -1:
        """The key is another worker's: a restart is not to find what was logged of it, which may be deleted elsewhere since."""
        self.changes.noted.pop(key, None)
        self.dropped[key] = None
        return 0

    cdef int note_record(self, bytes name, bytes payload) except -1:
        """A transaction came to this; nothing: it is forgotten."""
        self.records[name] = payload
        return 0

    cdef int note_ended(self, bytes key) except -1:
        """The key's time is over. A delete that was to be logged, is."""
        if self.changes.piece_of(key) is not None:
            del self.changes.noted[key]
        self.dropped[key] = None
        return 0

    @property
    def wanted(self):
        """Whether there is something to log and no batch is under way."""
        return not self.round_under_way and len(self.changes) + len(self.dropped) + len(self.records) > 0

    @property
    def durable_number(self):
        """The number of the last batch that is on disk."""
        return self.number - (2 if self.round_under_way else 1)

    def take(self, uint64_t stable):
        """Return (number, cells) of what is to be logged, or None: nothing is, or one batch is under way already.

        All that anybody wrote up to the epoch `stable` is here. What is only older than now is no such thing: it may still come.
        """
        cdef Buffer buffer
        cdef bytes key
        cdef Piece piece
        cdef Lattice state
        cdef list registers
        cdef dict noted
        cdef Buffer hashes
        cdef Slot* slot
        cdef Py_ssize_t index
        cdef uint64_t reset
        if self.round_under_way:
            return None
        if not len(self.changes) and not self.dropped and not self.records:
            self.kept = max(self.kept, stable)
            return None
        buffer = self.buffer
        buffer.shrink()
        self.round_under_way = self.changes.round
        self.stable_under_way = stable
        for key in self.dropped:
            append_cell(buffer, key, None, 0, 0, CELL_DROPPED, 0)
        self.dropped = {}
        for name, payload in self.records.items():
            if payload:
                append_register(buffer, name, LWW.make(1, 1, payload), 0, 0)
            else:
                append_cell(buffer, name, None, 0, 0, CELL_DROPPED, 0)
        self.records = {}
        registers, hashes, noted = self.changes.take()
        for index in range(len(registers)):
            if index % ANNOUNCED_MAX == 0:
                self.store.states.announce(<uint64_t*>hashes.data + index, <int>min(len(registers) - index, <Py_ssize_t>ANNOUNCED_MAX))
            key = <bytes>registers[index]
            slot = self.store.states.slot_of((<uint64_t*>hashes.data)[index], PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            if slot.key is NULL:
                continue  # it was deleted since, and is noted so
            state = <Lattice>slot.state if type(<object>slot.state) is LWW else self.store.look(key)
            if type(state) is LWW:
                reset = self.store.deleted_at(key) if self.store.resets else 0
                append_register(buffer, key, <LWW>state, reset, self.store.expiry_of(key) if self.store.expiries else 0)
        for key, piece in noted.items():
            state = self.store.read(key) if piece is None else piece.state
            append_cell(buffer, key, state, self.store.deleted_at(key), 0 if piece is None else piece.last, 0, self.store.expiry_of(key))
        self.number += 1
        return self.number - 1, PyBytes_FromStringAndSize(buffer.data, buffer.size)

    def logged(self, number):
        """The batch `number` is on disk."""
        if self.round_under_way and number == self.number - 1:
            self.round = self.round_under_way
            self.round_under_way = 0
            self.kept = max(self.kept, self.stable_under_way)

    def restart(self):
        """The view is another: there may be more now that should be here."""
        self.kept = 0
        self.stable_under_way = 0
