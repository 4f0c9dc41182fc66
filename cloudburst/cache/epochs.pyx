"""Reads at an epoch through a node's cache: what its sessions read.

The one rule: an answer at (epoch, view) is what an owner of the key answers there, or an error; never a newer state, never a guess. It is given from here where a version
is known (`versions`), and asked of an owner otherwise, who goes on to tell what the key holds at later epochs. What an owner does not know to
be stable yet is asked again shortly, of the next one; what none of them tells apart any more is `SnapshotExpired`, and the session begins again.

Owners tell this cache something only while sessions read through it: it says so with its first reads and renews that while there are more. What owner, stream and view an answer or a push is
of is the identity of a `Mark`: whatever was asked under another one is given to who waits for it, and not kept. Source: DESIGN §4 (caches); docs/decisions/0027, 0029.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from anna.kvs.answers cimport Connection
from anna.kvs.clock cimport Clock
from anna.lattices.base cimport Lattice
from anna.wire cimport *
from cloudburst.cache.flights cimport Flight, Flights
from cloudburst.cache.order cimport Slot, read_keys
from cloudburst.cache.versions cimport Dated, Mark, Version, Versions

import struct

from anna import config
from anna.errors import NotSupported, ProtocolError
from anna.kvs.faults import PLANTED
from anna.lattices import REGISTRY

cdef int TRIES_MAX = config.EPOCH_TRIES_MAX
cdef uint64_t LEASE_US = config.EPOCH_LEASE_US_MAX
cdef int64_t LEASE_NS = config.EPOCH_LEASE_US_MAX * 1000
cdef uint64_t RECENT_EPOCHS = config.RECENT_EPOCHS

cdef enum:
    # How many marks are heard between two looks for versions that nobody reads any more.
    LET_GO_MARKS = 8

_LEASE = struct.Struct("<QQ")


cdef class CacheEpochs(Versions):
    """The reads at an epoch, and what owners tell for them."""

    def __init__(self, view, owners, Clock clock, Py_ssize_t bytes_max, keeper, Py_ssize_t shared_bytes_max):
        self.asking = {}
        self.asked = {}
        self.marks = {}
        self.ended = []
        super().__init__(view, owners, clock, bytes_max, keeper, shared_bytes_max)

    # -- what is read

    cdef int get_at(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        """Answer with the state of one key at the end of an epoch. The payload is u64 epoch, u64 view."""
        cdef uint64_t[2] asked
        cdef bytes name
        cdef Dated dated
        cdef Version version
        cdef Slot slot
        self.check_key(key, head.key_bytes, head.flags)
        if size != 16:
            raise ProtocolError(f"a read at an epoch names it in 16 bytes, got {size}")
        memcpy(asked, payload, 16)
        name = PyBytes_FromStringAndSize(key, head.key_bytes)
        self.give(asked[0])
        dated = self.dated.get(name)
        if dated is not None:
            version = dated.find(asked[0], asked[1])
            if version is not None:
                self.hits_at += 1
                dated.touched = True
                if version.state is not None:
                    return self.reply_state(head, version.state)
                self.reply(head, STATUS_MISSING, 0, 0)
                return 0
        self.want_marks()
        slot = self.park(head)
        slot.missing = 1
        return self.want_at(name, PyBytes_FromStringAndSize(payload, 16), slot, 0)

    cdef int multi_get_at(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Answer with the states of many keys at the end of an epoch. The payload is u64 epoch, u64 view, then a multi-get's."""
        cdef uint64_t[2] asked
        cdef bytes name, epoch
        cdef Dated dated
        cdef Version version
        cdef Slot slot = Slot.__new__(Slot)
        if size < 16:
            raise ProtocolError(f"a read at an epoch names it in 16 bytes, got {size}")
        memcpy(asked, payload, 16)
        epoch = PyBytes_FromStringAndSize(payload, 16)
        names = read_keys(payload + 16, size - 16)
        for name in names:
            self.check_key(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), head.flags)
        self.give(asked[0])
        slot.head = head[0]
        slot.items = [None] * len(names)
        for index, name in enumerate(names):
            dated = self.dated.get(name)
            version = None if dated is None else dated.find(asked[0], asked[1])
            if version is None:
                slot.missing += 1
                continue
            self.hits_at += 1
            dated.touched = True
            slot.items[index] = self.part_of(version.state)
        if not slot.missing:
            joined = self.join_items(slot)
            memcpy(self.out.reserve(len(joined)), PyBytes_AS_STRING(joined), len(joined))
            return 0
        self.want_marks()
        self.parked = slot
        for index, name in enumerate(names):
            if slot.items[index] is None:
                self.want_at(name, epoch, slot, index)
        return 0

    cdef bytes part_of(self, object state):
        """Return the part of a multi-get's answer that says that a key holds `state`, or is not there."""
        cdef bytes payload = b"" if state is None else state.encode()
        cdef ReplyItem item = ReplyItem(STATUS_MISSING if state is None else STATUS_OK, 0 if state is None else state.NUMBER, 0,
                                        <uint32_t>PyBytes_GET_SIZE(payload))
        return PyBytes_FromStringAndSize(<char*>&item, ITEM_HEADER_BYTES) + payload

    # -- what is asked of owners

    cdef int want_at(self, bytes name, bytes epoch, Slot slot, Py_ssize_t index) except -1:
        """Let `slot` wait for what an owner says of `name` at an epoch, which it is asked unless it has been already."""
        cdef Flight flight = self.asking.get((name, epoch))
        self.misses_at += 1
        if flight is None:
            flight = self.asking[name, epoch] = self.send(OP_SUBSCRIBE_AT, 0, FLAG_SYSTEM, name, epoch)
            flight.waiters = []
            flight.refused = set()
            self.asked.setdefault(name, []).append(flight)
        flight.waiters.append((slot, index))
        return 0

    cdef int route(self, Flight flight) except -1:
        Flights.route(self, flight)
        if flight.op == OP_SUBSCRIBE_AT:
            flight.mark = self.marks.get(flight.owner)
            flight.pushed = []
        return 0

    cdef uint64_t choose(self, Flight flight) except? 0:
        cdef list owners
        if flight.op != OP_SUBSCRIBE_AT or not (flight.tries or flight.refused):
            return self.owner_of(flight.key)
        owners = self.owners_to_ask(flight)
        return owners[flight.tries % len(owners)] if owners else self.owner_of(flight.key)

    cdef list owners_to_ask(self, Flight flight):
        """Return the ids of the key's owners that are connected and have not refused it."""
        cdef list owners = [self.owners.workers[place].worker_id for place in self.owner_placement.owners_of(flight.key)]
        return [owner for owner in owners if owner in self.hearing and owner not in flight.refused]

    cdef bint asks_another(self, Flight flight, uint64_t owner, int status) except -1:
        """Whether an owner does not know the epoch any more, or never did, and another may: it is asked."""
        if status != STATUS_EXPIRED:
            return False
        flight.refused.add(owner)
        if not self.owners_to_ask(flight):
            return False
        self.route(flight)
        return True

    cdef bint waits(self, Flight flight, int status) except -1:
        """Whether an owner does not know yet that the epoch is stable, and is to be asked again."""
        if status != STATUS_STALE or flight.tries >= TRIES_MAX:
            return False
        flight.tries += 1
        self.held.append(flight)
        return True

    cdef int arrive_at(self, Flight flight, uint64_t owner, int status, int kind, bytes payload, list finished) except -1:
        """An owner's word on a key at an epoch, for all who wait for it."""
        cdef Slot slot
        cdef uint64_t[3] told
        cdef bint said = status <= STATUS_MISSING
        if flight.waiters is None or self.waits(flight, status) or self.asks_another(flight, owner, status):
            return 0
        del self.asking[flight.key, flight.written]
        self.asked[flight.key].remove(flight)
        if not self.asked[flight.key]:
            del self.asked[flight.key]
        state = None
        if said:
            if PyBytes_GET_SIZE(payload) < 24:
                raise ProtocolError("an answer does not say of which epochs it is")
            memcpy(told, PyBytes_AS_STRING(payload), 24)
            payload = payload[24:]
            state = REGISTRY[kind].decode(payload) if status == STATUS_OK else None
            self.learn(flight, owner, state, told[0], told[1], told[2])
        for slot, index in flight.waiters:
            if slot.items is None:
                slot.answer = self.relay_state(slot, status, kind, payload)
            elif said:
                slot.items[index] = self.part_of(state)
            else:
                slot.failures = [[index, status, payload.decode("utf-8", "replace")]]
            self.count_down(slot, finished)
        return self.evict()

    cdef int learn(self, Flight flight, uint64_t owner, object state, uint64_t first, uint64_t last, uint64_t since) except -1:
        """Keep what an owner has answered, if it tells what comes after `since`; and what it has told of the key before this answer arrived."""
        cdef Mark mark = flight.mark
        cdef Dated dated
        cdef uint64_t[2] asked
        memcpy(asked, PyBytes_AS_STRING(flight.written), 16)
        if not since or mark is None or mark is not self.marks.get(owner) or mark.view != asked[1]:
            return 0
        self.keep_version(flight.key, mark, first, last, last == since, state)
        for first, last, said, later, marked in flight.pushed:
            dated = self.dated.get(flight.key)
            if dated is None or last <= since:
                continue
            if said:
                self.push_version(dated, first, last, later, marked)
            else:
                dated.close(marked)
                self.settle_versions(dated)
        return 0

    cdef int listen_no_more(self, Dated dated) except -1:
        # What was asked before this and is answered after it would be taken for the beginning of what is told.
        if self.marks.get(dated.mark.owner) is dated.mark and dated.name not in self.asked:
            self.send_to(dated.mark.owner, OP_SUBSCRIBE_AT, dated.name, b"")
        return 0

    # -- what owners tell

    def owner_up(self, uint64_t owner):
        self.marks[owner] = Mark(owner)
        Versions.owner_up(self, owner)
        if self.now < self.wanted_until:
            self.ask_for_marks(owner, 0)

    cdef int forget_owner(self, uint64_t owner) except -1:
        Versions.forget_owner(self, owner)
        return self.end_mark(owner)

    cdef int end_mark(self, uint64_t owner) except -1:
        """What this owner has told is not carried on: its mark stays where it is, and nothing later is known."""
        cdef Mark mark = self.marks.pop(owner, None)
        if mark is not None and mark.epoch:
            self.ended.append(mark)
        if owner in self.hearing:
            self.marks[owner] = Mark(owner)
        return 0

    cdef int want_marks(self) except -1:
        """Somebody reads at epochs: let the owners tell what this cache asks for, for a while."""
        self.wanted_until = self.now + LEASE_NS
        if self.renewed_at and self.now < self.renewed_at + LEASE_NS // 3:
            return 0
        self.renewed_at = self.now
        for owner in sorted(self.hearing):
            self.ask_for_marks(owner, 0)
        return 0

    cdef int ask_for_marks(self, uint64_t owner, uint64_t least) except -1:
        """Ask an owner for its marks, and, if it is not 0, to hurry until epoch `least` is stable."""
        self.send_to(owner, OP_SUBSCRIBE_AT, b"", _LEASE.pack(LEASE_US, least))
        return 0

    cdef int hear_push(self, uint64_t owner, int flags, int status, int kind, bytes payload, list finished) except -1:
        if flags == OP_MARK:
            return self.hear_mark(owner, payload, finished)
        if flags == OP_SUBSCRIBE_AT:
            return self.hear_version(owner, status, kind, payload)
        return self.take_push(owner, status, kind, payload) if flags == OP_PUSH else 0

    cdef int hear_version(self, uint64_t owner, int status, int kind, bytes payload) except -1:
        """An owner tells what a key holds at the end of an epoch, or that it has to be asked."""
        cdef uint16_t key_bytes
        cdef uint64_t[2] span = [0, 0]
        cdef bytes name
        cdef Dated dated
        cdef Flight flight
        cdef Mark mark = self.marks.get(owner)
        cdef Lattice state = None
        cdef bint said = status <= STATUS_MISSING
        if PyBytes_GET_SIZE(payload) < 2:
            raise ProtocolError("a push has no key")
        memcpy(&key_bytes, PyBytes_AS_STRING(payload), 2)
        name = payload[2:2 + key_bytes]
        if PyBytes_GET_SIZE(payload) < 2 + key_bytes + (16 if said else 0):
            raise ProtocolError("a push does not say of which epochs it is")
        self.pushed_at += 1
        if said:
            memcpy(span, PyBytes_AS_STRING(payload) + 2 + key_bytes, 16)
            state = REGISTRY[kind].decode(payload[18 + key_bytes:]) if status == STATUS_OK else None
        if mark is None or (PLANTED and "forget-absent" in PLANTED and said and state is None):
            return 0
        for flight in self.asked.get(name, ()):
            if flight.mark is mark:
                flight.pushed.append((span[0], span[1], said, state, mark.epoch))
        dated = self.dated.get(name)
        if dated is None or dated.mark is not mark:
            return 0
        if said:
            self.push_version(dated, span[0], span[1], state, mark.epoch)
        else:
            dated.close(mark.epoch)
            self.settle_versions(dated)
        return self.evict()

    cdef int hear_mark(self, uint64_t owner, bytes payload, list finished) except -1:
        """An owner has told all up to an epoch; epoch 0: it does not go on with what it has told."""
        cdef uint64_t[2] told
        cdef Mark mark = self.marks.get(owner)
        if PyBytes_GET_SIZE(payload) != 16:
            raise ProtocolError(f"a mark has 16 bytes, got {len(payload)}")
        memcpy(told, PyBytes_AS_STRING(payload), 16)
        self.marks_heard += 1
        if mark is None:
            return 0
        if told[0] == 0:
            self.end_mark(owner)
            if self.now < self.wanted_until:
                self.ask_for_marks(owner, 0)
            else:
                self.forget_mark(mark)
            return self.marked(finished)
        if mark.epoch and told[1] != mark.view:
            self.end_mark(owner)
            mark = self.marks[owner]
        if not mark.epoch:
            mark.first, mark.view = told[0], told[1]
        mark.epoch = max(mark.epoch, told[0])
        if mark.view != self.owners.digest and mark.view != self.looked_for:
            self.looked_for = mark.view
            self.send_to(owner, OP_VIEW, b"", b"")
        if self.marks_heard % LET_GO_MARKS == 0:
            self.let_go(mark.epoch - min(mark.epoch, RECENT_EPOCHS))
            while self.ended and (<Mark>self.ended[0]).epoch + RECENT_EPOCHS < mark.epoch:
                self.forget_mark(self.ended.pop(0))
        return self.marked(finished)

    cdef int marked(self, list finished) except -1:
        """An owner's mark has moved, or ended."""
        raise NotImplementedError

    cdef int subscribe_at(self, Connection connection, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        raise NotSupported("a node's cache takes no subscriptions; subscribe at the owner")

    def status_at(self):
        """Return the figures of reads at epochs."""
        return {"hits_at": self.hits_at, "misses_at": self.misses_at, "pushed_at": self.pushed_at, "marks_heard": self.marks_heard,
                "dated": len(self.dated), "versions": sum([len((<Dated>dated).versions) for dated in self.dated.values()]), "bytes_at": self.bytes_at}

    def check(self):
        """Assert the invariants of what is asked of owners at epochs."""
        super().check()
        under_way = {*self.flights.values(), *self.held}
        assert all(flight in under_way for flight in self.asking.values()), "reads at epochs wait for what nobody was asked for"
        assert sorted([key for key, flights in self.asked.items() for _ in flights]) == sorted([key for key, _ in self.asking])
        assert self.marks.keys() == self.hearing.keys(), "a mark is of an owner that is not connected"
