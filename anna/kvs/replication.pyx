"""What a worker and the other owners of its keys tell each other: the deltas of each epoch, and how far everybody is.

The one rule: every owner takes writes, and nothing waits for anything here. What waits is an answer whose client asked for copies, and it
waits in its connection. Deltas travel on links (`anna.kvs.link`), in order, confirmed and sent again. When the view changes, each pair of
workers compares what the one holds and the other should. Only then is a worker complete for the view, and only complete workers
close epochs. Source: DESIGN §4, §5.

It is built in layers, each a class that knows those below it alone. From the bottom: `peers` (to whom), `deltas` (what is sent),
`arrivals` (what comes), `comparing` (what was missed), `endings` (whose time is over), `transactions` (what is prepared), `closings` (how far everybody is). This is the
top: views, and which message is which. Link bodies begin with their kind: 1 deltas (`anna.kvs.deltas`); 2 and 7 ends of lives; 3 to 6 repair (`anna.kvs.repair`); 8 to 11
transactions. Beside them is the `log`.
"""

from libc.stdint cimport int64_t, uint64_t

cimport cython

from anna.buffer cimport Buffer
from anna.kvs.closings cimport Closings
from anna.kvs.deltas cimport BODY_DELTAS
from anna.kvs.log cimport Log
from anna.kvs.peers cimport KIND_CLOSED, KIND_LINK
from anna.routing.placement cimport Placement

import struct
from collections import deque

from anna import config
from anna.errors import ProtocolError
from anna.kvs.endings import BODY_ENDS, BODY_LIVES
from anna.kvs.link import Link
from anna.kvs.repair import Repair
from anna.kvs.transactions import BODY_ANSWER, BODY_OUTCOME, BODY_PREPARED, BODY_QUESTION
from anna.messages import NodeStatus

cdef uint64_t BUSY_EPOCHS = config.BUSY_EPOCHS

_PEERS = struct.Struct("<QQ")
_EPOCH = struct.Struct("<Q")


@cython.final
cdef class Replication(Closings):
    """The replicas' side of one worker. `mine` is its id; store and clock are the worker's own."""

    def adopt(self, view, Placement placement, int place):
        """Take up a newer view: keep the links to the workers that stay, begin those to new ones, drop the others."""
        self.drop_leftovers()
        self.former, self.former_view = self.placement, self.view
        if self.snapshot is not None:
            self.snapshot.spoil()
        self.view = view
        self.placement = placement
        self.place = place
        if self.tenures is not None:
            self.tenures.append((placement, place))
        self.ids = tuple([worker.worker_id for worker in view.workers])
        self.siblings = frozenset([worker.worker_id for worker in view.node_of(self.mine).workers]) - {self.mine}
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
        self.restart_closings()
        self.sweeping = None
        self.everywhere = placement.everywhere
        self.sharing = len(self.ids) > 1 and (placement.copies_most > 1 or view.in_motion)
        self.comparing = len(self.ids) > 1
        self.mourning = any([node.status == NodeStatus.DEAD for node in view.nodes])
        self.busy_until = self.clock.epoch() + BUSY_EPOCHS
        self.spread_all()
        for peer in self.repairs:
            self.compare_with(peer)
        self.settle()

    def mend(self, peer):
        """A peer has forgotten this end of the link: begin a new one. What was confirmed to the old one is compared anew."""
        self.sessions[peer] += 1
        self.links[peer] = self.links[peer].successor(self.sessions[peer])
        self.pending[peer].clear()
        self.repair_sent.pop(peer, None)
        self.confirmed[peer] = self.changes.round - 1
        self.spread_all(peer)
        self.compare_with(peer)

    def hear(self, int kind, bytes payload, bytes fragment, int64_t now):
        """Take one message of a peer; of a link's frame, `payload` is the header. Raises ProtocolError."""
        sender, receiver = _PEERS.unpack_from(payload)
        if receiver != self.mine or sender not in self.links:
            return
        if kind == KIND_LINK and self.store.memory is not None and self.store.memory.is_full and self.store.memory.is_crowded:
            return  # there will be room when it is sent again
        if kind == KIND_LINK:
            link = self.links[sender]
            failure = None
            for body in link.receive((payload, fragment), now):
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
        if body[0] == BODY_ENDS:
            return self.take_ends(body, 1)
        if body[0] == BODY_LIVES:
            return self.take_lives(body)
        if BODY_PREPARED <= body[0] <= BODY_ANSWER:
            return self.take_of_transaction(sender, body)
        cells = self.repairs[sender].hear(body)
        if cells:
            if self.snapshot is not None:
                self.snapshot.spoil()
            self.take_ends(cells, 0)
            self.take_cells(cells, 0, self.epoch)

    def take_of_transaction(self, sender, bytes body):
        """Take one body about a transaction."""
        if body[0] == BODY_PREPARED:
            self.take_prepared(sender, body)
        elif body[0] == BODY_OUTCOME:
            self.take_outcome(body)
        elif body[0] == BODY_QUESTION:
            self.take_question(sender, body)
        else:
            self.take_answer(sender, body)

    def open_log(self, number):
        """Begin to log what changes; the next batch has `number`."""
        self.log = Log(self.store, number)
        self.store.forgotten = []

    @property
    def remembers(self):
        """Whether deletes have to be remembered: somebody else has the key, or may bring it back, or the log has it, or a past that is not settled yet."""
        if self.sharing or self.comparing or self.log is not None or self.mourning:
            return True
        return len(self.store.pieces) > 0 or len(self.store.resets) > 0

    def check(self):
        """Assert the invariants."""
        assert not any([(<Buffer>buffer).size for buffer in self.buffers if buffer is not None]), "cells were left behind"
        assert self.stable <= self.closed, (self.stable, self.closed)
        self.check_transactions()
        assert self.links.keys() == self.pending.keys() == self.confirmed.keys() == self.repairs.keys()
        for peer, repair in self.repairs.items():
            repair.check()
        for peer, waiting in self.pending.items():
            numbers = [(round, sequence) for round, _, sequence in waiting]
            assert sorted(numbers) == numbers, "the rounds under way are out of order"
            self.links[peer].check()
