"""Which states of a store are in memory and which are on the disk alone, where there are more of them than memory.

The one rule: a state leaves memory only while the disk has it, durably and exactly as it is. Its key stays, with all that is known of the
key's past, and a `Cold` in the state's place: type, length, hash, and of a register its stamp. That is enough to compare with other
workers, to tell which write is later and to overwrite a register, without the disk. Whoever needs the state has it fetched, and it is
served only if it is what it was when it left.

States leave by second chance: a hand goes round the slots and takes those that nobody has asked for since it came by last. What is new
or changed is *unkept* until a checkpoint has taken it to the disk, so a checkpoint writes those keys and no others. What
cannot leave in time is refused: `is_full`. Source: DESIGN §5 (tiers); docs/decisions/0016; Corbató 1968 (second chance).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

cimport cython

from anna.kvs.cells cimport CellReader
from anna.kvs.table cimport MARK_COLD, MARK_GATHERED, MARK_KEPT, MARK_SEEN, Slot, Table
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64
from anna.wire cimport LWW_HEADER_BYTES, LWW_NUMBER

from anna import config
from anna.errors import ProtocolError
from anna.lattices import REGISTRY

cdef Py_ssize_t KEY_COST = config.MEMORY_KEY_BYTES
cdef Py_ssize_t STATE_COST = config.MEMORY_STATE_BYTES
cdef Py_ssize_t UNKEPT_SHARE = config.MEMORY_UNKEPT_SHARE
cdef Py_ssize_t OBJECTS_FACTOR = config.MEMORY_OBJECTS_FACTOR
cdef Py_ssize_t COLD_MIN = config.COLD_STATE_BYTES_MIN
cdef Py_ssize_t COST_MIN = STATE_COST + COLD_MIN

cdef enum:
    # How many slots the hand passes when one state is to be made room for.
    STEPS = 1024


@cython.final
cdef class Cold(Lattice):
    """What stands for a state that is on the disk alone. It has the state's `size_bytes`, and can be neither read nor joined."""

    def __repr__(self):
        return f"Cold({kind_of(self).__name__}, {self.size:,} bytes)"

    @property
    def size_bytes(self):
        return self.size


cdef Cold cold_of(Lattice state):
    """Return what stands for `state`. O(size): it is hashed."""
    cdef Cold cold = Cold.__new__(Cold)
    cdef LWW register
    cdef bytes encoded
    cold.number = state.NUMBER
    if type(state) is LWW:
        register = <LWW>state
        cold.size = LWW_HEADER_BYTES + PyBytes_GET_SIZE(register.payload)
        cold.stamp = register.stamp
        cold.writer = register.writer
        cold.content_hash = hash64(PyBytes_AS_STRING(register.payload), PyBytes_GET_SIZE(register.payload))
        return cold
    encoded = state.encode()
    cold.size = PyBytes_GET_SIZE(encoded)
    cold.content_hash = hash64(PyBytes_AS_STRING(encoded), cold.size)
    return cold


cdef object kind_of(Lattice state):
    """Return the lattice type of a state that may be cold."""
    return REGISTRY[(<Cold>state).number] if type(state) is Cold else type(state)


cdef Py_ssize_t cost_of(Lattice state) except -1:
    """Return about how much memory a state takes: a register's bytes, or the objects of which another one consists."""
    cdef Py_ssize_t size
    if type(state) is Cold:
        return 0
    if type(state) is LWW:
        return STATE_COST + PyBytes_GET_SIZE((<LWW>state).payload)
    size = state.size_bytes
    return STATE_COST + OBJECTS_FACTOR * size


