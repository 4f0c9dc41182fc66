"""A worker as one of a cluster: its view, which keys it answers for, its part of the messages between workers, its epochs.

The one rule: a worker answers only for keys of which it has all that can be known. It is complete under a view when everybody has sent what
it should have; until then it answers for what it had under the view before. Whose node leaves takes writes until the others have all but
the last, and answers reads to the end. So no key that exists is called missing. Source: decisions 0011 and 0012.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from anna.kvs.clock cimport Clock, epoch_begin, epoch_of
from anna.kvs.frames cimport Frames
from anna.kvs.peers cimport KIND_HEARTBEAT
from anna.kvs.replication cimport Replication
from anna.routing.hash cimport hash64
from anna.routing.placement cimport SPAN_ROOM, Placement
from anna.wire cimport REPLY_MARK_SHIFT

import msgpack

from anna import config
from anna.errors import ProtocolError, StaleReplica
from anna.kvs.faults import PLANTED
from anna.membership import Membership
from anna.messages import DEAD, JOINING

cdef int SWEEP_KEYS_MAX = config.SWEEP_KEYS_MAX

cdef enum:
    # Of so many views the worker remembers that it was cut off under them; epochs are told apart for much less long.
    PARTIAL_MAX = 64


cdef class Member(Frames):
    """A worker's place in its cluster. `place` is its index in `view.workers`."""

    def __init__(self, view, int place, Clock clock, tuple seeds):
        super().__init__(clock)
        self.place = place
        self.worker_id = view.workers[place].worker_id if 0 <= place < len(view.workers) else 0
        self.membership = None
        self.epoch_end = 0xFFFFFFFFFFFFFFFF
        self.seeds = seeds
        self.entire = True
        self.made_good = frozenset()
        self.dead_workers = frozenset()
        self.partial = {}
        self.returning = False

    # -- views

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
        self.view_mark = view.mark << REPLY_MARK_SHIFT
        self.gone = True

    def take_view(self, view):
        """Place keys by a newer view. Raises ValueError when it does not name this worker."""
        try:
            self.place = view.index_of(self.worker_id)
        except KeyError as error:
            raise ValueError(str(error)) from None
        if self.replication is not None and "early-return" not in PLANTED and not dead_in(self.view).isdisjoint([node.node_id for node in view.serving]):
            # A partition is over. What keys held meanwhile was another thing here than there, and what was written there has not come yet.
            self.returning = True
            self.forget_pasts()
        self.view = view
        self.placement = Placement(view)
        self.copies_usual = min(2, self.placement.copies_most)
        self.owns_all = self.placement.everywhere
        self.view_payload = msgpack.packb(view.to_wire())
        self.view_mark = view.mark << REPLY_MARK_SHIFT
        self.closing = False
        self.see_whether_entire()
        if self.replication is not None:
            self.settling = self.settled is not None or len(view.nodes) > 1 or len(self.seeds) > 0
            self.swept = False
            self.replication.adopt(view, self.placement, self.place)

    cdef int see_whether_entire(self) except -1:
        """See whether those that fell silent together may go on without this side, and with keys of which no copy is left here.

        They do if they are as many as keys have copies, or more nodes than are left; of two halves, of more than two nodes, the one goes on that has the least
        id. The other side says nothing of what keys hold at an epoch, and takes no transactions, until they are heard again. Without copies, and
        between two nodes, there is nothing to go by. Who joins takes those for made good that were dead before.
        """
        cdef Py_ssize_t left, lost
        dead = dead_in(self.view)
        self.made_good = dead if self.view.node_of(self.worker_id).status == JOINING else self.made_good & dead
        dead = dead - self.made_good
        alive = [node.node_id for node in self.view.nodes if node.reachable]
        left, lost = len(alive), len(dead)
        self.dead_workers = frozenset([worker.worker_id for node in self.view.nodes if node.status == DEAD for worker in node.workers])
        self.entire = True
        if self.view.copies_asked > 1 and left + lost > 2 and "part-for-whole" not in PLANTED:
            self.entire = lost < self.view.copies_asked and (lost < left or (lost == left and min(alive) < min(dead)))
        if not self.entire:
            self.partial[self.view.digest] = None
            if len(self.partial) > PARTIAL_MAX:
                del self.partial[next(iter(self.partial))]
        return 0

    def forget_pasts(self):
        """Know nothing any more of what keys held at past epochs."""
        raise NotImplementedError

    cdef int require_entire(self) except -1:
        """Raise StaleReplica where keys may be missing that others have."""
        if self.returning:
            raise StaleReplica("nodes that were cut off are back, and what was written there is on its way")
        if not self.entire:
            lost = len(dead_in(self.view) - self.made_good)
            known = lost + len([node for node in self.view.nodes if node.reachable])
            raise StaleReplica(f"{lost} of {known} nodes fell silent together, and keys have {self.view.copies_asked} copies: what they had may go on without this side")
        return 0

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

    @property
    def view_of_peers(self):
        """The view that names those to whom frames go: `view`, until this worker is nobody's owner any more; then it alone goes on."""
        return self.view if self.membership is None else self.membership.view

    # -- whose keys

    cdef bint owns(self, const char* key, Py_ssize_t size) noexcept:
        """Whether this worker is one of the key's owners."""
        cdef int owners[SPAN_ROOM]
        cdef int index, count
        if self.owns_all or self.placement.owner(key, size) == self.place:
            return not self.gone
        if self.placement.copies_most == 1 or self.gone:
            return False
        count = self.placement.owners_at(hash64(key, size), owners)
        for index in range(1, count):
            if owners[index] == self.place:
                return True
        return False

    cdef int replicas(self, const char* key, Py_ssize_t key_bytes, int* owners) except -1:
        """Write the places of all to whom a write to `key` goes; return how many they are."""
        if self.replication is None:
            owners[0] = self.place
            return 1
        return self.placement.span_at(hash64(key, key_bytes), owners)

    cdef int usual_copies(self, const char* key, Py_ssize_t key_bytes) noexcept:
        """Return how many copies of a key a write has that asks for none: two, or one where the key has one."""
        return min(2, self.placement.count_at(hash64(key, key_bytes))) if self.copies_usual > 1 else 1

    def is_first_owner(self, bytes key):
        """Whether this worker is the one owner that a backup has the key of."""
        return self.placement.owner(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)) == self.place and not self.gone

    cdef bint has(self, const char* key, Py_ssize_t size) noexcept:
        """Whether a key's state here is as new as can be known: this worker is complete, or was to have the key when it was complete last."""
        if not self.settling or "stale-owner" in PLANTED:
            return True
        if self.settled is None:
            return False
        return self.settled.spans(hash64(key, size), self.settled_place)

    # -- to have all, and to hand over all

    @property
    def is_complete(self):
        """Whether this worker has all that it should have under its view."""
        return self.replication is None or self.replication.complete and not self.membership.was_paused(self.now)

    def come_to_rest(self):
        """See whether what this worker should have has arrived, and what it has is all elsewhere that should be."""
        self.replication.look_for_lost()
        if self.replication.repair():
            self.replication.hurry()
        if not self.is_complete:
            self.replication.hurry()
            return
        if self.replication.stored_by_all:
            self.replication.keep_to_own()
        self.settling = False
        if self.replication.history is not None and self.settled is not self.placement:
            self.replication.history.moved(self.settled, self.settled_place, max(self.replication.epoch, self.clock.epoch()))
        self.settled = self.placement
        self.settled_place = self.place
        if self.membership.handing_over and not self.has_handed_over():
            self.replication.hurry()
            return
        self.membership.completed(self.view.version)
        self.returning = False
        if self.entire and self.membership.all_complete:
            self.made_good = dead_in(self.view)
        if not self.swept and self.membership.all_complete and self.replication.stored_by_all:
            self.replication.comparing = False
            self.swept = not self.replication.sweep(SWEEP_KEYS_MAX)
            if not self.swept:
                self.replication.hurry()

    cdef bint has_handed_over(self) except -1:
        """Whether the others have all that this worker of a leaving node ever took, and what it had as it began to leave on their disks.

        Once they have all but the last, no more is taken: who writes is told to go to another, and has to try again until
        the node has left. Reads are answered to the end.
        """
        if not self.membership.handed_over or not self.replication.stored_by_all:
            return False
        self.closing = True
        return self.replication.drained and not self.replication.prepared

    # -- what workers tell each other

    def hear_message(self, int kind, bytes payload, bytes fragment, uint64_t stamp):
        """Take one message of another worker, whose clock shows `stamp`; of a link's frame, `payload` is the header. Raises ProtocolError."""
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
                self.replication.hear(kind, payload, fragment, self.now)
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

    def outgoing(self):
        """Return [(worker id, frame), …] to be sent to other workers; what cannot be sent may be dropped."""
        self.urgent = False
        return [] if self.replication is None else self.replication.outgoing(self.now)

    def next_due(self):
        """Return when the cluster has something to do for `tick`, in monotonic ns; None: never."""
        if self.replication is None:
            return None
        link_due = self.replication.link_due()
        return self.membership.due() if link_due is None else min(link_due, self.membership.due())

    # -- epochs

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

    cdef bint is_current(self, uint64_t stamp) except -1:
        """Whether everything that was written up to `stamp` is here."""
        if self.replication is None:
            return True
        if epoch_of(stamp) <= self.replication.stable or self.clock.disbelieves(stamp) or "stale-owner" in PLANTED:
            return True
        self.replication.hurry()
        return False

    @property
    def epoch_left_us(self):
        """Microseconds until this epoch ends."""
        return max(0, <int64_t>(epoch_begin(self.clock.epoch() + 1) >> 10) - self.clock.physical_us)


def dead_in(view):
    """Return the ids of the nodes that are called dead."""
    return frozenset([node.node_id for node in view.nodes if node.status == DEAD])
