"""What a client may do with one key: get, put, delete.

The one rule: an operation either happens whole or raises an AnnaError before it has changed anything. A write is stamped here, joined into its
key, and noted for everybody who has to know of it: the other owners, the log, a snapshot, subscribers.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from anna.kvs.history cimport Past
from anna.kvs.memory cimport Cold, kind_of
from anna.kvs.pushes cimport Pushes
from anna.kvs.store cimport Piece, written_at
from anna.kvs.table cimport Slot
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64
from anna.wire cimport *

from anna.errors import BadKey, Changed, Damaged, NotSupported, ProtocolError, StaleReplica, StampAhead, ValueTooLarge
from anna.lattices import REGISTRY


cdef class Operations(Pushes):
    """The operations on one key. Who calls them has seen that the key is this worker's (`owns`)."""

    cdef int check_key(self, const char* key, Py_ssize_t size, int flags) except -1:
        if not 1 <= size <= <Py_ssize_t>KEY_MAX:
            raise BadKey(f"a key has 1 to {KEY_MAX:,} bytes, got {size:,}")
        if key[0] == 0 and not flags & FLAG_SYSTEM:
            raise BadKey("keys that begin with a zero byte are reserved for the system")
        return 0

    cdef int get(self, RequestHeader* head, const char* key) except -1:
        cdef PyObject* found = self.store.states.find(key, head.key_bytes)
        self.gets += 1
        if head.flags & FLAG_STRICT and not self.is_current(head.stamp):
            self.stale += 1
            return self.reply_text(head, STATUS_STALE, b"this replica may lack what the client has seen; it will soon have it")
        if self.settling and not self.has(key, head.key_bytes):
            self.stale += 1
            return self.reply_text(head, STATUS_STALE, b"this worker is about to take the key over; another owner has it")
        if found is NULL or (self.store.expiries and self.has_expired(key, head.key_bytes)):
            return self.reply_absent(head, key)
        if type(<object>found) is Cold:
            return self.get_cold(head, key)
        return self.reply_state(head, <Lattice>found)

    cdef int get_cold(self, RequestHeader* head, const char* key) except -1:
        """`get` of a key whose state is on the disk alone."""
        cdef Lattice state = self.store.warm(PyBytes_FromStringAndSize(key, head.key_bytes))
        return self.reply_absent(head, key) if state is None else self.reply_state(head, state)

    cdef int reply_absent(self, RequestHeader* head, const char* key) except -1:
        """Answer for a key of which no state is here: it is missing, or was lost and is not missing at all."""
        cdef int status = self.absence_of(key, head.key_bytes)
        if status == STATUS_MISSING:
            self.reply(head, STATUS_MISSING, 0, 0)
            return 0
        return self.reply_text(head, status, b"the value is not on this worker's disk as it was written; " + (
            b"another owner has it" if status == STATUS_STALE else b"no other worker has it"))

    cdef int absence_of(self, const char* key, Py_ssize_t key_bytes) except -1:
        """Return what it means that no state of `key` is here: STATUS_MISSING, STATUS_STALE or STATUS_DAMAGED."""
        cdef bytes name
        if not self.store.lost:
            return STATUS_MISSING
        name = PyBytes_FromStringAndSize(key, key_bytes)
        if name not in self.store.lost or self.has_expired(key, key_bytes):
            return STATUS_MISSING
        self.stale += 1
        return STATUS_STALE if self.replication.peers_of(name) else STATUS_DAMAGED

    cdef int put(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1:
        cdef uint64_t lives_us = 0
        if head.ack or self.copies_usual > 1:
            self.check_copies(key, head.key_bytes, head.ack)
        if head.flags & (FLAG_COMPARE | FLAG_EXPIRES):
            if head.flags & FLAG_COMPARE:
                self.compare(key, head.key_bytes, payload, size)
                payload += 8
                size -= 8
            if head.flags & FLAG_EXPIRES:
                if size < 8:
                    raise ProtocolError("a put that expires does not say when")
                memcpy(&lives_us, payload, 8)
                payload += 8
                size -= 8
        self.write(key, head.key_bytes, head.type, payload, size)
        if lives_us or self.store.expiries:
            self.expire_after(PyBytes_FromStringAndSize(key, head.key_bytes), lives_us)
        if head.ack > 1 or (head.ack == 0 and self.copies_usual > 1) or self.store.memory is not None:
            return self.acknowledge(head, key, STATUS_OK)
        self.reply(head, STATUS_OK, 0, 0)
        return 0

    cdef int put_bulk(self, RequestHeader* head, const char* key, uint64_t* place, bytes bulk) except -1:
        """`put` of a large register whose bytes are an object already; `place` holds its stamp and writer."""
        if not self.clock.observe(head.stamp):
            raise StampAhead("the request's stamp is more than a minute ahead of this worker's clock")
        self.check_key(key, head.key_bytes, head.flags)
        if not self.owns(key, head.key_bytes) or self.closing:
            return self.reply_text(head, STATUS_WRONG_WORKER, self.view_payload)
        if PyBytes_GET_SIZE(bulk) + LWW_HEADER_BYTES > <Py_ssize_t>VALUE_MAX:
            raise ValueTooLarge(f"a value has {len(bulk) + LWW_HEADER_BYTES:,} bytes; value_bytes_max is {VALUE_MAX:,}")
        if self.store.limit_bytes:
            self.check_room()
        self.check_copies(key, head.key_bytes, head.ack)
        self.puts += 1
        self.write_register(key, head.key_bytes, place[0], place[1], PyBytes_AS_STRING(bulk), PyBytes_GET_SIZE(bulk), bulk)
        if self.store.expiries:
            self.expire_after(PyBytes_FromStringAndSize(key, head.key_bytes), 0)
        return self.acknowledge(head, key, STATUS_OK)

    cdef int compare(self, const char* key, Py_ssize_t key_bytes, const char* payload, Py_ssize_t size) except -1:
        """Raise Changed unless the register under `key` has the stamp that the request names (0: there is none)."""
        cdef uint64_t expected
        cdef uint64_t found = 0
        cdef PyObject* state = self.store.states.find(key, key_bytes)
        if size < 8:
            raise ProtocolError("a put that compares does not say with what")
        memcpy(&expected, payload, 8)
        if not self.has(key, key_bytes):
            raise StaleReplica("this worker is about to take the key over; another owner has it")
        if state is not NULL and kind_of(<Lattice>state) is not LWW:
            raise self.store.mismatch(PyBytes_FromStringAndSize(key, key_bytes), <Lattice>state, LWW)
        if state is NULL and self.absence_of(key, key_bytes) != STATUS_MISSING:
            raise self.absence_error(PyBytes_FromStringAndSize(key, key_bytes))
        if state is not NULL and not self.has_expired(key, key_bytes):
            found = written_at(<Lattice>state)
        if found != expected:
            raise Changed(f"the register has stamp {found}, not {expected}")
        return 0

    cdef int delete(self, RequestHeader* head, const char* key) except -1:
        cdef bytes name = PyBytes_FromStringAndSize(key, head.key_bytes)
        cdef uint64_t stamp
        cdef bint existed
        cdef int status
        cdef Past past = None
        if head.flags & (FLAG_COMPARE | FLAG_EXPIRES):
            raise NotSupported("a delete neither compares nor expires")
        self.check_copies(key, head.key_bytes, head.ack)
        self.deletes += 1
        stamp = self.stamp_write()
        if self.preserving:
            past = self.preserve(key, head.key_bytes)
        existed = (name in self.store.states or name in self.store.lost) and not self.has_expired(key, head.key_bytes)
        if self.replication is None or not self.replication.remembers:
            self.store.remove(name)
            self.store.expire_at(name, 0, stamp)
        else:
            self.store.reset(name, stamp)
            self.store.expire_at(name, 0, stamp)
            self.replication.note_deleted(name)
        self.store.recover(name)
        if past is not None:
            past.note_reset(self.replication.epoch, stamp)
            self.note_expiry(name, stamp, 0)
        if existed:
            self.note(key, head.key_bytes)
        # It counts all the same where nothing was found: another owner may have what this one has not heard of.
        status = STATUS_OK if existed else STATUS_MISSING
        if head.ack or self.copies_usual > 1:
            return self.acknowledge(head, key, status)
        self.reply(head, status, 0, 0)
        return 0

    # -- what becomes of a write

    cdef int write(self, const char* key, Py_ssize_t key_bytes, int type, const char* payload, Py_ssize_t size) except -1:
        """Join one written state into its key. Raises an AnnaError, and changes nothing, when it cannot be."""
        cdef uint64_t stamp, writer
        if size > <Py_ssize_t>VALUE_MAX:
            raise ValueTooLarge(f"a value has {size:,} bytes; value_bytes_max is {VALUE_MAX:,}")
        if self.store.limit_bytes:
            self.check_room()
        self.puts += 1
        if type == LWW_NUMBER:
            if size < LWW_HEADER_BYTES:
                raise ProtocolError(f"an LWW has at least {LWW_HEADER_BYTES} bytes, got {size}")
            memcpy(&stamp, payload, 8)
            memcpy(&writer, payload + 8, 8)
            return self.write_register(key, key_bytes, stamp, writer, payload + LWW_HEADER_BYTES, size - LWW_HEADER_BYTES, None)
        self.write_state(PyBytes_FromStringAndSize(key, key_bytes), type, payload[:size])
        self.note(key, key_bytes)
        return 0

    cdef int write_register(self, const char* key, Py_ssize_t key_bytes, uint64_t stamp, uint64_t writer,
                            const char* payload, Py_ssize_t size, bytes held) except -1:
        """Join a register into its key, stamped here unless it has a stamp. Its bytes are copied, or `held` as they are."""
        cdef Slot* slot
        if stamp == 0 and writer == 0:
            stamp = self.stamp_write()
            writer = self.worker_id
        elif not self.clock.observe(stamp):
            raise StampAhead("the register's stamp is more than a minute ahead of this worker's clock")
        else:
            self.keep_time()
            if self.store.resets and stamp <= self.store.reset_of(PyBytes_FromStringAndSize(key, key_bytes)):
                return 0  # the key was deleted later than this was written
            if self.store.lost and self.store.lost_later(PyBytes_FromStringAndSize(key, key_bytes), stamp):
                raise self.absence_error(PyBytes_FromStringAndSize(key, key_bytes))
        if self.store.expiries:
            name = PyBytes_FromStringAndSize(key, key_bytes)
            if self.store.expired(name, self.clock.physical_us) and self.store.kind_of(name) is not LWW:
                self.end_life(name)
        if self.preserving:
            slot = self.write_preserving(key, key_bytes, stamp, writer, payload, size, held)
        else:
            slot = self.store.write_register(key, key_bytes, hash64(key, key_bytes), stamp, writer, payload, size, held)
        if self.replication is not None:
            self.replication.note_register(slot)
        self.note(key, key_bytes)
        return 0

    cdef Slot* write_preserving(self, const char* key, Py_ssize_t key_bytes, uint64_t stamp, uint64_t writer,
                                const char* payload, Py_ssize_t size, bytes held) except NULL:
        """Join a register into its key, of which somebody may still want what it was."""
        cdef Past past = self.preserve(key, key_bytes)
        cdef Slot* slot = self.store.write_register(key, key_bytes, hash64(key, key_bytes), stamp, writer, payload, size, held)
        cdef LWW state
        if past is not None:
            state = <LWW>slot.state if type(<object>slot.state) is LWW else None
            if state is None or state.stamp != stamp or state.writer != writer:
                past.note_register(self.replication.epoch, LWW.make(stamp, writer, PyBytes_FromStringAndSize(payload, size)))
            else:
                past.note_register(self.replication.epoch, LWW.make(stamp, writer, state.payload))
            self.replication.history.count(past)
        return slot

    def write_state(self, bytes key, int number, bytes payload):
        """Join a state of any type into `key`, after the owner's part was assigned to it."""
        kind = REGISTRY.get(number)
        if kind is None:
            raise NotSupported(f"lattice type {number} is not known to this worker")
        cdef Lattice written = kind.decode(payload)
        if self.store.expiries and self.store.expired(key, self.clock.physical_us):
            self.end_life(key)
        cdef Lattice current = self.store.read(key)
        cdef Lattice delta
        cdef uint64_t stamp
        cdef Past past = None
        cdef Piece piece
        if current is not None and type(current) is not kind:
            raise self.store.mismatch(key, current, kind)
        if current is None and self.store.lost and key in self.store.lost:
            raise self.absence_error(key)
        stamp = self.stamp_write()
        if self.preserving:
            past = self.preserve(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        delta = written.assign(current, stamp, self.worker_id)
        if current is not None and <Py_ssize_t>current.size_bytes + <Py_ssize_t>delta.size_bytes > <Py_ssize_t>VALUE_MAX:
            check_growth(current, delta)
        self.store.write(key, delta)
        if past is not None and not self.replication.keeps_pieces():
            past.note_state(self.replication.epoch, stamp, delta)
        if self.replication is not None:
            self.replication.note_delta(key, stamp, delta)
        if past is not None:
            piece = self.replication.changes.piece_of(key)
            if piece is not None:
                past.note_piece(piece)
            self.replication.history.count(past)

    def end_life(self, bytes key):
        """A key's time is over, and it is about to be written anew: nothing of what it was is to be found in what it becomes."""
        if self.preserving:
            self.preserve(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if self.replication is not None:
            self.replication.end_life(key)
        else:
            self.store.end_life(key)

    def absence_error(self, bytes key):
        """Return the error for a write that needs to know what was lost."""
        if self.replication.peers_of(key):
            return StaleReplica("the value is not on this worker's disk as it was written; another owner has it")
        return Damaged(f"the value of {key!r} is not on the disk as it was written, and no other worker has it")

    cdef Past preserve(self, const char* key, Py_ssize_t key_bytes):
        """A client is about to change `key`: keep what it was for the snapshot, if it belongs there, and for those who read at epochs.

        Return where the latter find what it becomes, None if nobody does.
        """
        if self.snapshot is not None and self.replication.epoch > self.snapshot.epoch:
            self.snapshot.keep(PyBytes_FromStringAndSize(key, key_bytes))
        if self.replication.history is None:
            return None
        return self.replication.history.open(PyBytes_FromStringAndSize(key, key_bytes), self.replication.epoch)

    cdef int look_whether_preserving(self) except -1:
        """A snapshot or a history has begun, or ended."""
        self.preserving = self.snapshot is not None or (self.replication is not None and self.replication.history is not None)
        return 0

    def note_expiry(self, bytes key, uint64_t stamp, uint64_t expires_us):
        """The write of `stamp` gave the key a time to live; 0: took it away."""
        if self.replication is not None and self.replication.history is not None:
            self.replication.history.note_expiry(key, self.replication.epoch, stamp, expires_us)

    def expire_after(self, bytes key, lives_us):
        """Let what was just written to `key` live for `lives_us` microseconds; 0: for ever."""
        state = self.store.read(key)
        stamp = state.stamp if type(state) is LWW else self.clock.last
        self.store.expire_at(key, self.clock.physical_us + lives_us if lives_us else 0, stamp)
        if self.preserving:
            self.note_expiry(key, stamp, self.clock.physical_us + lives_us if lives_us else 0)

    cdef bint has_expired(self, const char* key, Py_ssize_t key_bytes) except -1:
        return self.store.expired(PyBytes_FromStringAndSize(key, key_bytes), self.clock.physical_us) if self.store.expiries else False


cdef int check_growth(Lattice current, Lattice delta) except -1:
    """Raise ValueTooLarge when a state joined with `delta` is longer than one write may be. O(size), for what comes near to that."""
    cdef Lattice joined = current.copy()
    joined.merge(delta)
    if <Py_ssize_t>joined.size_bytes > <Py_ssize_t>VALUE_MAX:
        raise ValueTooLarge(f"with this write the value has {joined.size_bytes:,} bytes; value_bytes_max is {VALUE_MAX:,}")
    return 0
