"""Which keys another worker should have, and how it comes to have them: what two workers compare when the view has changed.

The one rule: both ends of a comparison count the same keys, whatever either has of them (`is_shared`), so that equal digests mean that nothing is
missing. Only when everybody has sent what this worker should have is it complete for the view. What is no longer its own it offers
until all others have all of theirs, and drops when nobody compares any more. Source: decision 0012.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t

from anna.buffer cimport Buffer
from anna.kvs.arrivals cimport Arrivals
from anna.kvs.cells cimport CELL_WHOLE, append_cell, end_cell
from anna.kvs.clock cimport Clock, epoch_begin
from anna.kvs.digest cimport hashed_mark
from anna.kvs.memory cimport Cold
from anna.kvs.store cimport Piece, Store
from anna.kvs.table cimport Slot
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64

from anna import config
from anna.kvs.digest import cell_hash, register_hash
from anna.kvs.faults import PLANTED

REPAIR_QUEUE_BYTES = config.REPAIR_QUEUE_BYTES
REPAIR_SLICE_BYTES = config.REPAIR_SLICE_BYTES
REPAIR_SLICE_KEYS = config.REPAIR_SLICE_KEYS


cdef class Comparing(Arrivals):
    """One comparison with each peer (`anna.kvs.repair`), begun with each view. `former` is the placement of the view before."""

    def __init__(self, uint64_t mine, Store store, Clock clock):
        super().__init__(mine, store, clock)
        self.repairs = {}
        self.repair_sent = {}
        self.tenures = None
        self.own_alone = None

    def compare_with(self, peer):
        """Begin to compare with `peer`, under the view of now."""
        self.repairs[peer].start(self.view.version, self.view.digest, self.scanner(peer), self.offer(peer))

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

    def look_for_lost(self):
        """Compare with every other worker once more, if states were lost here since the last time."""
        if self.store.losses == self.losses_seen:
            return
        self.losses_seen = self.store.losses
        self.compare_again()

    def compare_again(self):
        """Compare with every other worker once more, under the same view."""
        for repair in self.repairs.values():
            repair.again()

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
        if self.own_alone is not self.placement:
            self.own_alone = self.placement
            self.tenures = [(self.placement, self.place)]
            self.leftovers = {} if self.everywhere else {key: None for key in self.store.keys_now() if not self.is_for(key, self.place)}

    def drop_leftovers(self):
        """The view changes: drop what this worker had ceased to offer before it may be an owner again. Deletes went to the owners alone."""
        for key in self.leftovers:
            self.drop(key)
        self.leftovers = {}

    def sweep(self, int limit):
        """Drop keys that this worker is no owner of any more, some each time; whether there is more to look at."""
        cdef bytes key
        if self.sweeping is None:
            self.sweeping = self.store.keys_now()
        for _ in range(limit):
            if not self.sweeping:
                return False
            key = self.sweeping.pop()
            if not self.is_for(key, self.place):
                self.leftovers.pop(key, None)
                self.drop(key)
        return True

    # -- what is compared

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
            if not self.is_for(key, place):
                return b""
            ended = self.store.ended.get(key)
            return self.cell_of(key) if ended is None else end_cell(key, ended) + self.cell_of(key)

        return cell

    def keeps(self, bytes key):
        """Whether this worker is an owner of a key, as things are or as they will be."""
        return self.is_for(key, self.place)

    def is_for(self, bytes key, int place):
        return self.placement.spans(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), place)

    cdef bint may_offer(self, uint64_t hash) except -1:
        """Whether this worker is to have a key, or was at any time since it had last given everybody what was theirs."""
        cdef Placement placement
        if self.tenures is None:
            return True
        for placement, place in self.tenures:
            if placement.spans(hash, place):
                return True
        return False

    cdef bint is_shared(self, uint64_t hash, int place, int former_place) noexcept:
        """Whether the peer should have a key that is here, or may still have it from the view before: both ends must count the same."""
        if self.placement.spans(hash, place):
            return True
        return self.former is not None and former_place >= 0 and self.former.spans(hash, former_place)

    cdef list entries_of(self, int place, int former_place, list keys, Py_ssize_t begin, Py_ssize_t end):
        """Return (key, key hash, cell hash) of those of `keys[begin:end]` that the worker at `place` should have."""
        cdef list entries = []
        cdef Py_ssize_t index
        cdef int count, owner
        cdef uint64_t hash
        cdef bytes key
        cdef Slot* slot
        cdef Lattice state
        cdef LWW register
        cdef Cold cold
        cdef uint64_t expires
        for index in range(begin, min(end, len(keys))):
            key = <bytes>keys[index]
            hash = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            if not self.is_shared(hash, place, former_place) or not self.may_offer(hash):
                continue
            slot = self.store.states.slot_of(hash, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            state = None if slot.key is NULL else <Lattice>slot.state
            if type(state) is LWW:
                register = <LWW>state
                entries.append((key, hash, register_hash(key, 0, register.stamp, register.writer, register.payload, self.store.expiry_of(key) if self.store.expiries else 0)))
            elif type(state) is Cold:
                cold = <Cold>state
                expires = self.store.expiry_of(key) if self.store.expiries else 0
                entries.append((key, hash, hashed_mark(hash, cold.number, expires, cold.stamp, cold.writer, cold.content_hash)))
            elif state is not None:
                entries.append((key, hash, cell_hash(key, state.NUMBER, 0, 0, state.encode(), self.store.expiry_of(key) if self.store.expiries else 0)))
            elif self.store.reset_of(key):
                entries.append((key, hash, cell_hash(key, 0, self.store.deleted_at(key), self.store.ended.get(key, 0), b"")))
        return entries

    def cell_of(self, bytes key):
        """Return all that is known of `key`, as one cell and one for each piece that is not stable yet.

        The first is known to lack no delete up to its `last`, the floor, and is void for whoever knows of a later one. The
        pieces then say what was written after that delete: in the joined state the two cannot be told apart. Nothing for a key
        of which nothing is known, or whose state was lost: others have it.
        """
        cdef Buffer buffer = Buffer()
        cdef Lattice state = self.store.look(key)
        cdef uint64_t reset = self.store.deleted_at(key)
        if state is None and reset == 0:
            return b""
        append_cell(buffer, key, state, reset, epoch_begin(self.floor + 1) - 1, CELL_WHOLE, self.store.expiry_of(key))
        for piece in self.store.pieces.get(key, ()):
            append_cell(buffer, key, (<Piece>piece).state, reset, (<Piece>piece).last, 0, self.store.expiry_of(key))
        return PyBytes_FromStringAndSize(buffer.data, buffer.size)


def index_in(view, worker):
    """Return the worker's place in a view, -1 when it has none."""
    if view is None:
        return -1
    try:
        return view.index_of(worker)
    except KeyError:
        return -1
