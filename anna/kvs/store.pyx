"""The states of one worker's keys.

The one rule: a key keeps the lattice type of its first write, and its state only grows, until the key is deleted. Existence is
the key's being here, never its value: empty bytes, empty sets and None are values. States are merged in place, so nobody else
may hold a reference to one; what leaves the store leaves encoded, or as a copy.

A delete is a *reset* at its stamp: a register survives it if its own stamp is greater. What other types say of their past is lost in a
join, so of each the deltas of the epochs that are not stable yet are kept (`pieces`) with the stamp of the latest write in them: a
reset that arrives late leaves those that are later than it, and nothing of what was folded, for that is older. A reset is
forgotten when every replica has it and no older write can be under way (`forget`). Source: DESIGN §4; docs/decisions/0014.

States are in memory, or with `hold_in` some of them on the disk alone (`anna.kvs.memory`), which nobody sees who asks by `read` or `look`.
One that cannot be had any more is in `lost` with what is known of it, and counts as absent here: it is neither missing nor to be
joined into, until another owner has sent it, or a write or delete has made it void.
"""

from libc.stdint cimport uint64_t

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject

from anna.kvs.cells cimport CellReader
from anna.kvs.clock cimport Clock
from anna.kvs.memory cimport Cold, Memory, kind_of
from anna.kvs.table cimport REACH_MAX, Slot, Table
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64
from anna.wire cimport LWW_NUMBER

from collections import deque

from sortedcontainers import SortedList

from anna import config
from anna.errors import LatticeTypeMismatch, ProtocolError
from anna.kvs.faults import PLANTED
from anna.kvs.clock cimport epoch_of

cdef Py_ssize_t ENTRY_COST = config.MEMORY_KEY_BYTES + config.MEMORY_STATE_BYTES
cdef Py_ssize_t OBJECTS_FACTOR = config.MEMORY_OBJECTS_FACTOR


@cython.final
cdef class Piece:
    """What one owner's epoch changed in a key that is no register: a delta, and the stamp of the latest write in it."""

    def __init__(self, uint64_t epoch, uint64_t last, Lattice state):
        self.epoch = epoch
        self.last = last
        self.state = state


cdef uint64_t written_at(Lattice state) except? 0xFFFFFFFFFFFFFFFF:
    """Return a register's stamp, 0 for a state of another type."""
    if type(state) is LWW:
        return (<LWW>state).stamp
    return (<Cold>state).stamp if type(state) is Cold else 0