@cython.final
cdef class Memory:
    """The account of what a store has in memory, at most `limit_bytes`. `fetch(key)` returns the key's cells from the disk, None if it cannot.

    The store tells it of each change. `gather` and `kept` are a checkpoint's two ends; in between a state may change, and is unkept then.
    """

    def __init__(self, Table states, Py_ssize_t limit_bytes, fetch):
        assert len(states) == 0, "the marks of keys that are there already would be missing"
        self.states = states
        self.fetch = fetch
        self.limit_bytes = limit_bytes
        self.full_bytes = limit_bytes - limit_bytes // 8
        self.crowded_bytes = limit_bytes - limit_bytes // 16
        self.unkept = {}
        states.keep_marks()

    cdef Py_ssize_t resident(self) noexcept:
        return self.staying_bytes + self.warm_bytes

    @property
    def resident_bytes(self):
        """About how much memory keys and states take now."""
        return self.resident()

    @property
    def unkept_bytes(self):
        """About how much of that cannot leave yet."""
        return self.warm_bytes - self.kept_bytes

    @property
    def is_crowded(self):
        """Whether there is little room, and more will be when a checkpoint has what is unkept."""
        return self.resident() > self.crowded_bytes and self.unkept_bytes > self.limit_bytes // UNKEPT_SHARE

    @property
    def is_full(self):
        """Whether nothing more may be taken in until a checkpoint has let states leave."""
        return self.resident() > self.limit_bytes

    # -- what the store tells

    cdef int count(self, Slot* slot, int sign) except -1:
        """Add what the state in a slot takes to the account, or take it off."""
        cdef Py_ssize_t cost = cost_of(<Lattice>slot.state) * sign
        if cost * sign < COST_MIN:
            self.staying_bytes += cost
            return 0
        self.warm_bytes += cost
        if self.states.marks[slot - self.states.slots] & MARK_KEPT:
            self.kept_bytes += cost
        return 0

    cdef int added(self, Slot* slot) except -1:
        """A key has come, with its state."""
        self.staying_bytes += KEY_COST + PyBytes_GET_SIZE(<object>slot.key)
        if type(<object>slot.state) is Cold:
            self.cold_count += 1
            self.states.marks[slot - self.states.slots] = MARK_COLD | MARK_KEPT
        return self.changed(slot)

    cdef int changing(self, Slot* slot) except -1:
        """A state that is in memory is about to change, and may leave again only once the disk has it as it is then."""
        self.count(slot, -1)
        self.states.marks[slot - self.states.slots] = MARK_SEEN
        return 0

    cdef int changed(self, Slot* slot) except -1:
        """It has."""
        self.note(<bytes>slot.key)
        self.count(slot, 1)
        return self.cool(STEPS) if self.resident() > self.full_bytes else 0

    cdef int removing(self, Slot* slot) except -1:
        """A key is about to go, with its state."""
        self.note(<bytes>slot.key)
        self.count(slot, -1)
        self.staying_bytes -= KEY_COST + PyBytes_GET_SIZE(<object>slot.key)
        self.cold_count -= type(<object>slot.state) is Cold
        return 0

    # -- out of memory and back

    cdef int put(self, Slot* slot, Lattice state, int marks) except -1:
        """Let a state take the place of what is in the slot."""
        self.count(slot, -1)
        self.cold_count += (type(state) is Cold) - (type(<object>slot.state) is Cold)
        Py_INCREF(state)
        Py_DECREF(<object>slot.state)
        slot.state = <PyObject*>state
        self.states.marks[slot - self.states.slots] = marks
        return self.count(slot, 1)

    cdef int replace(self, Slot* slot, Lattice state) except -1:
        """Let a new state that the disk does not have take the place of a cold one."""
        self.note(<bytes>slot.key)
        self.put(slot, state, MARK_SEEN)
        return self.cool(STEPS)

    cdef int warm(self, Slot* slot, Lattice state) except -1:
        """Put a cold key's state back into its slot, after others have made room for it."""
        self.cool(STEPS, cost_of(state))
        return self.put(slot, state, MARK_SEEN | MARK_KEPT)

    cdef Lattice restored(self, CellReader reader):
        """Return the state of a cell that the disk has, or what stands for it. Raises ProtocolError."""
        cdef Cold cold
        cdef const char* content = reader.payload
        cdef Py_ssize_t size = reader.head.payload_bytes
        kind = REGISTRY.get(reader.head.type)
        if kind is None or (kind is LWW and size < LWW_HEADER_BYTES):
            raise ProtocolError(f"a state of lattice type {reader.head.type} and {size:,} bytes is not known to this worker")
        if size < COLD_MIN:
            return kind.decode(content[:size])
        cold = Cold.__new__(Cold)
        cold.number, cold.size = reader.head.type, size
        if kind is LWW:
            memcpy(&cold.stamp, content, 8)
            memcpy(&cold.writer, content + 8, 8)
            content += LWW_HEADER_BYTES
            size -= LWW_HEADER_BYTES
        cold.content_hash = hash64(content, size)
        return cold

    def restored_as_it_is(self, bytes key):
        """What is known of `key` is what the disk has."""
        cdef Slot* slot = self.slot_of(key)
        self.unkept.pop(key, None)
        if slot.key is not NULL and not self.states.marks[slot - self.states.slots] & MARK_KEPT:
            self.count(slot, -1)
            self.states.marks[slot - self.states.slots] |= MARK_KEPT
            self.count(slot, 1)

    cdef Lattice load(self, bytes key, Cold cold):
        """Return a cold key's state from the disk; None when it is not what it was."""
        cdef CellReader reader
        cdef const char* content
        cdef Py_ssize_t size
        cells = self.fetch(key)
        self.loads += 1
        if cells is None:
            return None
        try:
            reader = CellReader(cells)
            if not reader.next() or reader.head.type != cold.number or <Py_ssize_t>reader.head.payload_bytes != cold.size:
                return None
            content, size = reader.payload, reader.head.payload_bytes
            if cold.number == LWW_NUMBER:
                content += LWW_HEADER_BYTES
                size -= LWW_HEADER_BYTES
            if hash64(content, size) != cold.content_hash:
                return None
            return REGISTRY[cold.number].decode(reader.payload[:reader.head.payload_bytes])
        except ProtocolError:
            return None

    cpdef int cool(self, int steps, Py_ssize_t wanted=0) except -1:
        """Let states leave until there is room for `wanted` bytes more, going on by at most `steps` slots."""
        cdef size_t place
        cdef Slot* slot
        while steps and self.kept_bytes > 0 and self.resident() + wanted > self.full_bytes:
            steps -= 1
            self.hand = (self.hand + 1) & self.states.mask
            place = self.hand
            slot = &self.states.slots[place]
            if slot.key is NULL or self.states.marks[place] & (MARK_KEPT | MARK_COLD) != MARK_KEPT:
                continue
            if self.states.marks[place] & MARK_SEEN:
                self.states.marks[place] &= ~MARK_SEEN
            elif cost_of(<Lattice>slot.state) >= COST_MIN:
                self.put(slot, cold_of(<Lattice>slot.state), MARK_COLD | MARK_KEPT)
                self.evictions += 1
        return 0

    # -- checkpoints

    cpdef int note(self, bytes key) except -1:
        """Something of `key` has changed that the disk's checkpoint lacks."""
        self.unkept[key] = None
        return 0

    def note_again(self, keys):
        """A checkpoint has failed: the disk lacks what it gathered of `keys`."""
        for key in keys:
            self.note(key)

    def take_unkept(self):
        """Return the keys of which the disk lacks something, oldest first, and begin a new list of them."""
        unkept, self.unkept = self.unkept, {}
        return unkept

    def gather(self, bytes key):
        """A checkpoint takes a key's cell as it is now."""
        cdef Slot* slot = self.slot_of(key)
        if slot.key is not NULL:
            self.states.marks[slot - self.states.slots] |= MARK_GATHERED

    def keep(self, keys):
        """What a checkpoint gathered of `keys` is durable: those that have not changed since may leave, and do where there is no room."""
        cdef Slot* slot
        cdef bytes key
        cdef size_t place
        for key in keys:
            slot = self.slot_of(key)
            place = slot - self.states.slots
            if slot.key is NULL or not self.states.marks[place] & MARK_GATHERED:
                continue
            self.count(slot, -1)
            self.states.marks[place] = (self.states.marks[place] & ~MARK_GATHERED) | MARK_KEPT
            self.count(slot, 1)
        self.cool(<int>min(2 * (self.states.mask + 1), <size_t>1 << 30))

    cdef Slot* slot_of(self, bytes key) noexcept:
        return self.states.slot_of(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))

    def check(self):
        """Assert that the account is right, and that nothing is cold but what the disk has."""
        cdef size_t place
        cdef int mark
        account = self.staying_bytes, self.warm_bytes, self.kept_bytes, self.cold_count
        self.staying_bytes = self.warm_bytes = self.kept_bytes = self.cold_count = 0
        for place in range(self.states.mask + 1):
            if self.states.slots[place].key is NULL:
                continue
            mark = self.states.marks[place]
            self.staying_bytes += KEY_COST + PyBytes_GET_SIZE(<object>self.states.slots[place].key)
            self.count(&self.states.slots[place], 1)
            self.cold_count += type(<object>self.states.slots[place].state) is Cold
            assert bool(mark & MARK_COLD) == (type(<object>self.states.slots[place].state) is Cold), <object>self.states.slots[place].key
            assert mark & MARK_KEPT or not mark & MARK_COLD, <object>self.states.slots[place].key
        counted = self.staying_bytes, self.warm_bytes, self.kept_bytes, self.cold_count
        assert counted == account, f"counted {counted}, on account {account}"
