"""Reads at an epoch, and leases on epochs: what sessions ask of a worker.

The one rule: what is answered for a key at epoch E is what it held at the end of E, on every owner the same and every time the same, or it is an
error: StaleReplica where this worker may lack something of E still, SnapshotExpired where it does not know any more, or never did. A lease
is about being answered, never about what. So whoever forgets to pin, or pins at one worker and reads at another, may have to begin again, and reads nothing wrong.

A worker keeps what keys were (`anna.kvs.history`) only while somebody reads at epochs. The first question begins that; its answer says from which
epoch on there is something to be read, which is stable two or three epochs later. Source: DESIGN §4; docs/decisions/0027.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from anna.kvs.batches cimport batch_count
from anna.kvs.history cimport History
from anna.kvs.scans cimport Scans
from anna.lattices.base cimport Lattice
from anna.wire cimport *

from anna import config
from anna.errors import NotSupported, Overloaded, ProtocolError, SnapshotExpired, StaleReplica, ValueTooLarge
from anna.kvs.faults import PLANTED

cdef uint64_t LEASE_US_MAX = config.EPOCH_LEASE_US_MAX
cdef Py_ssize_t PINS_MAX = config.PINS_MAX


cdef class Epochs(Scans):
    """The operations at an epoch."""

    cdef int get_at(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        """Answer with the state of one key at the end of an epoch, as a get does. The payload is u64 epoch, u64 view."""
        cdef uint64_t[2] asked
        cdef Lattice state
        self.check_key(key, head.key_bytes, head.flags)
        if size != 16:
            raise ProtocolError(f"a read at an epoch names it in 16 bytes, got {size}")
        memcpy(asked, payload, 16)
        self.check_epoch(asked[0], asked[1])
        if not self.owns(key, head.key_bytes):
            return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
        self.gets_at += 1
        if not self.has(key, head.key_bytes):
            self.stale += 1
            return self.reply_text(head, STATUS_STALE, b"this worker is about to take the key over; another owner has it")
        state = self.replication.history.read(PyBytes_FromStringAndSize(key, head.key_bytes), asked[0])
        if state is not None:
            return self.reply_state(head, state)
        return self.reply_absent(head, key)

    cdef int multi_get_at(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Answer with the states of many keys at the end of an epoch, as a multi-get does. The payload is u64 epoch, u64 view, then a multi-get's."""
        cdef uint64_t[2] asked
        cdef uint32_t count
        cdef uint16_t key_bytes
        cdef const char* end = payload + size
        cdef const char* place = payload + 20
        cdef Py_ssize_t begin = self.out.size
        if size < 16:
            raise ProtocolError(f"a read at an epoch names it in 16 bytes, got {size}")
        memcpy(asked, payload, 16)
        count = batch_count(payload + 16, size - 16)
        self.check_epoch(asked[0], asked[1])
        (<uint32_t*>self.reply(head, STATUS_OK, 0, 4))[0] = count
        try:
            for index in range(count):
                if end - place < 2:
                    raise ProtocolError(f"a multi-get of {count} keys ends within key {index}")
                memcpy(&key_bytes, place, 2)
                place += 2
                if end - place < key_bytes:
                    raise ProtocolError(f"a multi-get of {count} keys ends within key {index}")
                self.check_key(place, key_bytes, head.flags)
                self.item_at(PyBytes_FromStringAndSize(place, key_bytes), asked[0])
                place += key_bytes
            if place != end:
                raise ProtocolError(f"a multi-get of {count} keys has {end - place} bytes too many")
            size = self.out.size - begin - LENGTH_BYTES
            if size > <Py_ssize_t>FRAME_MAX:
                raise ValueTooLarge(f"the {count} values have {size:,} bytes together; a frame may have {FRAME_MAX:,}: ask for fewer at once")
        except BaseException:
            self.out.size = begin
            raise
        (<ReplyHeader*>(self.out.data + begin)).length = <uint32_t>size
        return 0

    cdef int item_at(self, bytes key, uint64_t epoch) except -1:
        """Append one key's part of an answer."""
        cdef const char* name = PyBytes_AS_STRING(key)
        cdef Py_ssize_t key_bytes = PyBytes_GET_SIZE(key)
        cdef Lattice state
        self.gets_at += 1
        if not self.owns(name, key_bytes):
            return self.append_item(STATUS_WRONG_WORKER, None)
        if not self.has(name, key_bytes):
            self.stale += 1
            return self.append_item(STATUS_STALE, None)
        state = self.replication.history.read(key, epoch)
        return self.append_item(STATUS_OK if state is not None else self.absence_of(name, key_bytes), state)

    cdef int append_item(self, int status, Lattice state) except -1:
        cdef bytes payload = b"" if state is None else state.encode()
        cdef ReplyItem* item = <ReplyItem*>self.out.reserve(ITEM_HEADER_BYTES + PyBytes_GET_SIZE(payload))
        item[0] = ReplyItem(status, 0 if state is None else state.NUMBER, 0, <uint32_t>PyBytes_GET_SIZE(payload))
        memcpy(<char*>item + ITEM_HEADER_BYTES, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        return 0

    cdef int pin(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1:
        """Keep an epoch readable for a while, and say which are: the payload is u64 epoch, 0 for the recent ones alone, and u64 microseconds.

        After them may stand u64 an epoch that the stable one must have reached: StaleReplica before that. The answer is u64 stable epoch, u64 the view under which it became so (0: it is before all that can be read), u64 the first epoch from
        which on all can be read, u64 the epoch that runs. SnapshotExpired: the epoch cannot be read here any more.
        """
        cdef uint64_t[3] asked = [0, 0, 0]
        cdef History history
        if size != 16 and size != 24:
            raise ProtocolError(f"a pin has 16 or 24 bytes, got {size}")
        memcpy(asked, payload, size)
        if not asked[0] or self.returning:
            self.require_entire()
        self.want_history(min(asked[1], LEASE_US_MAX))
        if asked[2] > self.replication.stable:
            self.stale += 1
            self.replication.hurry()
            raise StaleReplica(f"epoch {asked[2]} is not stable yet, {self.replication.stable} is")
        history = self.replication.history
        if not asked[0] and history.view_of(self.replication.stable) in self.partial:
            raise StaleReplica("the newest stable epoch is of the time when this side was cut off")
        if asked[0]:
            if asked[0] > self.replication.epoch or not history.reads(asked[0]):
                raise SnapshotExpired(f"epoch {asked[0]} is not kept here; {history.oldest} to {self.replication.epoch} are")
            if asked[0] not in history.pins and len(history.pins) >= PINS_MAX:
                raise Overloaded(f"{len(history.pins):,} epochs are pinned at this worker; pins_max is {PINS_MAX:,}")
            history.pin(asked[0], self.now + <int64_t>min(asked[1], LEASE_US_MAX) * 1000)
        if self.replication.stable < history.kept_from:
            self.replication.hurry()
        told = [self.replication.stable, history.view_of(self.replication.stable), history.oldest, self.replication.epoch]
        return self.reply_text(head, STATUS_OK, b"".join([int(number).to_bytes(8, "little") for number in told]))

    cdef int want_history(self, uint64_t lease_us) except -1:
        """Keep what keys hold at the ends of epochs from now on, for as long as somebody asks."""
        if self.replication is None:
            raise NotSupported("a cache does not know what keys held at an epoch; ask an owner")
        self.keep_time()
        if self.replication.history is None:
            self.replication.history = History(self.store, self.replication.epoch, self.now)
            self.look_whether_preserving()
            self.replication.hurry()
        self.replication.history.renew(self.now + <int64_t>lease_us * 1000)
        return 0

    cdef int check_epoch(self, uint64_t epoch, uint64_t view) except -1:
        """Raise StaleReplica unless all of `epoch` is here that ever will be, and SnapshotExpired unless it is still told apart.

        It is the epoch that became stable under `view`: there may be another of the same number on the other side of a partition.

        That another worker has called it stable is not enough: those who took this one for dead call epochs stable of which it has heard
        nothing, and it closes them itself, for it has nothing to send.
        """
        if self.returning:
            self.require_entire()
        self.want_history(LEASE_US_MAX)
        if epoch > self.replication.stable:
            if "unstable-epoch" in PLANTED:
                return 0
            self.stale += 1
            self.replication.hurry()
            raise StaleReplica(f"epoch {epoch} is not stable yet, {self.replication.stable} is")
        if not self.replication.history.reads(epoch):
            raise SnapshotExpired(f"epoch {epoch} is not kept here; {self.replication.history.oldest} and later ones are")
        if self.replication.history.view_of(epoch) != view and "any-view" not in PLANTED:
            raise SnapshotExpired(f"epoch {epoch} became stable here under another view than {view:016x}")
        return 0

    def forget_pasts(self):
        """Know nothing any more of what keys held at past epochs."""
        if self.replication.history is not None:
            self.replication.history = None
            self.look_whether_preserving()

    def settle_history(self):
        """Let go of what nobody reads any more."""
        cdef History history = self.replication.history
        if history.has_ended(self.now):
            self.forget_pasts()
            return
        history.settle(self.replication.stable, self.replication.epoch, self.now)
