"""Transactions at their owners: what is prepared here and not decided, and how its owners find out what becomes of it.

The one rule: what is prepared is nobody's to read, and holds open the epoch of its proposal at everybody who has it; it ends as all other
owners' parts of the same attempt do: committed at the greatest proposal, or dropped. So the epoch of the commit is open wherever the
transaction is to be joined, and who reads at an epoch finds all of it or nothing. (docs/decisions/0028 says why, and names what is checked here.)

An owner that was asked proposes a stamp, and sends what it holds to the key's other owners (a *record*). Whoever has a record and hears nothing
for a second asks: the worker that was to prepare each other part or, when the view does not name it any more, all owners that the key has now.
Who was to prepare and has not refuses from then on. If all have, it is committed; if one refuses, it is dropped. When all owners of a part that are
left know nothing of it, those who have it are gone, or on the other side of a partition: it is set aside, holds nothing open any more, and is
committed late if they come back with it.

Of all attempts at one transaction that several coordinators may try, one is committed: each has a part at the *guard*, the first owner of the
place where the id's hash stands, and a guard prepares no other attempt beside one that is not decided, or was committed (I4; docs/decisions/0031). Bodies of links:

    8 prepared   a record (`anna.kvs.records`)
    9 outcome    for each attempt: 24 bytes name | u64 stamp; 0: dropped
    10 question  u64 digest of the view | 24 bytes name | u32 count | for each u64 hash, u64 worker
    11 answer    u64 digest of the view | 24 bytes name | u8 state | u64 stamp | u32 count | for each u64 hash, u64 proposal

Of a part that the answerer does not have the proposal is 0 if it will not have it under that view, else 2⁶⁴ − 1.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint64_t

from anna.buffer cimport Buffer
from anna.commits cimport guard_of
from anna.kvs.cells cimport CELL_DROPPED, CellReader, append_cell, append_register
from anna.kvs.clock cimport COUNTER_BITS, Clock, epoch_of
from anna.kvs.endings cimport Endings
from anna.kvs.records cimport PART_DELETES, Part, Record, decode_record, encode_record
from anna.kvs.store cimport Store
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64
from anna.routing.placement cimport SPAN_ROOM

import struct

from anna import config
from anna.errors import ProtocolError
from anna.kvs.faults import PLANTED
from anna.kvs.records import read_places

BODY_PREPARED, BODY_OUTCOME, BODY_QUESTION, BODY_ANSWER = 8, 9, 10, 11
STRANGE, PREPARED, COMMITTED, REFUSED = 0, 1, 2, 3

LOG_PREFIX = b"\0prepared/"
"""What a log and a checkpoint name a transaction by: this, then its name. No key of anybody's begins so."""

cdef enum:
    NAME_BYTES = 24
    # How many outcomes one message tells at most.
    ENDED_AT_ONCE = 1000

cdef int64_t SILENT_NS = config.TRANSACTION_SILENT_US * 1000
cdef uint64_t DOUBT_US = config.TRANSACTION_DOUBT_US
cdef uint64_t KEPT_US = config.TRANSACTION_KEPT_US
cdef Py_ssize_t KEPT_MAX = config.TRANSACTIONS_KEPT_MAX
# How often the others are asked about what is set aside.
cdef int64_t DOUBTFUL_NS = 10 * SILENT_NS
cdef uint64_t BUSY_EPOCHS = config.BUSY_EPOCHS
# The proposal of a part of which nothing can be said yet.
cdef uint64_t NOT_YET = 0xFFFFFFFFFFFFFFFF
cdef uint64_t EVER = 0xFFFFFFFFFFFFFFFF

_NAME = struct.Struct("<16sQ")
_OUTCOME = struct.Struct("<B24sQ")
_ENDED = struct.Struct("<24sQ")
_QUESTION = struct.Struct("<BQ24s")
_ANSWER = struct.Struct("<BQ24sBQI")
_PLACE = struct.Struct("<QQ")
_COUNT = struct.Struct("<I")
_STAMP = struct.Struct("<Q")


