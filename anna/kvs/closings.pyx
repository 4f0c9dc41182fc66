"""How far everybody is: the epochs that are closed, the stable epoch, and the floor below which deletes are forgotten.

The one rule: an epoch is closed here when the clock has passed it and every replica has confirmed what it got of it; the *stable epoch*,
the least that any worker of the view has closed, never goes back. All that was written up to it is on all its replicas.

A closing is u64 digest of the view, u64 closed epoch, u64 epoch that is on disk, u8 flags: 1 busy, 2 stored. Closings are not confirmed, because
a later one says all; they are announced each epoch while somebody writes, and ride on heartbeats otherwise. Source: DESIGN §4.
"""

from libc.stdint cimport uint64_t

from anna.kvs.clock cimport Clock
from anna.kvs.peers cimport KIND_CLOSED
from anna.kvs.store cimport Store
from anna.kvs.transactions cimport Transactions

import struct

from anna import config
from anna.errors import ProtocolError
from anna.kvs.ages import Ages
from anna.kvs.faults import PLANTED

cdef uint64_t BUSY_EPOCHS = config.BUSY_EPOCHS
# What a worker without a log says is on disk: it comes back with nothing, and can undo nothing.
cdef uint64_t ALL_KEPT = 0xFFFFFFFFFFFFFFFF

_CLOSED = struct.Struct("<QQQB")
_BUSY, _STORED = 1, 2


cdef class Closings(Transactions):
    """What this worker and its peers have closed, and have on disk."""

    def __init__(self, uint64_t mine, Store store, Clock clock):
        super().__init__(mine, store, clock)
        self.closed = self.epoch - 1
        self.closed_of = {}
        self.kept_of = {}
        self.stored_of = set()
        self.ages = Ages()
        self.aged = 0

    def restart_closings(self):
        """The view is another: what was closed by the old one says nothing of the new one's replicas."""
        self.closed = self.stable
        self.announced = self.stable
        self.closed_of.clear()
        self.kept_of.clear()
        self.stored = self.storing = False
        self.stored_of.clear()
        if self.log is not None:
            self.log.restart()

    def closing(self):
        """Return what this worker says of its epochs: which it has closed, and whether there is work; and whether it has stored what it was sent."""
        flags = (_BUSY if self.epoch + 2 <= self.busy_until else 0) | (_STORED if self.stored else 0)
        return _CLOSED.pack(self.view.digest, self.closed, self.kept, flags)

    @property
    def kept(self):
        """The epoch up to which a crash of this worker undoes nothing: all that it should have of that is on disk, or it comes back with nothing."""
        return ALL_KEPT if self.log is None else self.log.kept

    @property
    def stored_by_all(self):
        """Whether all others have on their disks what they should have under the view: who may have had it from here need not have it any more."""
        return len(self.stored_of) == len(self.links)

    cdef int note_stored(self) except -1:
        """This worker is complete: see whether what it has is on its disk, too. Without a log it need not be."""
        if self.log is not None and not self.storing:
            self.storing, self.stored_with = True, self.log.round_wanted()
        if self.log is None or self.log.round >= self.stored_with:
            self.stored = True
            self.hurry()
        return 0

    def take_log(self):
        """Return (number, cells) of the next batch for the log, or None when there is none to take."""
        if self.log is None:
            return None
        # A restart would offer again what this worker ceased to offer, until its log has forgotten that too.
        has_all = self.complete and self.own_alone is self.placement and not self.leftovers
        return self.log.take(self.stable if has_all else 0)

    def take_closing(self, sender, bytes closing):
        """A peer says which epoch it has closed."""
        if len(closing) != _CLOSED.size:
            raise ProtocolError(f"a closing has {_CLOSED.size} bytes, got {len(closing)}")
        view, closed, kept, flags = _CLOSED.unpack(closing)
        if sender in self.links and view == self.view.digest:
            self.closed_of[sender] = max(closed, self.closed_of.get(sender, 0))
            self.kept_of[sender] = kept
            if flags & _STORED:
                self.stored_of.add(sender)
            # Not at the next tick: that would make all that sessions read an epoch older.
            self.advance()
        if flags & _BUSY:
            self.busy_until = max(self.busy_until, self.clock.epoch() + 1)

    def close(self, bint complete):
        """Close what can be closed, announce it while there is work, and forget what the stable epoch has settled."""
        cdef uint64_t closed = self.clock.epoch() - 1
        if self.epoch > self.aged:
            self.aged = self.epoch
            self.ages.note(self.epoch - self.stable, bool(self.busy and self.stable))
        self.look_after()
        if len(self.changes):
            closed = min(closed, self.epoch - 1)
        for waiting in self.pending.values():
            # Not always the first: what a transaction came to belongs to the epoch of its proposal.
            for entry in waiting:
                closed = min(closed, <uint64_t>entry[1] - 1)
        if self.prepared:  # S1 (docs/sessions.md): what is not decided holds its epoch open, as what is not confirmed does
            closed = min(closed, self.first_prepared() - 1)
        if complete and not self.stored:
            self.note_stored()
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
        if stable > self.stable:  # S2: it is the least of one view's closings, and never goes back
            if self.history is not None:
                self.history.advanced(self.stable, stable, self.view.digest)
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

    @property
    def busy(self):
        """Whether closings are due each epoch."""
        return self.clock.epoch() < self.busy_until or len(self.changes) > 0 or self.closed > self.announced and self.epoch <= self.busy_until

    def hurry(self):
        """Somebody waits for the stable epoch: announce closings for a while."""
        self.busy_until = max(self.busy_until, self.clock.epoch() + BUSY_EPOCHS)
