"""Reads at an epoch through a node's cache: what its sessions read.

The one rule: an answer at (epoch, view) is what an owner of the key answers there, or an error; never a newer state, never a guess. What an owner does not know to
be stable yet is asked again shortly; what is not told apart any more is `SnapshotExpired`, and the session begins again. A session begins at the least stable
epoch of the owners that this cache is connected with, and only where they name the same view: each of them can answer there. Source: DESIGN §4; docs/decisions/0027.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from anna.kvs.clock cimport Clock
from anna.wire cimport *
from cloudburst.cache.flights cimport Flight
from cloudburst.cache.kept cimport Kept
from cloudburst.cache.order cimport Slot, read_keys

import struct

from anna import config
from anna.errors import NoWorkers, ProtocolError

cdef int TRIES_MAX = config.EPOCH_TRIES_MAX

_PIN = struct.Struct("<QQQQ")


cdef class CacheEpochs(Kept):
    """The operations at an epoch."""

    def __init__(self, view, owners, Clock clock, Py_ssize_t bytes_max, keeper, Py_ssize_t shared_bytes_max):
        self.asking = {}
        super().__init__(view, owners, clock, bytes_max, keeper, shared_bytes_max)

    cdef int get_at(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        """Answer with the state of one key at the end of an epoch. The payload is u64 epoch, u64 view."""
        cdef Slot slot
        self.check_key(key, head.key_bytes, head.flags)
        if size != 16:
            raise ProtocolError(f"a read at an epoch names it in 16 bytes, got {size}")
        slot = self.park(head)
        slot.missing = 1
        return self.want_at(PyBytes_FromStringAndSize(key, head.key_bytes), PyBytes_FromStringAndSize(payload, 16), slot, 0)

    cdef int multi_get_at(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Answer with the states of many keys at the end of an epoch. The payload is u64 epoch, u64 view, then a multi-get's."""
        cdef bytes name, epoch
        cdef Slot slot
        if size < 16:
            raise ProtocolError(f"a read at an epoch names it in 16 bytes, got {size}")
        names = read_keys(payload + 16, size - 16)
        for name in names:
            self.check_key(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), head.flags)
        if not names:
            (<uint32_t*>self.reply(head, STATUS_OK, 0, 4))[0] = 0
            return 0
        epoch = PyBytes_FromStringAndSize(payload, 16)
        slot = self.park(head)
        slot.items = [None] * len(names)
        slot.missing = len(names)
        for index, name in enumerate(names):
            self.want_at(name, epoch, slot, index)
        return 0

    cdef int want_at(self, bytes name, bytes epoch, Slot slot, Py_ssize_t index) except -1:
        """Let `slot` wait for what an owner says of `name` at an epoch, which it is asked unless it has been already."""
        cdef Flight flight = self.asking.get((name, epoch))
        self.misses_at += 1
        if flight is None:
            flight = self.asking[name, epoch] = self.send(OP_GET_AT, 0, FLAG_SYSTEM, name, epoch)
            flight.waiters = []
        flight.waiters.append((slot, index))
        return 0

    cdef int arrive_at(self, Flight flight, int status, int kind, bytes payload, list finished) except -1:
        """An owner's word on a key at an epoch, for all who wait for it."""
        cdef Slot slot
        cdef ReplyItem item
        if self.waits(flight, status):
            return 0
        del self.asking[flight.key, flight.written]
        item = ReplyItem(status, kind, 0, <uint32_t>PyBytes_GET_SIZE(payload))
        for slot, index in flight.waiters:
            if slot.items is None:
                slot.answer = self.relay_state(slot, status, kind, payload)
            elif status <= STATUS_MISSING:
                slot.items[index] = PyBytes_FromStringAndSize(<char*>&item, ITEM_HEADER_BYTES) + payload
            else:
                slot.failures = [[index, status, payload.decode("utf-8", "replace")]]
            self.count_down(slot, finished)
        return 0

    cdef bint waits(self, Flight flight, int status) except -1:
        """Whether an owner does not know yet that the epoch is stable, and is to be asked again."""
        if status != STATUS_STALE or flight.tries >= TRIES_MAX:
            return False
        flight.tries += 1
        self.held.append(flight)
        return True

    cdef int pin(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Answer as an owner does, for all owners that this cache is connected with: what each of them can read."""
        cdef Slot slot
        cdef Flight flight
        if size != 16 and size != 24:
            raise ProtocolError(f"a pin has 16 or 24 bytes, got {size}")
        if not self.hearing:
            raise NoWorkers("this node's cache is connected with no worker now")
        slot = self.park(head)
        slot.items = [None] * len(self.hearing)
        slot.missing = len(self.hearing)
        for index, owner in enumerate(sorted(self.hearing)):
            flight = self.send_to(owner, OP_PIN, PyBytes_FromStringAndSize(payload, size))
            flight.slot = slot
            flight.index = index
        return 0

    cdef int arrive_pin(self, Flight flight, int status, bytes payload, list finished) except -1:
        """One owner has pinned, or has not."""
        cdef Slot slot = flight.slot
        if flight.owner in self.hearing and self.waits(flight, status):
            return 0
        if status == STATUS_OK:
            slot.items[flight.index] = payload
        elif slot.failures is None:
            slot.failures = [[flight.index, status, payload.decode("utf-8", "replace")]]
        return self.count_down(slot, finished)

    cdef object whole(self, Slot slot):
        return self.answer_pin(slot) if slot.head.op == OP_PIN else Kept.whole(self, slot)

    cdef object answer_pin(self, Slot slot):
        """Return what all owners have pinned: the least of their stable epochs, and its view if each of them can read it; the first failure stands for all."""
        if slot.failures:
            return self.relay(slot, slot.failures[0][1], slot.failures[0][2].encode())
        told = [_PIN.unpack(payload) for payload in slot.items]
        stable, oldest = min([entry[0] for entry in told]), max([entry[2] for entry in told])
        views = {entry[1] for entry in told}
        view = views.pop() if len(views) == 1 and stable >= oldest else 0
        return self.relay(slot, STATUS_OK, _PIN.pack(stable, view, oldest, max([entry[3] for entry in told])))

    def check(self):
        """Assert the invariants of what is asked of owners at epochs."""
        super().check()
        under_way = {*self.flights.values(), *self.held}
        assert all(flight in under_way for flight in self.asking.values()), "reads at epochs wait for what nobody was asked for"