cdef class Transactions(Endings):
    """What is prepared at one worker, and what it knows of what was decided."""

    def __init__(self, uint64_t mine, Store store, Clock clock):
        super().__init__(mine, store, clock)
        self.prepared = {}
        self.attempts = {}
        self.doubtful = {}
        self.committed = {}
        self.refused = {}

    # -- what is held

    cdef bint keeps_pieces(self) noexcept:
        """What is prepared may delete a key at a stamp that is earlier than what is written to it until then."""
        return self.sharing or self.comparing or self.mourning or len(self.prepared) > 0

    cdef int prepare(self, bytes name, tuple places, list parts) except -1:
        """A coordinator has asked this worker for parts of a transaction: hold them, and let the keys' other owners hold them too."""
        cdef Record record = Record(name, places)
        cdef Part part
        for part in parts:
            record.add(part)
        self.hold(record)
        return self.spread(record, None)

    cdef int hold(self, Record record) except -1:
        """Hold what a record says, beside what is held of the same attempt already."""
        cdef Record held = self.prepared.get(record.name)
        cdef Record doubtful = self.doubtful.pop(record.name, None)
        cdef Part part
        if doubtful is not None:
            # One who was gone is back with its parts.
            self.prepared_bytes -= doubtful.size_bytes
            for part in doubtful.parts.values():
                record.add(part)
        if held is None:
            held = self.prepared[record.name] = record
            self.attempts.setdefault(record.name[:16], []).append(record.name)
        else:
            self.prepared_bytes -= held.size_bytes
            for part in record.parts.values():
                held.add(part)
        self.prepared_bytes += held.size_bytes
        held.due = self.clock.monotonic_ns + SILENT_NS
        self.busy_until = max(self.busy_until, self.epoch + BUSY_EPOCHS)
        if self.log is not None:
            self.log_record(held.name, b"P" + encode_record(held, list(held.parts)))
        return 0

    cdef uint64_t first_prepared(self) except 0:
        """Return the first epoch that is held open here: no closing may reach it (what is committed later may still belong to it)."""
        cdef uint64_t first = EVER
        cdef Record record
        if "prepared-ignored" in PLANTED:
            return EVER
        for record in self.prepared.values():
            first = min(first, epoch_of(record.first))
        return first

    cdef int spread(self, Record record, only) except -1:
        """Send a record to the other owners of its keys: to the peer `only`, or to all. Each gets the parts that it is to have."""
        cdef Part part
        if not self.sharing:
            return 0
        wanted = {}
        for part in record.parts.values():
            for peer in self.peers_at(part.hash):
                if only is None or peer == only:
                    wanted.setdefault(peer, []).append(part.hash)
        for peer, hashes in wanted.items():
            self.send_body(peer, bytes([BODY_PREPARED]) + encode_record(record, hashes), epoch_of(record.first))
        return 0

    def spread_all(self, only=None):
        """The view is another, or a link was begun anew: what is held here is to be wherever it should be, before this worker says that all else is."""
        cdef Record record
        for record in self.prepared.values():
            record.absent.clear()
            self.spread(record, only)
            if any([worker != self.mine and worker not in self.links for _, worker in record.places]):
                record.due = 0
        for record in self.doubtful.values():
            record.absent.clear()
            record.due = 0
        if self.committed:
            self.spread_committed(only)

    cdef int spread_committed(self, only) except -1:
        """Tell what was committed of late to who decides from now on between attempts at it: to the peer `only`, or to those that did not before."""
        cdef dict told = {}
        cdef tuple former = () if self.former is None else tuple([worker.worker_id for worker in self.former_view.workers])
        cdef int owners[SPAN_ROOM]
        cdef int count
        cdef uint64_t guard
        for transaction, (attempt, stamp, _) in self.committed.items():
            guard = guard_of(transaction)
            peers = self.peers_at(guard)
            if only is None and former:
                count = self.former.span_at(guard, owners)
                before = {former[owners[index]] for index in range(count)}
                peers = [peer for peer in peers if peer not in before]
            for peer in peers:
                if only is None or peer == only:
                    told.setdefault(peer, []).append(_ENDED.pack(_NAME.pack(transaction, attempt), stamp))
        for peer, ended in told.items():
            for begin in range(0, len(ended), ENDED_AT_ONCE):
                self.send_body(peer, bytes([BODY_OUTCOME]) + b"".join(ended[begin:begin + ENDED_AT_ONCE]), self.epoch)
        return 0

    def peers_at(self, uint64_t hash):
        """Return the ids of the other workers that a write to a key with this hash goes to."""
        cdef int owners[SPAN_ROOM]
        cdef int count = self.placement.span_at(hash, owners)
        return tuple([self.ids[owners[index]] for index in range(count) if owners[index] != self.place])

    cdef int send_body(self, peer, bytes body, uint64_t epoch) except -1:
        """Send a body; until it is confirmed, `epoch` is not closed here, and no answer counts the peer as one that has it."""
        self.pending[peer].append((self.changes.round - 1, min(epoch, self.epoch), self.links[peer].send(body)))
        self.confirmed[peer] = self.pending[peer][0][0] - 1
        return 0

    # -- how it ends

    cdef int finish(self, bytes name, uint64_t stamp, bint decided) except -1:
        """An attempt is committed at `stamp`, or (0) never will be; `decided`: that was found here, so all others are told.

        Otherwise they know, but for the other owners of the keys that this worker was asked to prepare.
        """
        cdef Record record = self.let_go(name)
        self.remember(name, stamp)
        if record is None:
            return self.drop_others(name) if stamp else 0
        self.finished_here += decided
        if stamp:
            self.apply(record, stamp)
        peers = {}
        for hash, worker in record.places:
            if decided and worker in self.links:
                peers[worker] = None
            if (decided or worker == self.mine) and self.sharing:
                peers.update(dict.fromkeys(self.peers_at(hash)))
        for peer in peers:
            self.send_body(peer, _OUTCOME.pack(BODY_OUTCOME, name, stamp), epoch_of(record.first))
        self.busy_until = max(self.busy_until, self.epoch + BUSY_EPOCHS)
        return self.drop_others(name) if stamp else 0

    cdef int drop_others(self, bytes name) except -1:
        """An attempt is committed: no other one at its transaction ever will be, for their guard does not prepare it."""
        for other in list(self.attempts.get(name[:16], ())):
            if other != name:
                self.finish(other, 0, False)
        return 0

    cdef Record let_go(self, bytes name):
        """Hold an attempt no more; return what was held, None for nothing."""
        cdef Record record = self.prepared.pop(name, None)
        if record is None:
            record = self.doubtful.pop(name, None)
        else:
            self.attempts[name[:16]].remove(name)
            if not self.attempts[name[:16]]:
                del self.attempts[name[:16]]
        if record is not None:
            self.prepared_bytes -= record.size_bytes
        return record

    cdef int set_aside(self, Record record) except -1:
        """Nobody who is left has a part of what is prepared here: hold its epoch open no more, and wait for those who had it, for a while."""
        if record.name in self.doubtful:
            return 0
        record.lost_us = self.clock.physical_us
        self.let_go(record.name)
        self.doubtful[record.name] = record
        self.prepared_bytes += record.size_bytes
        self.doubts += 1
        return 0

    cdef int apply(self, Record record, uint64_t stamp) except -1:
        """Join what a record holds, as written at `stamp`: the same at every worker that holds it, so nobody sends it to anybody."""
        cdef Buffer cells = Buffer()
        cdef Part part
        cdef Lattice state
        cdef uint64_t writer = writer_of(record.name)
        if "own-proposal" in PLANTED:
            stamp = record.is_of(self.mine) or stamp
        cdef uint64_t epoch = epoch_of(stamp)
        self.clock.follow(stamp)
        if epoch <= self.stable:
            # A partition is over: what keys held meanwhile was another thing here than there.
            epoch = self.epoch
            self.forget_pasts(record, epoch)
        cdef uint64_t reset, expires
        for part in record.parts.values():
            if not part.key or not self.keeps(part.key):
                continue
            state = None if part.state is None else part.state.assign(None, stamp, writer)
            # What a write that deletes has written itself is later than its delete.
            reset = 0 if not part.flags & PART_DELETES else stamp if state is None else stamp - 1
            expires = (stamp >> COUNTER_BITS) + part.lives_us if part.lives_us else 0
            append_cell(cells, part.key, state, reset, 0 if state is None or type(state) is LWW else stamp, 0, expires)
        self.take_cells(PyBytes_FromStringAndSize(cells.data, cells.size), 0, epoch)
        return 0

    cdef int forget_pasts(self, Record record, uint64_t epoch) except -1:
        """What the keys of a record held before the end of `epoch` is not known any more."""
        cdef Part part
        if self.snapshot is not None:
            self.snapshot.spoil()
        for part in record.parts.values() if self.history is not None else ():
            if part.key:
                self.history.blur(part.key, epoch)
        return 0

    cdef int remember(self, bytes name, uint64_t stamp) except -1:
        """Know from now on what became of an attempt, for those who ask or try again."""
        cdef uint64_t now = self.clock.physical_us
        transaction, attempt = _NAME.unpack(name)
        if stamp:
            self.conflicts += name in self.refused
            if transaction not in self.committed:
                self.commits += 1
                self.committed[transaction] = (attempt, stamp, now)
                self.log_record(name, b"C" + _STAMP.pack(stamp))
            return 0
        known = self.committed.get(transaction)
        if known is not None and known[0] == attempt:
            self.conflicts += 1
            return 0
        if "refusals-forgotten" not in PLANTED:
            self.refused[name] = now
        return self.log_record(name, b"")

    def state_of(self, bytes name):
        """Return (state, stamp, attempt) of what is known here of an attempt; that of another attempt which was committed, if one was."""
        cdef Record record = self.record_of(name)
        known = self.committed.get(name[:16])
        if known is not None:
            return COMMITTED, known[1], known[0]
        if name in self.refused:
            return REFUSED, 0, 0
        return (STRANGE, 0, 0) if record is None else (PREPARED, record.is_of(self.mine), 0)

    cdef Record record_of(self, bytes name):
        """Return what is held of an attempt, None for nothing."""
        cdef Record record = self.prepared.get(name)
        return self.doubtful.get(name) if record is None and self.doubtful else record

    # -- how its owners find out

    def look_after(self):
        """Ask about what nobody has spoken of for long; forget what was decided long ago."""
        cdef Record record
        now = self.clock.monotonic_ns
        for record in [*self.prepared.values(), *self.doubtful.values()] if self.doubtful else list(self.prepared.values()):
            if now >= record.due and self.record_of(record.name) is record:
                self.inquire(record)
                if record.name in self.doubtful:
                    # A new view is asked at once, and again until this worker has what it should have, and may decide.
                    record.due = now + (DOUBTFUL_NS if self.complete else SILENT_NS)
        if self.doubtful:
            self.drop_doubtful(self.clock.physical_us)
        if self.committed or self.refused:
            self.forget_decided(self.clock.physical_us)
        if self.prepared:
            self.hurry()

    def drop_doubtful(self, uint64_t now):
        """Give up what nobody has come back with, or what was committed by another attempt."""
        cdef Record record
        for record in list(self.doubtful.values()):
            if record.name[:16] in self.committed or now >= record.lost_us + DOUBT_US:
                self.finish(record.name, 0, False)

    def forget_decided(self, uint64_t now):
        """Forget the oldest of what was decided: nobody can be in doubt of it, for its epoch is stable, and nobody tries it again so late."""
        while self.committed:
            transaction, (attempt, stamp, when) = next(iter(self.committed.items()))
            if epoch_of(stamp) > self.stable or (now < when + KEPT_US and len(self.committed) <= KEPT_MAX):
                break
            del self.committed[transaction]
            self.log_record(_NAME.pack(transaction, attempt), b"")
        while self.refused:
            name, when = next(iter(self.refused.items()))
            if now < <uint64_t>when + KEPT_US:
                break
            del self.refused[name]

    cdef int inquire(self, Record record) except -1:
        """Ask all others of a transaction what became of it, or whether they have prepared what they were to."""
        record.due = self.clock.monotonic_ns + SILENT_NS
        questions = {}
        for hash, worker in record.places:
            for peer in (worker,) if worker in self.links else self.peers_at(hash) if worker != self.mine else ():
                questions.setdefault(peer, []).append((hash, worker))
        for peer, places in questions.items():
            parts = [_QUESTION.pack(BODY_QUESTION, self.view.digest, record.name), _COUNT.pack(len(places))]
            self.send_body(peer, b"".join(parts + [_PLACE.pack(*place) for place in places]), self.epoch)
        return self.judge(record)

    def take_question(self, sender, bytes body):
        """Say what is known here; who was to prepare a part and has not refuses it from now on."""
        cdef Record record
        cdef Part part
        if len(body) < _QUESTION.size:
            raise ProtocolError("a question about a transaction is cut short")
        _, digest, name = _QUESTION.unpack_from(body)
        places, _ = read_places(body, _QUESTION.size)
        record = self.record_of(name)
        state, stamp, attempt = self.state_of(name)
        if state == COMMITTED and attempt != _NAME.unpack(name)[1]:
            state, stamp = REFUSED, 0
        if state in (STRANGE, PREPARED):
            missing = [hash for hash, worker in places if worker == self.mine]
            if record is not None:
                missing = [hash for hash in missing if hash not in record.parts]
            if missing:
                self.finish(name, 0, False)
                state = REFUSED
            else:
                state = PREPARED
        told = []
        # All that was prepared under the views before is here by the time that all else is (see `spread_all`).
        settled = digest == self.view.digest and self.complete
        for hash, _ in places if state == PREPARED else ():
            part = None if record is None else record.parts.get(hash)
            told.append(_PLACE.pack(hash, part.proposal if part is not None else 0 if settled else NOT_YET))
        answer = _ANSWER.pack(BODY_ANSWER, self.view.digest, name, state, stamp, len(told))
        self.send_body(sender, answer + b"".join(told), self.epoch)

    def take_answer(self, sender, bytes body):
        """Learn what another owner knows."""
        cdef Record record
        if len(body) < _ANSWER.size:
            raise ProtocolError("an answer about a transaction is cut short")
        _, digest, name, state, stamp, count = _ANSWER.unpack_from(body)
        record = self.record_of(name)
        if record is None:
            return
        if state in (COMMITTED, REFUSED):
            self.finish(name, stamp, True)
            return
        if len(body) != _ANSWER.size + _PLACE.size * count:
            raise ProtocolError("an answer about a transaction is cut short")
        for hash, proposal in _PLACE.iter_unpack(body[_ANSWER.size:]):
            if proposal == NOT_YET:
                continue
            if proposal:
                record.known[hash] = max(proposal, record.known.get(hash, 0))
            elif digest == self.view.digest:
                record.absent.setdefault(hash, set()).add(sender)
        self.judge(record)

    cdef int judge(self, Record record) except -1:
        """End a transaction if what is known says how."""
        cdef uint64_t last = record.last
        cdef bint open = False
        cdef bint lost = False
        known = self.committed.get(record.name[:16])
        if known is not None and known[0] != _NAME.unpack(record.name)[1]:
            return self.finish(record.name, 0, True)
        for hash, worker in record.places:
            if hash in record.parts:
                continue
            if hash in record.known:
                last = max(last, <uint64_t>record.known[hash])
            elif worker == self.mine:
                return self.finish(record.name, 0, True)
            elif worker not in self.links and self.is_lost(record, hash):
                lost = True
            else:
                open = True
        if open:
            return 0
        if not lost and not self.complete:
            return 0  # another attempt may have been committed while this worker was cut off: it hears of that before it is complete
        return self.set_aside(record) if lost else self.finish(record.name, last, True)

    cdef bint is_lost(self, Record record, uint64_t hash) except -1:
        """Whether nobody has a part any more: who prepared it is gone, and all owners of the key that are left know nothing of it."""
        cdef int owners[SPAN_ROOM]
        cdef int count = self.placement.span_at(hash, owners)
        cdef int index
        absent = record.absent.get(hash, ())
        for index in range(count):
            if owners[index] == self.place:
                if not self.complete:
                    return False
            elif self.ids[owners[index]] not in absent:
                return False
        return count > 0

    # -- what the others say

    def take_prepared(self, sender, bytes body):
        """Another owner of keys has prepared a transaction: hold it too."""
        cdef Record record = decode_record(body, 1)
        cdef Record held
        transaction, attempt = _NAME.unpack(record.name)
        known = self.committed.get(transaction)
        if known is not None and known[0] == attempt:
            self.apply(record, known[1])
            return
        if known is not None or record.name in self.refused:
            self.send_body(sender, _OUTCOME.pack(BODY_OUTCOME, record.name, 0), self.epoch)
            return
        self.hold(record)

    def take_outcome(self, bytes body):
        """Another worker says what became of attempts."""
        if (len(body) - 1) % _ENDED.size:
            raise ProtocolError(f"an outcome has {_ENDED.size} bytes; {len(body) - 1} are no outcomes")
        for name, stamp in _ENDED.iter_unpack(body[1:]):
            self.finish(name, stamp, False)

    # -- the log

    cdef int log_record(self, bytes name, bytes payload) except -1:
        """Let the log have what is known of an attempt; nothing: forget it."""
        if self.log is None:
            return 0
        self.log.note_record(LOG_PREFIX + name, payload)
        if not payload and self.store.forgotten is not None:
            self.store.forgotten.append(LOG_PREFIX + name)
        return 0

    def logged_transactions(self):
        """Yield (name in the log, cell) of all that a restart has to know of transactions."""
        cdef Record record
        for record in [*self.prepared.values(), *self.doubtful.values()]:
            yield LOG_PREFIX + record.name, record_cell(record.name, b"P" + encode_record(record, list(record.parts)))
        for transaction, (attempt, stamp, _) in list(self.committed.items()):
            name = _NAME.pack(transaction, attempt)
            if transaction in self.committed:
                yield LOG_PREFIX + name, record_cell(name, b"C" + _STAMP.pack(stamp))

    cdef bint recovers(self, CellReader reader) except -1:
        """Take a cell of the log that is a transaction's and no key's; False for any other."""
        cdef bytes key = reader.key[:reader.head.key_bytes]
        cdef Record record
        if not key.startswith(LOG_PREFIX) or len(key) != len(LOG_PREFIX) + NAME_BYTES:
            return False
        name = key[len(LOG_PREFIX):]
        payload = (<LWW>LWW.decode(reader.payload[:reader.head.payload_bytes])).payload if reader.head.type else b""
        self.let_go(name)
        if payload[:1] == b"P":
            record = decode_record(payload, 1)
            self.clock.follow(record.last)
            if name[:16] not in self.committed:
                self.hold(record)
                record.due = 0
        elif payload[:1] == b"C":
            (stamp,) = _STAMP.unpack(payload[1:])
            transaction, attempt = _NAME.unpack(name)
            self.clock.follow(stamp)
            self.committed[transaction] = (attempt, stamp, self.clock.physical_us)
            for other in list(self.attempts.get(transaction, ())):
                self.let_go(other)
        else:
            self.committed.pop(name[:16], None)
        return True

    def check_transactions(self):
        """Assert the invariants of decision 0028 that one worker can see."""
        cdef Record record
        assert self.prepared_bytes == sum([(<Record>record).size_bytes for record in [*self.prepared.values(), *self.doubtful.values()]])
        assert self.prepared.keys().isdisjoint(self.doubtful)
        assert sorted(self.prepared) == sorted([name for names in self.attempts.values() for name in names])
        for record in self.prepared.values():
            assert record.parts and record.first <= record.last, record.name
            mine = record.is_of(self.mine)
            assert not mine or epoch_of(mine) > self.stable or PLANTED, "I1 (S1): what was prepared here is of no epoch that is stable"
            assert record.name not in self.refused, "I2 (S7): what is refused is not held"
            known = self.committed.get(record.name[:16])
            assert known is None or known[0] != _NAME.unpack(record.name)[1], "I3 (S7): what is committed is joined"
            assert known is None or PLANTED, "I4 (S7): of the attempts at a transaction one is committed, and then none is held"


cpdef uint64_t writer_of(bytes name) except 0:
    """Return the writer of all that a transaction writes: one for all its keys, so that it wins or loses every tie alike, and nobody else's.

    It is below 2⁶³: the writers from there on are those of sessions, whose writes nobody has accepted yet (`cloudburst.consistency.own`).
    """
    return hash64(name, 16) >> 1 or 1


cdef bytes record_cell(bytes name, bytes payload):
    """Return the cell that a log keeps of a transaction."""
    cdef Buffer cell = Buffer()
    append_register(cell, LOG_PREFIX + name, LWW.make(1, 1, payload), 0, 0)
    return PyBytes_FromStringAndSize(cell.data, cell.size)
