"""The state of one worker's keys as it was at the end of one epoch, while the keys themselves go on: what a backup reads.

The one rule: a change belongs to the epoch in which the owner that took it was. Before the first change of a later epoch a key's state is
copied aside; what arrives late, of that epoch or an earlier one, is joined into both. So once the epoch is stable everywhere, the
copies and the keys that need none are the state at its end, on every worker the same instant in the order of stamps: no write is
in it without those that its client saw before.

A state that came whole from another worker (`anna.kvs.repair`) may hold any epoch's changes, so it spoils the snapshot, as a new view does;
who reads it begins again with a later epoch. Source: DESIGN §4; docs/decisions/0013.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint64_t

cimport cython

from anna.buffer cimport Buffer
from anna.kvs.cells cimport CellReader, append_cell
from anna.kvs.clock cimport epoch_begin
from anna.kvs.store cimport Piece, Store
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW

from anna import config
from anna.errors import Damaged, ValueTooLarge
from anna.lattices import REGISTRY

cdef int64_t IDLE_NS = config.SNAPSHOT_IDLE_US * 1000
cdef Py_ssize_t PAGE_BYTES = config.BACKUP_PAGE_BYTES
cdef Py_ssize_t PAGE_KEYS = config.BACKUP_PAGE_KEYS
# What a frame carries beside the headers of the answer.
cdef Py_ssize_t CELLS_BYTES_MAX = config.FRAME_BYTES_MAX - 64


@cython.final
cdef class Snapshot:
    """What `store` holds at the end of `epoch`, which has not ended yet. It is forgotten when nobody asks for SNAPSHOT_IDLE_US."""

    def __init__(self, Store store, uint64_t epoch, int64_t now):
        self.epoch = epoch
        self.present = store
        self.past = Store()
        self.kept = set()
        self.names = None
        self.asked_ns = now
        self.spoiled = False

    def spoil(self):
        """What is here is no single epoch's any more; let go of the copies."""
        self.spoiled = True
        self.past = Store()
        self.kept = set()
        self.names = None

    def is_forgotten(self, int64_t now):
        """Whether nobody has asked for so long that nobody will."""
        return now - self.asked_ns > IDLE_NS

    cpdef int keep(self, bytes key) except -1:
        """Copy `key` aside, as it is before a later epoch changes it, unless it was."""
        cdef Lattice state
        cdef Piece piece
        if key in self.kept or self.spoiled:
            return 0
        self.kept.add(key)
        if self.present.reset_of(key):
            self.past.reset(key, self.present.reset_of(key))
        state = self.present.read(key)
        if state is None:
            return 0
        self.past.write(key, state)
        for piece in self.present.pieces.get(key, ()):
            self.past.keep_piece(key, piece.epoch, piece.last, piece.state.copy())
        expiry = self.present.expiries.get(key)
        if expiry is not None:
            self.past.expire_at(key, expiry[0], expiry[1])
        return 0

    cdef int take(self, CellReader reader, uint64_t epoch) except -1:
        """A change of `epoch` has arrived from another owner and is about to be joined into the present."""
        cdef bytes key = reader.key[:reader.head.key_bytes]
        if self.spoiled:
            return 0
        if epoch > self.epoch:
            return self.keep(key)
        if key in self.kept:
            self.join(key, reader)
        return 0

    cdef int join(self, bytes key, CellReader reader) except -1:
        """Join a late change into the copy of its key."""
        cdef Lattice state
        cdef uint64_t last = reader.head.last
        if reader.head.reset:
            self.past.reset(key, reader.head.reset)
        kind = REGISTRY.get(reader.head.type)
        if kind is None:
            return 0  # a delete, or what the present refuses too
        state = kind.decode(reader.payload[:reader.head.payload_bytes])
        if type(state) is LWW:
            last = (<LWW>state).stamp
        if last <= self.past.reset_of(key) or not self.past.settle_type(key, kind):
            return 0
        self.past.write(key, state)
        if type(state) is not LWW:
            self.past.keep_piece(key, self.epoch, last, state)
        if reader.expires or self.past.expiries:
            self.past.expire_at(key, reader.expires, last)
        return 0

    def page(self, place, owns, int64_t now):
        """Return (cells of the next keys that `owns`, where to go on; 0: that was all). To be asked only once the epoch is stable.

        The keys are those of the first call: what is written later is of a later epoch. A key that was deleted is not among them.
        """
        cdef Buffer buffer = Buffer()
        cdef Py_ssize_t begin = place
        cdef Py_ssize_t index
        cdef uint64_t last = epoch_begin(self.epoch + 1) - 1
        cdef bytes key
        cdef Lattice state
        cdef Store store
        self.asked_ns = now
        if self.names is None:
            self.names = self.past.states.list_keys()
            self.names += [key for key in self.present.states.list_keys() if key not in self.kept]
            self.names += [key for key in self.present.lost if key not in self.kept]
        for index in range(begin, min(len(self.names), begin + PAGE_KEYS)):
            key = <bytes>self.names[index]
            store = self.past if key in self.kept else self.present
            state = store.look(key)
            if state is None and key in store.lost and owns(key):
                raise Damaged(f"{key[:64]!r} is not on this worker's disk as it was written")
            if state is not None and owns(key):
                if buffer.size and buffer.size + <Py_ssize_t>state.size_bytes > PAGE_BYTES:
                    break
                expiry = store.expiries.get(key)
                append_cell(buffer, key, state, 0, 0 if type(state) is LWW else last, 0, 0 if expiry is None else expiry[0])
            begin = index + 1
        if buffer.size > CELLS_BYTES_MAX:
            raise ValueTooLarge(f"{key[:64]!r} has a state of {buffer.size:,} bytes; a backup takes {CELLS_BYTES_MAX:,}")
        cells = PyBytes_FromStringAndSize(buffer.data, buffer.size)
        return cells, 0 if begin >= len(self.names) else begin

    def check(self):
        """Assert the invariants."""
        self.past.check()
        assert set(self.past.states.list_keys()) <= self.kept
