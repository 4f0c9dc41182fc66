"""At which epoch a session of this node begins, and how it keeps it.

The one rule: a session begins at the least mark of the owners, and only where all of them name one view: there everything that it may read of is known to be stable by whoever will be asked,
and what is here is complete. Who has seen a later epoch names it, and waits until the marks have come so far. An epoch that a session will read for long is
pinned at every owner that was there; the first refusal of one of those stands for all. Source: DESIGN §4 (caches); docs/decisions/0029.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from anna.kvs.clock cimport Clock
from anna.wire cimport *
from cloudburst.cache.epochs cimport CacheEpochs
from cloudburst.cache.flights cimport Flight
from cloudburst.cache.order cimport Slot
from cloudburst.cache.versions cimport Mark

import struct

from anna import config
from anna.errors import NoWorkers, Overloaded, ProtocolError
from anna.kvs.ages import Ages

cdef int64_t WAIT_NS = config.CACHE_EPOCH_WAIT_NS
cdef int64_t EPOCH_NS = config.EPOCH_US * 1000
cdef uint64_t LEASE_US = config.EPOCH_LEASE_US_MAX
cdef Py_ssize_t PINS_MAX = config.PINS_MAX

_PIN = struct.Struct("<QQQQ")


cdef class Pins(CacheEpochs):
    """The beginnings of sessions, and the epochs that they pin."""

    def __init__(self, view, owners, Clock clock, Py_ssize_t bytes_max, keeper, Py_ssize_t shared_bytes_max):
        self.beginning = []
        self.ages = Ages()
        super().__init__(view, owners, clock, bytes_max, keeper, shared_bytes_max)

    cdef int pin(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Answer with the newest epoch at which a session can begin here, or pin one that it has; u64 an epoch that must be stable may follow."""
        cdef uint64_t[3] asked = [0, 0, 0]
        if size != 16 and size != 24:
            raise ProtocolError(f"a pin has 16 or 24 bytes, got {size}")
        memcpy(asked, payload, size)
        if not self.hearing:
            raise NoWorkers("this node's cache is connected with no worker now")
        self.want_marks()
        if asked[0]:
            if asked[0] not in self.pinned and len(self.pinned) >= PINS_MAX:
                raise Overloaded(f"{len(self.pinned):,} epochs are pinned through this node's cache; pins_max is {PINS_MAX:,}")
            self.give(asked[0])
            return self.pin_at_owners(head, PyBytes_FromStringAndSize(payload, 16))
        if self.begins_at and self.begins_at >= asked[2]:
            return self.begin(head)
        self.hurry(asked[2])
        self.beginning.append((self.park(head), asked[2], self.now + WAIT_NS))
        return 0

    cdef int begin(self, RequestHeader* head) except -1:
        """Answer with the epoch at which a session begins now."""
        cdef uint64_t runs = self.clock.epoch()
        cdef uint64_t* place = <uint64_t*>self.reply(head, STATUS_OK, 0, 32)
        place[0], place[1], place[2], place[3] = self.begins_at, self.begins_under, self.begins_at, max(runs, self.begins_at + 1)
        self.give(self.begins_at)
        self.sessions += 1
        # While nothing moves nobody writes, and an old epoch lacks nothing.
        self.ages.note(max(runs, self.begins_at) - self.begins_at, self.now < self.moved_at + 3 * EPOCH_NS)
        return 0

    cdef int look_for_beginning(self) except -1:
        """See at which epoch a session can begin by now."""
        cdef uint64_t least = 0, first = 0, view = 0
        cdef Mark mark
        self.begins_at = self.begins_under = 0
        for worker in self.owners.workers:
            mark = self.marks.get(worker.worker_id)
            if mark is None:
                continue  # not connected: its keys are read at other owners, or wait for it
            if not mark.epoch or (view and mark.view != view):
                return 0
            view, first = mark.view, max(first, mark.first)
            least = mark.epoch if not least else min(least, mark.epoch)
        if least and least >= first:
            self.begins_at, self.begins_under = least, view
        return 0

    cdef int marked(self, list finished) except -1:
        cdef uint64_t before = self.begins_at
        self.look_for_beginning()
        if self.begins_at > before:
            self.moved_at = self.now
        if self.beginning and self.begins_at:
            self.serve(finished)
        return 0

    def serve(self, list finished):
        """Answer those who wait for an epoch that has come, and those who have waited too long."""
        cdef Slot slot
        left = []
        for slot, least, until in self.beginning:
            if self.begins_at and self.begins_at >= least:
                self.begin(&slot.head)
                slot.answer = self.take()
            elif until < self.now:
                slot.answer = self.relay(slot, STATUS_STALE, b"the owners do not agree on an epoch at which a session can begin yet")
            else:
                left.append((slot, least, until))
                continue
            finished.append(slot.connection)
        self.beginning = left

    cdef int hurry(self, uint64_t least) except -1:
        """Let the owners close their epochs, for somebody waits; not more often than epochs end."""
        if self.now < self.hurried_at + EPOCH_NS and least <= self.hurried_for:
            return 0
        self.hurried_at, self.hurried_for = self.now, least
        for owner in sorted(self.hearing):
            self.ask_for_marks(owner, least)
        return 0

    @property
    def holds(self):
        """Whether somebody waits for time to pass, for `retry`."""
        return bool(self.held) or bool(self.beginning)

    def retry(self, int64_t monotonic_ns):
        cdef list finished = []
        self.now = monotonic_ns
        if self.beginning:
            self.serve(finished)
            if self.beginning:
                self.hurry(max([entry[1] for entry in self.beginning]))
        answers = self.release(finished)
        return answers + CacheEpochs.retry(self, monotonic_ns)

    def owner_up(self, uint64_t owner):
        CacheEpochs.owner_up(self, owner)
        self.look_for_beginning()

    def owner_down(self, uint64_t owner):
        answers = CacheEpochs.owner_down(self, owner)
        self.look_for_beginning()
        return answers

    def adopt_owners(self, view):
        CacheEpochs.adopt_owners(self, view)
        self.look_for_beginning()

    # -- epochs that are kept for long

    cdef int pin_at_owners(self, RequestHeader* head, bytes payload) except -1:
        """Pin an epoch at all owners that this cache is connected with."""
        cdef Slot slot = self.park(head)
        cdef Flight flight
        slot.key = payload
        slot.items = [None] * len(self.hearing)
        slot.missing = len(self.hearing)
        for index, owner in enumerate(sorted(self.hearing)):
            flight = self.send_to(owner, OP_PIN, b"", payload)
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
        elif status == STATUS_EXPIRED and self.is_new_since(flight.owner, flight.written):
            slot.items[flight.index] = b""
        elif slot.failures is None:
            slot.failures = [[flight.index, status, payload.decode("utf-8", "replace")]]
        return self.count_down(slot, finished)

    cdef bint is_new_since(self, uint64_t owner, bytes asked) except -1:
        """Whether an owner has begun after the epoch that it was asked to pin: its keys of then are read at others."""
        cdef Mark mark = self.marks.get(owner)
        cdef uint64_t epoch
        memcpy(&epoch, PyBytes_AS_STRING(asked), 8)
        return mark is None or mark.first > epoch or not mark.epoch

    cdef object whole(self, Slot slot):
        return self.answer_pin(slot) if slot.head.op == OP_PIN else CacheEpochs.whole(self, slot)

    cdef object answer_pin(self, Slot slot):
        """Return what all owners have pinned: the least of their stable epochs, and its view if each of them can read it; the first failure stands for all."""
        cdef uint64_t[2] asked
        if slot.failures:
            return self.relay(slot, slot.failures[0][1], slot.failures[0][2].encode())
        told = [_PIN.unpack(payload) for payload in slot.items if payload]
        if not told:
            return self.relay(slot, STATUS_EXPIRED, b"no owner that is connected knows this epoch")
        memcpy(asked, PyBytes_AS_STRING(slot.key), 16)
        self.give(asked[0])
        self.pinned[asked[0]] = max(self.pinned.get(asked[0], 0), self.now + <int64_t>min(asked[1], LEASE_US) * 1000)
        stable, oldest = min([entry[0] for entry in told]), max([entry[2] for entry in told])
        views = {entry[1] for entry in told}
        view = views.pop() if len(views) == 1 and stable >= oldest else 0
        return self.relay(slot, STATUS_OK, _PIN.pack(stable, view, oldest, max([entry[3] for entry in told])))

    def status_of_sessions(self):
        """Return the figures of the sessions that began here: how many, and how old their epochs were, in epochs."""
        return {"sessions": self.sessions, "session_age_p50": self.ages.percentile(50), "session_age_p99": self.ages.percentile(99),
                "pins": len(self.pinned)}

    def check(self):
        """Assert the invariants of who waits for an epoch."""
        super().check()
        at, under = self.begins_at, self.begins_under
        self.look_for_beginning()
        assert (at, under) == (self.begins_at, self.begins_under), "S4: sessions begin at another epoch than the marks say"
