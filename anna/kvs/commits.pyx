"""What a coordinator asks an owner of keys: to prepare writes of a transaction, to commit or drop them, to find out what became of them.

The one rule: whatever is asked again is answered with what was. A prepare is answered once what it prepared is as safe as its ack asks, and
refused before anything is held; from its answer on only all owners of the transaction together can end it (`anna.kvs.transactions`).

    PREPARE   16 bytes id | u64 attempt | u64 worker whom this is for | u32 keys of the whole transaction | for each u64 hash, u64 worker that is asked
              | u32 writes for this worker | for each u16 key bytes, u8 type, u8 flags, u32 state bytes, key, state
    COMMIT    16 bytes id | u64 attempt | u64 stamp; 0: it is dropped, because one of its owners will never prepare it
    FINISH    16 bytes id | u64 attempt | u64 worker whom this is for | u32 keys | for each u64 hash, u64 worker

A write's flags: 1 what the key held is deleted first (and that is all, with type 0 and no state); FLAG_EXPIRES the state begins with 8 bytes, for how
many microseconds from the commit on it lives. A place whose hash is that of the id is the guard's (`anna.kvs.transactions`): it comes with no write.

Each is answered with u8 state (0 nothing is known here, 1 prepared, 2 committed, 3 refused), u64 stamp (the proposal of this worker, or of the
commit), u64 attempt that was committed. Source: DESIGN §4; docs/decisions/0028.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from anna.commits cimport guard_of
from anna.kvs.epochs cimport Epochs
from anna.kvs.clock cimport epoch_of
from anna.kvs.held cimport Hold
from anna.kvs.operations cimport check_growth
from anna.kvs.records cimport PART_DELETES, Part, Record
from anna.kvs.transactions cimport writer_of
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64
from anna.wire cimport *

import struct

from anna import config
from anna.errors import AnnaError, NotSupported, Overloaded, ProtocolError, StaleReplica, StampAhead, ValueTooLarge
from anna.kvs.faults import PLANTED
from anna.kvs.records import read_places
from anna.kvs.transactions import COMMITTED, PREPARED, REFUSED, STRANGE
from anna.lattices import REGISTRY

cdef enum:
    NAME_BYTES = 24
    HEAD_BYTES = 32

cdef Py_ssize_t PREPARED_BYTES = config.PREPARED_BYTES_MAX
cdef int64_t SILENT_NS = config.TRANSACTION_SILENT_US * 1000
cdef int64_t RIVAL_NS = config.TRANSACTION_RIVAL_US * 1000
cdef Py_ssize_t KEYS_MAX = config.TRANSACTION_KEYS_MAX

_COMMIT = struct.Struct("<24sQ")
_OUTCOME = struct.Struct("<BQQ")


cdef class Commits(Epochs):
    """The operations on transactions."""

    cdef int prepare(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Hold writes of a transaction until it is decided, and propose a stamp for it."""
        cdef bytes data = PyBytes_FromStringAndSize(payload, size)
        cdef bytes name, key
        cdef uint64_t stamp, writer, guard
        cdef Record record
        cdef Part part
        if self.replication is None:
            raise NotSupported("a cache prepares nothing; ask the owners of the keys")
        self.prepares += 1
        name, addressed, places, place = read_head(data)
        if addressed != self.worker_id:
            # That one was replaced, and this one has its address.
            return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
        self.require_entire()
        own = {hash: None for hash, worker in places if worker == self.worker_id}
        state, _, _ = self.replication.state_of(name)
        record = self.replication.record_of(name)
        if state not in (STRANGE, PREPARED) or (record is not None and own and own.keys() <= record.parts.keys()):
            return self.reply_outcome(head, name, own)
        if self.dead_workers and not self.dead_workers.isdisjoint([worker for _, worker in places]) and "strange-places" not in PLANTED:
            # Who asks knows the view before: what a worker prepares that is called dead would not be where its key is read.
            return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
        guard = guard_of(name)
        if guard in own or guard not in [hash for hash, _ in places]:
            self.check_attempts(name, guard in own)
            if self.replication.state_of(name)[0] == COMMITTED:
                return self.reply_outcome(head, name, own)  # which another attempt was found to be
        writes = self.checked_writes(head, data, place, own, guard)
        if writes is None:
            return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
        writer = writer_of(name)
        parts = [self.prepared_part(key, hash, type, flags, written, writer) for key, hash, type, flags, written in writes]
        if guard in own:
            parts.append(Part.make(b"", guard, None, 0, 0))
        stamp = self.stamp_write()
        if epoch_of(stamp - 1) != epoch_of(stamp):
            stamp = self.stamp_write()  # a delete that is written over counts a moment earlier, in the same epoch
        for part in parts:
            part.proposal = stamp
        self.replication.prepare(name, places, parts)
        return self.reply_outcome(head, name, own)

    def check_attempts(self, bytes name, bint guards):
        """Raise StaleReplica while another attempt at the same transaction is not decided; and see to it that it soon is.

        What a guard holds is first left to its coordinator for a while: who is asked what became of it, and was not asked to prepare it, refuses.
        """
        attempts = self.replication.attempts.get(name[:16])
        if attempts is None or "attempts-apart" in PLANTED:
            return
        others = [other for other in attempts if other != name]
        for other in others:
            self.urgent = True
            record = self.replication.prepared.get(other)
            if record is not None and (not guards or self.now >= record.due - SILENT_NS + RIVAL_NS):
                self.replication.inquire(record)
        if any([other in self.replication.prepared for other in others]):
            raise StaleReplica("another attempt at the transaction is prepared here; its owners are asked what became of it")

    cdef list checked_writes(self, RequestHeader* head, bytes data, Py_ssize_t place, dict own, uint64_t guard):
        """Return [(key, hash, type, flags, state)] of what this worker is asked to prepare, None where it is not to be asked. Raises an AnnaError."""
        cdef const char* at = PyBytes_AS_STRING(data) + place
        cdef const char* end = PyBytes_AS_STRING(data) + PyBytes_GET_SIZE(data)
        cdef PutItem item
        cdef uint32_t count
        cdef bytes key
        cdef list writes = []
        cdef bint guards = guard in own
        cdef bint misplaced = self.closing or (guards and self.placement.owner_at(guard) != self.place)
        cdef bint planned = True
        if end - at < 4:
            raise ProtocolError("a prepare does not say how many writes it has")
        memcpy(&count, at, 4)
        at += 4
        for _ in range(count):
            if end - at >= ITEM_HEADER_BYTES:
                memcpy(&item, at, ITEM_HEADER_BYTES)
            if end - at < ITEM_HEADER_BYTES or end - at - ITEM_HEADER_BYTES < <Py_ssize_t>item.key_bytes + <Py_ssize_t>item.payload_bytes:
                raise ProtocolError(f"a prepare of {count:,} writes is cut short")
            at += ITEM_HEADER_BYTES
            key = PyBytes_FromStringAndSize(at, item.key_bytes)
            at += item.key_bytes
            self.check_write(head, key, item.flags, item.payload_bytes)
            misplaced = misplaced or not self.owns(PyBytes_AS_STRING(key), item.key_bytes)
            hash = hash64(PyBytes_AS_STRING(key), item.key_bytes)
            planned = planned and hash in own
            writes.append((key, hash, item.type, item.flags, PyBytes_FromStringAndSize(at, item.payload_bytes)))
            at += item.payload_bytes
        if at != end:
            raise ProtocolError(f"a prepare of {count:,} writes has {end - at} bytes too many")
        if misplaced or not own:
            return None  # without a place it was its predecessor in this seat that was to be asked
        if not planned or len(writes) + guards != len(own) or len(writes) != len({write[1] for write in writes}):
            raise ProtocolError("a prepare has other writes for this worker than its places say")
        if guards and not self.is_complete:
            raise StaleReplica("this worker is about to decide between attempts at the transaction, and does not know yet of all that were made")
        if head.ack > 1:
            for key, _, _, _, _ in writes:
                self.check_copies(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), head.ack)
        if self.store.limit_bytes:
            self.check_room()
        if self.replication.prepared_bytes + PyBytes_GET_SIZE(data) > PREPARED_BYTES:
            raise Overloaded(f"prepared transactions take {self.replication.prepared_bytes:,} bytes; prepared_bytes_max is {PREPARED_BYTES:,}")
        return writes

    cdef int check_write(self, RequestHeader* head, bytes key, int flags, Py_ssize_t state_bytes) except -1:
        """Raise an AnnaError for a write that no owner could prepare."""
        self.check_key(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), head.flags)
        if flags & ~(PART_DELETES | FLAG_EXPIRES):
            raise NotSupported("a write of a transaction does not compare: its owners would have to agree on what was there")
        if state_bytes > <Py_ssize_t>VALUE_MAX:
            raise ValueTooLarge(f"a value has {state_bytes:,} bytes; value_bytes_max is {VALUE_MAX:,}")
        return 0

    cdef Part prepared_part(self, bytes key, uint64_t hash, int type, int flags, bytes payload, uint64_t writer):
        """Return one write as it is held until it is decided, without a proposal. Raises an AnnaError when it could not be joined."""
        cdef Lattice written, current, delta
        cdef uint64_t lives_us = 0
        cdef bint anew = flags & PART_DELETES
        if type == 0:
            if flags != PART_DELETES or payload:
                raise ProtocolError("a write of a transaction without a type is a delete, and has nothing else")
            return Part.make(key, hash, None, flags, 0)
        if flags & FLAG_EXPIRES:
            if len(payload) < 8:
                raise ProtocolError("a write that expires does not say when")
            memcpy(&lives_us, PyBytes_AS_STRING(payload), 8)
            payload = payload[8:]
        kind = REGISTRY.get(type)
        if kind is None:
            raise NotSupported(f"lattice type {type} is not known to this worker")
        written = kind.decode(payload)
        if kind is LWW and ((<LWW>written).stamp or (<LWW>written).writer):
            raise NotSupported("a register of a transaction is stamped by its commit, and brings no stamp")
        anew = anew or (self.store.expiries and self.store.expired(key, self.clock.physical_us))
        present = None if anew else self.store.kind_of(key)
        if present is not None and present is not kind:
            raise self.store.mismatch(key, self.store.look(key), kind)
        if kind is LWW:
            return Part.make(key, hash, written, flags, lives_us)
        current = None if anew else self.store.read(key)
        if current is None and not flags & PART_DELETES and self.store.lost and key in self.store.lost:
            raise self.absence_error(key)
        delta = written.as_prepared(current, writer)
        if current is not None and <Py_ssize_t>current.size_bytes + <Py_ssize_t>delta.size_bytes > <Py_ssize_t>VALUE_MAX:
            check_growth(current, delta)
        return Part.make(key, hash, delta, flags, lives_us)

    cdef int commit(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """A coordinator says how a transaction has ended. With request 0 it is not answered."""
        if self.replication is None:
            raise NotSupported("a cache has prepared nothing; tell the owners of the keys")
        try:
            self.take_commit(payload, size)
        except AnnaError:
            if head.request:
                raise
            self.refused += 1
        # Most coordinators have told their callers, and wait for nothing more.
        return self.reply_outcome(head, bytes(payload[:NAME_BYTES]), ()) if head.request else 0

    cdef int take_commit(self, const char* payload, Py_ssize_t size) except -1:
        """End a transaction as its coordinator says."""
        cdef Record record
        cdef uint64_t stamp
        if size != _COMMIT.size:
            raise ProtocolError(f"a commit has {_COMMIT.size} bytes, got {size}")
        name, stamp = _COMMIT.unpack(payload[:size])
        record = self.replication.record_of(name)
        if record is not None and stamp and stamp < record.last:
            raise ProtocolError(f"a transaction is to be committed at {stamp}, before the stamp {record.last} that was proposed for it")
        if record is not None and stamp and not self.clock.observe(stamp):
            raise StampAhead("the commit's stamp is more than a minute ahead of this worker's clock")
        if record is not None or not stamp:
            self.keep_time()
            self.replication.finish(name, stamp, False)
            self.note_touched()
        return 0

    cdef int finish(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Find out what became of a transaction, as far as it does not take others; who was to prepare it and has not refuses from now on."""
        cdef bytes data = PyBytes_FromStringAndSize(payload, size)
        cdef Record record
        if self.replication is None:
            raise NotSupported("a cache has prepared nothing; ask the owners of the keys")
        name, addressed, places, place = read_head(data)
        if place != size:
            raise ProtocolError(f"a question about a transaction has {size - place} bytes too many")
        if addressed != self.worker_id:
            self.reply_held(head, STATUS_OK, 1, 0, _OUTCOME.pack(STRANGE, 0, 0), None)
            return 0
        own = {hash: None for hash, worker in places if worker == self.worker_id}
        record = self.replication.record_of(name)
        self.keep_time()
        self.urgent = True
        if own and self.replication.state_of(name)[0] in (STRANGE, PREPARED) and (record is None or not own.keys() <= record.parts.keys()):
            self.replication.finish(name, 0, False)
        elif record is not None:
            self.replication.inquire(record)
            self.note_touched()
        return self.reply_outcome(head, name, own)

    # -- answers

    cdef int reply_outcome(self, RequestHeader* head, bytes name, own) except -1:
        """Answer with what is known of an attempt, once that is as safe as was asked for the keys with the hashes `own`."""
        cdef int copies, least = 0
        cdef bint durable = head.ack == ACK_DISK
        cdef list holds = []
        cdef Hold hold
        state, stamp, attempt = self.replication.state_of(name)
        if state == PREPARED and not stamp:
            state = STRANGE  # what is held here was prepared by others: whoever asks may take this worker for its predecessor in this seat
        for hash in own if head.ack != 1 and state not in (STRANGE, REFUSED) else ():
            copies = 1 if durable else head.ack
            if copies == 0:
                copies = min(2, self.placement.count_at(hash)) if self.copies_usual > 1 else 1
            hold = self.hold_at(hash, copies, durable, head.ack == 0)
            least = min(least, copies) if least else copies
            if hold is not None and not (holds and hold.same(holds[len(holds) - 1])):
                holds.append(hold)
        payload = _OUTCOME.pack(state, stamp, attempt)
        self.reply_held(head, STATUS_OK, max(least, 1), durable, payload, holds[0] if holds else None)
        for hold in holds[1:]:
            hold.begin = (<Hold>holds[0]).begin
            self.deferred.append(hold)
        return 0

    cdef Hold hold_at(self, uint64_t hash, int copies, bint durable, bint usual):
        """Return what an answer about a part has to wait for, None for nothing. What was sent of it was sent already, beside the changes of a round."""
        cdef tuple peers = self.replication.peers_at(hash) if copies > 1 else ()
        copies = min(copies, len(peers) + 1)
        peers = self.replication.apart(peers, copies - 1)
        if PLANTED and "early-ack" in PLANTED:
            return None
        if copies <= 1 and not durable:
            return None
        if not durable and self.replication.copies_of(self.replication.changes.round - 1, peers) >= copies - 1:
            return None
        log_round = self.replication.log.round_wanted() if durable else 0
        return Hold(hash, self.replication.changes.round - 1, peers, copies - 1, log_round, self.replication.epoch, usual)

    def state_of_transaction(self, bytes transaction, uint64_t attempt):
        """Return (state, stamp) of what is known here of an attempt; for those who look at it."""
        state, stamp, committed = self.replication.state_of(transaction + struct.pack("<Q", attempt))
        return (REFUSED, 0) if state == COMMITTED and committed != attempt else (state, stamp)

    def commit_of(self, bytes transaction):
        """Return the stamp at which a transaction is known here to have been committed, 0 for none; for those who look at it."""
        known = self.replication.committed.get(transaction)
        return 0 if known is None else known[1]

    cdef int note_touched(self) except -1:
        """Subscribers are told of the keys that changed otherwise than by a client's write."""
        if self.replication.touched:
            for key in self.replication.touched:
                if key in self.subscribers:
                    self.changed.add(key)
            self.replication.touched.clear()
        return 0


def read_head(bytes data):
    """Return (name, whom it is for, places, where the rest begins) of what is asked about a transaction. Raises ProtocolError, ValueTooLarge."""
    cdef uint64_t addressed
    cdef uint32_t count
    if PyBytes_GET_SIZE(data) < HEAD_BYTES + 4:
        raise ProtocolError(f"a transaction is named in {NAME_BYTES} bytes, and by its keys; got {len(data)}")
    memcpy(&addressed, PyBytes_AS_STRING(data) + NAME_BYTES, 8)
    memcpy(&count, PyBytes_AS_STRING(data) + HEAD_BYTES, 4)
    places, place = read_places(data, HEAD_BYTES)
    if count > KEYS_MAX and (count > KEYS_MAX + 1 or guard_of(data) not in [hash for hash, _ in places]):
        raise ValueTooLarge(f"a transaction has {count:,} keys; transaction_keys_max is {KEYS_MAX:,}")
    return data[:NAME_BYTES], addressed, places, place
