"""Transactions of a node's executors: the node's cache coordinates them, for it is the only worker that they know.

The one rule: to an executor the cache is the owner of all keys, so one PREPARE has all writes; the cache prepares them at their owners, commits them, and answers that they are
committed, at a stamp, or with the refusal. It answers neither where nobody knows: the executor asks on (FINISH), and where the cache that it asks has never heard of the attempt, that one is refused, and
the executor makes another. Of all attempts with one id, whoever makes them, one has effect; the owners see to it. So it does not matter when a cache dies.

What the owners are asked is the coordinator's part of `anna.commits`; what is written here is not taken up in the cache: owners push it. Source: DESIGN §4; docs/decisions/0028, 0029.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

cimport cython

from anna.commits cimport guard_of
from anna.kvs.clock cimport Clock
from anna.routing.hash cimport hash64
from anna.wire cimport *
from cloudburst.cache.flights cimport Flight
from cloudburst.cache.order cimport Slot
from cloudburst.cache.pins cimport Pins

import struct

import msgpack

from anna import config
from anna.commits import Commit, Verdict, Write
from anna.errors import BadKey, ProtocolError, ValueTooLarge
from anna.kvs.commits import read_head
from anna.messages import View

cdef int64_t PAUSE_NS = config.CACHE_COMMIT_PAUSE_NS
cdef int64_t PATIENCE_NS = config.CACHE_COMMIT_PATIENCE_NS
cdef int64_t TRY_NS = config.CACHE_COMMIT_NS
cdef int QUESTIONS_MAX = config.CACHE_COMMIT_QUESTIONS_MAX

_COUNT = struct.Struct("<I")
_ITEM = struct.Struct("<HBBI")
_OUTCOME = struct.Struct("<BQQ")
_STRANGE, _COMMITTED, _REFUSED = 0, 2, 3


@cython.final
cdef class Running:
    """A transaction that is not decided, and the answers that wait for it."""


cdef class CacheCommits(Pins):
    """The transactions under way: `running` by the name of the executor's attempt."""

    def __init__(self, view, owners, Clock clock, Py_ssize_t bytes_max, keeper, Py_ssize_t shared_bytes_max):
        self.running = {}
        super().__init__(view, owners, clock, bytes_max, keeper, shared_bytes_max)

    # -- what executors ask

    cdef int prepare(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Make a transaction, from its first prepare to the word that it is committed."""
        cdef bytes data = PyBytes_FromStringAndSize(payload, size)
        cdef Running running
        name, _, places, place = read_head(data)
        running = self.running.get(name)
        if running is not None:
            running.slots.append(self.park(head))
            return 0
        running = Running.__new__(Running)
        running.name = name
        running.ack = head.ack
        # The attempts that the cache makes are its own: no other coordinator draws their numbers.
        writes, guard = self.writes_of(head.flags, data, place), guard_of(name)
        guarded = any([hash == guard for hash, _ in places])
        running.commit = Commit(name[:16], writes, hash64(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)), guarded)
        running.slots = [self.park(head)]
        running.until = self.now + TRY_NS
        running.due = self.now
        self.running[name] = running
        self.transactions += 1
        self.go_on(running, [])
        return 0

    def writes_of(self, int flags, bytes data, Py_ssize_t place):
        """Return the writes of a prepare, which stand from `place` on. Raises an AnnaError for what no owner could prepare."""
        cdef bytes key
        if PyBytes_GET_SIZE(data) - place < 4:
            raise ProtocolError("a prepare does not say how many writes it has")
        (count,) = _COUNT.unpack_from(data, place)
        place += 4
        writes = {}
        for _ in range(count):
            if PyBytes_GET_SIZE(data) - place < 8:
                raise ProtocolError(f"a prepare of {count:,} writes is cut short")
            key_bytes, type, marks, state_bytes = _ITEM.unpack_from(data, place)
            place += 8 + key_bytes + state_bytes
            if place > PyBytes_GET_SIZE(data):
                raise ProtocolError(f"a prepare of {count:,} writes is cut short")
            key = data[place - state_bytes - key_bytes:place - state_bytes]
            self.check_key(PyBytes_AS_STRING(key), key_bytes, flags)
            writes[key] = Write(key, type, data[place - state_bytes:place], marks)
        if place != PyBytes_GET_SIZE(data) or len(writes) != count or not count:
            raise ProtocolError(f"a prepare of {count:,} writes has {len(writes):,} keys, and {PyBytes_GET_SIZE(data) - place} bytes too many")
        return list(writes.values())

    cdef int commit(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """The executor says what it was told: there is nothing to be done."""
        if not head.request:
            return 0
        return self.reply_text(head, STATUS_OK, _OUTCOME.pack(_STRANGE, 0, 0))

    cdef int finish(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Say what becomes of a transaction when it is known; an attempt that is not under way is none, whatever it has come to, and another will tell."""
        cdef Running running
        name, _, _, place = read_head(PyBytes_FromStringAndSize(payload, size))
        if place != size:
            raise ProtocolError(f"a question about a transaction has {size - place} bytes too many")
        running = self.running.get(name)
        if running is None:
            return self.reply_text(head, STATUS_OK, _OUTCOME.pack(_REFUSED, 0, 0))
        running.slots.append(self.park(head))
        return 0

    # -- what the owners are asked

    cdef int go_on(self, Running running, list finished) except -1:
        """Make the next attempt, or ask what became of the last one; not for ever, for whoever knew may be gone, and of two attempts one has effect."""
        commit = running.commit
        running.due, running.patient_until = 0, self.now + PATIENCE_NS
        unknown = commit.verdict is Verdict.UNKNOWN and running.questions < QUESTIONS_MAX
        running.questions = running.questions + 1 if unknown else 0
        self.tell(running, (commit.ask if unknown else commit.begin)(self.owner_id, self.first_at))
        return 0 if commit.waiting else self.conclude(running, finished)

    def owner_id(self, bytes key):
        """Return the id of the worker that is asked for `key`."""
        return self.owner_of(key)

    def first_at(self, uint64_t position):
        """Return the id of the first owner of a place on the rings; 0 for none."""
        cdef int place = self.owner_placement.owner_at(position)
        return self.owners.workers[place].worker_id if place >= 0 else 0

    cdef int tell(self, Running running, list messages) except -1:
        """Send messages to owners; who is not connected does not get his."""
        cdef Flight flight
        for worker, op, payload in messages:
            if worker in self.hearing:
                flight = self.send_to(worker, op, b"", payload, running.ack)
                flight.running = running
            elif op != OP_COMMIT:
                running.commit.missed(worker, False)
        return 0

    cdef int land_commit(self, Flight flight, uint64_t owner, int status, bytes payload, list finished) except -1:
        """An owner has answered; LOST: the stream has ended before it did."""
        cdef Running running = flight.running
        if flight.op == OP_COMMIT or owner not in running.commit.waiting or running.name not in self.running:
            return 0
        if status == STATUS_LOST:
            running.commit.missed(owner, True)
        else:
            running.commit.answered(owner, status, payload)
        if running.commit.waiting and running.commit.verdict is not Verdict.COMMITTED:
            return 0
        return self.conclude(running, finished)

    cdef int conclude(self, Running running, list finished) except -1:
        """All that was asked is answered, or enough of it."""
        commit = running.commit
        self.tell(running, commit.ending())
        if commit.verdict is Verdict.COMMITTED:
            self.clock.observe(commit.stamp)
            attempt = int.from_bytes(running.name[16:], "little")
            return self.answer_all(running, STATUS_OK, _OUTCOME.pack(_COMMITTED, commit.stamp, attempt), finished)
        if commit.verdict is Verdict.REFUSED:
            return self.answer_all(running, commit.refusal[0], commit.refusal[1].encode(), finished)
        if commit.view is not None:
            self.adopt_owners(View.from_wire(msgpack.unpackb(commit.view)))
        if self.now >= running.until:
            if commit.verdict is Verdict.UNKNOWN:
                return self.answer_all(running, STATUS_OK, _OUTCOME.pack(_STRANGE, 0, 0), finished)
            return self.answer_all(running, STATUS_STALE, b"the owners of the keys have not all prepared the transaction", finished)
        running.due = self.now + PAUSE_NS
        return 0

    cdef int answer_all(self, Running running, int status, bytes payload, list finished) except -1:
        """Answer everybody who waits for a transaction: it is under way no more."""
        cdef Slot slot
        del self.running[running.name]
        for slot in running.slots:
            slot.answer = self.relay(slot, status, payload)
            finished.append(slot.connection)
        return 0

    @property
    def holds(self):
        """Whether somebody waits for time to pass, for `retry`."""
        return bool(self.held) or bool(self.beginning) or bool(self.running)

    def retry(self, int64_t monotonic_ns):
        cdef Running running
        cdef list finished = []
        self.now = monotonic_ns
        for running in list(self.running.values()):
            if running.due and self.now >= running.due:
                self.go_on(running, finished)
            elif not running.due and self.now >= running.patient_until:
                # Who is connected and silent may have prepared it: others are asked.
                for owner in sorted(running.commit.waiting):
                    running.commit.missed(owner, True)
                self.conclude(running, finished)
        answers = self.release(finished)
        return answers + Pins.retry(self, monotonic_ns)

    def check(self):
        """Assert the invariants of the transactions under way."""
        cdef Running running
        super().check()
        for name, running in self.running.items():
            assert running.name == name and running.slots, name
            assert bool(running.due) != bool(running.commit.waiting), "a transaction waits for nobody"