@cython.final
cdef class Store:
    """Key bytes to lattice states, with an account of their bytes (keys and states; not the interpreter's overhead)."""

    def __init__(self):
        self.states = Table()
        self.size_bytes = self.objects_bytes = 0
        self.limit_bytes = 0
        self.resets = {}
        self.pieces = {}
        self.quarantine = {}
        self.pieces_of_epoch = {}
        self.resets_by_age = deque()
        self.ended = {}
        self.survived = {}
        self.expiries = {}
        self.forgotten = None
        self.expiries_by_time = SortedList()
        self.memory = None
        self.lost = {}

    def __len__(self):
        return len(self.states)

    def hold_in(self, Py_ssize_t limit_bytes, fetch):
        """Keep at most about `limit_bytes` in memory, and the rest where `fetch(key)` gives cells of it. Before any key has come."""
        self.memory = Memory(self.states, limit_bytes, fetch)
        self.limit_bytes = limit_bytes

    def hold_at_most(self, Py_ssize_t limit_bytes):
        """Be full when keys and states, all of them in memory, take more than about `limit_bytes`: `is_full`."""
        assert self.memory is None, "who has a disk lets states leave"
        self.limit_bytes = limit_bytes

    cdef Py_ssize_t taken(self) noexcept:
        if self.memory is not None:
            return self.memory.resident()
        return self.size_bytes + (OBJECTS_FACTOR - 1) * self.objects_bytes + ENTRY_COST * self.states.used

    @property
    def taken_bytes(self):
        """About how much memory keys and states take now."""
        return self.taken()

    @property
    def is_full(self):
        """Whether there is a limit to that, and it is reached."""
        return 0 < self.limit_bytes < self.taken()

    def restore(self, bytes key, bytes cells, Clock clock):
        """Take what the disk has of `key`, which is not here yet; the state stays there unless it is too short for that.

        False, and nothing is done, for what has to be joined: more than one cell. Raises ProtocolError.
        """
        cdef CellReader reader = CellReader(cells)
        cdef Lattice state
        if not reader.next() or reader.place != PyBytes_GET_SIZE(cells):
            return False
        if reader.key[:reader.head.key_bytes] != key:
            raise ProtocolError(f"the cell of {key!r} is another key's")
        if reader.head.reset:
            self.reset(key, reader.head.reset)
        if reader.head.type:
            state = self.memory.restored(reader)
            clock.follow(max(written_at(state), reader.head.last))
            self.insert(key, state, state.size_bytes)
            if reader.expires:
                self.expire_at(key, reader.expires, written_at(state) or reader.head.last)
        self.memory.restored_as_it_is(key)
        return True

    # -- writes

    cdef Slot* write_register(self, const char* key, Py_ssize_t key_bytes, uint64_t hash, uint64_t stamp, uint64_t writer,
                              const char* payload, Py_ssize_t size, bytes held) except NULL:
        """Join a register's write into `key`, which has `hash`; return the key's slot. The hot path of `write`: no object is made for an existing key.

        The `size` bytes at `payload` are copied, unless they are those of `held`, which is then kept as it is.
        """
        cdef Slot* slot = self.states.slot_of(hash, key, key_bytes)
        cdef LWW state
        self.states.reach = min(size, <Py_ssize_t>REACH_MAX)
        if slot.key is NULL or type(<object>slot.state) is not LWW:
            return self.begin_register(slot, PyBytes_FromStringAndSize(key, key_bytes),
                                       LWW.make(stamp, writer, PyBytes_FromStringAndSize(payload, size) if held is None else held))
        state = <LWW>slot.state
        if state.loses_to(stamp, writer, payload, size) or (stamp == state.stamp and "tie-by-arrival" in PLANTED):
            if self.memory is not None:
                self.memory.changing(slot)
            self.size_bytes += size - PyBytes_GET_SIZE(state.payload)
            if held is None:
                state.become(stamp, writer, payload, size)
            else:
                state.stamp, state.writer, state.payload = stamp, writer, held
            if self.memory is not None:
                self.memory.changed(slot)
                if self.lost:
                    self.replace_lost(<bytes>slot.key, stamp)
        return slot

    cdef Slot* begin_register(self, Slot* slot, bytes key, LWW written) except NULL:
        """Join a register into a key of which no register is in memory."""
        if slot.key is NULL:
            return self.insert(key, written, 16 + PyBytes_GET_SIZE(written.payload))
        if type(<object>slot.state) is Cold and (<Cold>slot.state).number == LWW_NUMBER:
            return self.write_cold(slot, written)
        raise self.mismatch(key, <Lattice>slot.state, LWW)

    cdef Slot* insert(self, bytes key, Lattice state, Py_ssize_t size) except NULL:
        """Put a state of `size` encoded bytes, which is the store's from now on, under a key that is not there."""
        cdef Slot* slot = self.states.insert(key, state)
        self.size_bytes += PyBytes_GET_SIZE(key) + size
        if self.memory is None and type(state) is not LWW:
            self.objects_bytes += size
        if self.memory is not None:
            self.memory.added(slot)
            if self.lost and type(state) is LWW:
                self.replace_lost(key, (<LWW>state).stamp)
        return slot

    cdef int replace_lost(self, bytes key, uint64_t stamp) except -1:
        """A register of `key` was written at `stamp`, or deleted: what was lost of it is void, unless it was later."""
        cdef Cold lost = self.lost.get(key)
        if lost is not None and lost.number == LWW_NUMBER and lost.stamp <= stamp:
            self.recover(key)
        return 0

    cdef Slot* write_cold(self, Slot* slot, LWW written) except NULL:
        """Join a register into one that is cold. Only of two with one stamp the disk has to be asked for the greater."""
        cdef Cold cold = <Cold>slot.state
        cdef bytes key = <bytes>slot.key
        if (written.stamp, written.writer) < (cold.stamp, cold.writer):
            return slot
        if (written.stamp, written.writer) == (cold.stamp, cold.writer):
            self.write(key, written)
            return self.states.slot_of(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        self.size_bytes += <Py_ssize_t>written.size_bytes - cold.size
        self.memory.replace(slot, written)
        return slot

    cpdef Lattice read(self, bytes key):
        """Return the state of `key`, still owned by the store, or None when there is none. O(1), or a read of the disk."""
        cdef PyObject* found = self.states.find(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if found is NULL:
            return None
        return self.warm(key) if type(<object>found) is Cold else <Lattice>found

    cpdef Lattice look(self, bytes key):
        """`read` by somebody who looks at many keys once: what is cold stays so, and nothing counts as in use."""
        cdef Slot* slot = self.states.slot_of(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if slot.key is NULL:
            return None
        return self.fetched(key, <Cold>slot.state) if type(<object>slot.state) is Cold else <Lattice>slot.state

    cpdef Lattice warm(self, bytes key):
        """Bring a cold key's state back into memory and return it; None when it is lost."""
        cdef Slot* slot = self.states.slot_of(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        cdef Lattice state = self.fetched(key, <Cold>slot.state)
        if state is not None:
            self.memory.warm(slot, state)
        return state

    cdef Lattice fetched(self, bytes key, Cold cold):
        """Return a cold key's state from the disk. When it is not there as it was, the key is lost, and it is None."""
        cdef Lattice state = self.memory.load(key, cold)
        if state is None:
            self.remove(key)
            self.lost[key] = cold
            self.losses += 1
        return state

    cpdef object kind_of(self, bytes key):
        """Return the lattice type of what is under `key`, None when there is nothing; the disk is not asked."""
        cdef PyObject* found = self.states.find(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        return None if found is NULL else kind_of(<Lattice>found)

    cdef bint lost_later(self, bytes key, uint64_t stamp) except -1:
        """Whether a register of `key` was lost that is later than `stamp`."""
        cdef Cold lost = self.lost.get(key)
        return lost is not None and lost.stamp > stamp

    def recover(self, bytes key):
        """What was lost of `key` is back, or void."""
        self.lost.pop(key, None)

    cpdef Lattice write(self, bytes key, Lattice delta):
        """Join `delta` into `key` and return its state, still owned by the store. Raises LatticeTypeMismatch, and changes nothing."""
        cdef Lattice state = self.read(key)
        cdef Slot* slot = NULL
        cdef Py_ssize_t before
        if state is None:
            state = delta.copy()
            self.insert(key, state, state.size_bytes)
            return state
        if type(state) is not type(delta):
            raise self.mismatch(key, state, type(delta))
        if self.memory is not None:
            slot = self.states.slot_of(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            self.memory.changing(slot)
        before = state.size_bytes
        try:
            state.merge(delta)
        finally:
            before = <Py_ssize_t>state.size_bytes - before
            self.size_bytes += before
            if self.memory is None and type(state) is not LWW:
                self.objects_bytes += before
            if slot is not NULL:
                self.memory.changed(slot)
        return state

    def join_register(self, bytes key, LWW register):
        """`write` of a register, for whom its state afterwards does not matter: a cold one is not fetched to be overwritten."""
        self.write_register(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)),
                            register.stamp, register.writer, PyBytes_AS_STRING(register.payload), PyBytes_GET_SIZE(register.payload), register.payload)

    cpdef bint remove(self, bytes key) except -1:
        """Forget `key` without a trace; False when it was not there."""
        cdef Lattice state
        if self.memory is not None:
            self.leave_memory(key)
        state = self.states.pop(key)
        if state is None:
            return False
        self.size_bytes -= PyBytes_GET_SIZE(key) + <Py_ssize_t>state.size_bytes
        if self.memory is None and type(state) is not LWW:
            self.objects_bytes -= <Py_ssize_t>state.size_bytes
        return True

    cdef int leave_memory(self, bytes key) except -1:
        """`key` is about to be removed."""
        cdef Slot* slot = self.states.slot_of(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if slot.key is not NULL:
            self.memory.removing(slot)
        return 0

    def keys_now(self):
        """Return the list of all keys here, those of deletes and ends that are remembered too; in an order that depends on nothing but them."""
        keys = self.states.list_keys()
        if self.resets:
            keys += [key for key in self.resets if key not in self.states]
        if self.ended:
            keys += [key for key in self.ended if key not in self.states and key not in self.resets]
        return keys

    def drop(self, bytes key):
        """Forget `key` and all that is known of its past: it lives elsewhere."""
        self.remove(key)
        self.recover(key)
        self.pieces.pop(key, None)
        self.resets.pop(key, None)
        self.ended.pop(key, None)
        self.survived.pop(key, None)
        if self.forgotten is not None:
            self.forgotten.append(key)
        self.expire_at(key, 0, 0xFFFFFFFFFFFFFFFF)

    def mismatch(self, bytes key, Lattice state, got):
        """Return the error for a write of type `got` to `key`, which holds `state`."""
        return LatticeTypeMismatch.between(kind_of(state).__name__, got.__name__, key.decode("utf-8", "backslashreplace"))

    # -- deletes

    cpdef uint64_t reset_of(self, bytes key) except? 0xFFFFFFFFFFFFFFFF:
        """Return the stamp up to which all that was written to the key is over, 0 when nothing is or that is forgotten."""
        return max(<uint64_t>self.ended.get(key, 0), self.deleted_at(key)) if self.ended else self.deleted_at(key)

    cpdef uint64_t deleted_at(self, bytes key) except? 0xFFFFFFFFFFFFFFFF:
        """Return the stamp of the key's last delete, 0 when there was none or it is forgotten."""
        return <uint64_t>self.resets.get(key, 0) if self.resets else 0

    cpdef bint reset(self, bytes key, uint64_t stamp) except -1:
        """Delete what was written to `key` up to `stamp`; True when that was news."""
        cdef PyObject* state
        cdef Piece piece
        if stamp <= self.deleted_at(key):
            return False
        self.resets[key] = stamp
        self.resets_by_age.append((stamp, key))
        if self.memory is not None:
            self.memory.note(key)
            self.replace_lost(key, stamp)
        state = self.states.find(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if state is NULL or written_at(<Lattice>state) > stamp:
            return True
        self.remove(key)
        survivors = [piece for piece in self.pieces.pop(key, ()) if piece.last > stamp]
        if survivors:
            self.pieces[key] = survivors
            for piece in survivors:
                self.write(key, piece.state)
        return True

    cpdef Piece keep_piece(self, bytes key, uint64_t epoch, uint64_t last, Lattice state):
        """Remember what an epoch changed in `key`, until that epoch is stable. `state` is the piece's own from now on."""
        cdef Piece piece = Piece(epoch, last, state)
        self.pieces.setdefault(key, []).append(piece)
        self.pieces_of_epoch.setdefault(epoch, set()).add(key)
        return piece

    def fold(self, uint64_t floor, uint64_t stable):
        """Forget the pieces of the epochs up to `floor`: their order to any reset is settled. Join those of a key up to `stable`.

        Between the two, a node that is away may bring a reset that is older than some of them. They are one piece from then on, which
        stays whole if any write in it is later: a key costs one more state while a node is away.
        """
        for epoch in sorted([epoch for epoch in self.pieces_of_epoch if epoch <= stable]):
            for key in sorted(self.pieces_of_epoch.pop(epoch)):
                rest = [piece for piece in self.pieces.get(key, ()) if (<Piece>piece).epoch > floor]
                if rest:
                    self.pieces[key] = self.joined(key, rest, stable)
                else:
                    self.pieces.pop(key, None)

    def joined(self, bytes key, list pieces, uint64_t stable):
        """Return pieces of which those up to `stable` are one."""
        cdef Piece piece
        settled = [piece for piece in pieces if piece.epoch <= stable]
        if not settled:
            return pieces
        state = (<Piece>settled[0]).state.copy()
        for piece in settled[1:]:
            if type(piece.state) is type(state):
                state.merge(piece.state)
        epoch = max([piece.epoch for piece in settled])
        self.pieces_of_epoch.setdefault(epoch, set()).add(key)
        one = Piece(epoch, max([piece.last for piece in settled]), state)
        return [one, *[piece for piece in pieces if piece.epoch > stable]]

    def forget(self, uint64_t floor):
        """Forget the resets of the epochs up to `floor`; return how many."""
        cdef int count = 0
        while self.resets_by_age and epoch_of(self.resets_by_age[0][0]) <= floor:
            stamp, key = self.resets_by_age.popleft()
            if self.resets.get(key) == stamp:
                del self.resets[key]
                count += 1
                if self.forgotten is not None and key not in self.states:
                    self.forgotten.append(key)
        for key in [key for key, stamp in self.ended.items() if epoch_of(stamp) <= floor]:
            del self.ended[key]
            if self.forgotten is not None and key not in self.states:
                self.forgotten.append(key)
        for key in [key for key, stamp in self.survived.items() if epoch_of(stamp) <= floor]:
            del self.survived[key]
        return count

    cpdef bint settle_type(self, bytes key, object kind) except -1:
        """Whether a replica's state of type `kind` may be joined into `key`.

        Two owners may have begun one key with two types while they did not hear each other. The type with the lesser number stays, at every
        replica; what the other type held is kept in `quarantine`, for a human.
        """
        cdef object present = self.kind_of(key)
        if present is None or present is kind:
            return True
        if present.NUMBER < kind.NUMBER:
            return False
        self.quarantine[key] = self.read(key)
        self.remove(key)
        self.pieces.pop(key, None)
        return True

    # -- times to live

    def expire_at(self, bytes key, uint64_t expires_us, uint64_t stamp):
        """Let the write of `stamp` to `key` count as deleted from `expires_us` on (microseconds since 2020); 0: it stays.

        Nothing ends of a key that was written later: that write lives as it was told to, also where it arrived first.
        """
        before = self.expiries.get(key)
        if (before is not None and before[1] > stamp) or (expires_us and self.was_written_after(key, stamp)):
            return
        if before is not None:
            self.expiries_by_time.discard((before[0], key))
            del self.expiries[key]
        if self.memory is not None and (before is not None or expires_us):
            self.memory.note(key)
        if expires_us:
            self.expiries[key] = (expires_us, stamp)
            self.expiries_by_time.add((expires_us, key))

    def expiry_of(self, bytes key):
        """Return when the key's state counts as deleted; 0: never."""
        found = self.expiries.get(key)
        return 0 if found is None else found[0]

    def was_written_after(self, bytes key, uint64_t stamp):
        """Whether a write to `key` is known that is later than `stamp`; of what was folded none is."""
        cdef PyObject* found = self.states.find(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if found is not NULL and kind_of(<Lattice>found) is LWW:
            return written_at(<Lattice>found) > stamp
        if stamp <= <uint64_t>self.survived.get(key, 0):
            return True
        return any([(<Piece>piece).last > stamp for piece in self.pieces.get(key, ())])

    def expired(self, bytes key, uint64_t now_us):
        """Whether the key's state has outlived its time."""
        found = self.expiries.get(key)
        return found is not None and found[0] <= now_us

    def over(self, uint64_t now_us, int limit):
        """Return at most `limit` keys whose time has come."""
        return [key for expires_us, key in self.expiries_by_time.islice(0, limit) if expires_us <= now_us]

    def end_life(self, bytes key):
        """Delete a key whose time has come, as of the stamp of the write that gave it its time; return that.

        Each replica does so by itself. Of registers they agree: the reset has the stamp of the write, and a later one survives.
        Of other types see `anna.kvs.endings`.
        """
        kind = self.kind_of(key)
        _, stamp = self.expiries[key]
        if kind is None or kind is LWW:
            self.expire_at(key, 0, stamp)
            self.reset(key, stamp)
        else:
            self.end(key, stamp)
        self.recover(key)
        return stamp

    def end(self, bytes key, uint64_t stamp):
        """Let all that is here of a key that is no register be over, as what was written up to `stamp`."""
        self.ended[key] = max(stamp, self.ended.get(key, 0))
        self.survived.pop(key, None)
        if self.memory is not None:
            self.memory.note(key)
        self.expire_at(key, 0, 0xFFFFFFFFFFFFFFFF)
        self.remove(key)
        self.pieces.pop(key, None)

    def live_on(self, bytes key, uint64_t stamp):
        """The key did not end with the write of `stamp`, for a later one was to keep it alive: what is older may come back.

        It stays ended if it did with a later write.
        """
        if self.ended.get(key, 0) > stamp:
            return
        self.ended.pop(key, None)
        self.survived[key] = max(stamp, self.survived.get(key, 0))
        if self.kind_of(key) is not LWW:
            self.expire_at(key, 0, stamp)

    def check(self):
        """Assert the store's invariants: the byte account is exact, every value is a lattice state, every piece is part of its state."""
        total = objects = 0
        self.states.check()
        for key, state in self.states.items():
            assert isinstance(key, bytes) and isinstance(state, Lattice), (key, state)
            total += len(key) + state.size_bytes
            objects += state.size_bytes if self.memory is None and type(state) is not LWW else 0
        assert total == self.size_bytes, f"{total} bytes are stored, {self.size_bytes} are on account"
        assert objects == self.objects_bytes, f"{objects} bytes are of objects, {self.objects_bytes} on account"
        if self.memory is not None:
            self.memory.check()
        for key, pieces in self.pieces.items():
            state = self.look(key)
            assert pieces, key
            for piece in pieces:
                assert state is None or type(state) is not type(piece.state) or piece.state <= state, key
                assert key in self.pieces_of_epoch[piece.epoch], key
        assert sorted(self.expiries_by_time) == sorted((expires, key) for key, (expires, _) in self.expiries.items())
        assert self.ended.keys().isdisjoint(self.survived)
        assert set(self.resets.items()) <= {(key, stamp) for stamp, key in self.resets_by_age}
