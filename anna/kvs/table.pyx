"""Key bytes to states: a hash table that a batch of requests can be announced to.

The one rule: open addressing with linear probing, at most five eighths full, so a key is found in the run of slots that begins at its
hash. With a hundred thousand keys a look-up is four cache misses in a row (slot, key, state, payload); a dict leaves no way to begin
the next key's before this one's have ended. Here a worker announces the keys of the frames that have arrived, stage by stage, and the
misses of sixteen keys overlap. The hash is the ring's (XXH64), known to clients: who may write may also choose colliding keys.

Where values may leave memory (`anna.kvs.memory`) each slot has a byte of marks beside it; elsewhere there are none, and a look-up pays one
branch for that.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

cimport cython

from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64

from sortedcontainers import SortedList

cdef extern from *:
    void __builtin_prefetch(const void* place) nogil

cdef extern from "Python.h":
    # Of a key that is borrowed: a look-up must not write to it, not even a count of references.
    const char* bytes_of "PyBytes_AS_STRING"(PyObject* key) noexcept nogil
    Py_ssize_t size_of "PyBytes_GET_SIZE"(PyObject* key) noexcept nogil

cdef enum:
    SLOTS_FIRST = 64
    # Of eight slots at most five are used.
    EIGHTHS_USED_MAX = 5
    # Within a short key and within a register, both of which are read to there.
    OBJECT_END = 47
    LINE = 64
    # What stands in memory before the bytes of a bytes object.
    BYTES_HEADER = 32


@cython.final
@cython.no_gc
cdef class Table:
    """States by key. Read as a mapping by tests and by `check`; written by the store alone."""

    def __cinit__(self):
        self.slots = <Slot*>calloc(SLOTS_FIRST, sizeof(Slot))
        if self.slots is NULL:
            raise MemoryError("no memory for a table of keys")
        self.mask = SLOTS_FIRST - 1
        self.used = 0
        self.ordered = None
        self.marks = NULL
        self.reach = 0

    def __dealloc__(self):
        cdef size_t place
        for place in range(self.mask + 1):
            if self.slots[place].key is not NULL:
                Py_DECREF(<object>self.slots[place].key)
                Py_DECREF(<object>self.slots[place].state)
        free(self.slots)
        free(self.marks)

    cdef int keep_marks(self) except -1:
        """Keep marks of the slots from now on, all 0 at first."""
        self.marks = <uint8_t*>calloc(self.mask + 1, 1)
        if self.marks is NULL:
            raise MemoryError(f"no memory for the marks of {self.mask + 1:,} slots")
        return 0

    cdef Slot* slot_of(self, uint64_t hash, const char* key, Py_ssize_t size) noexcept:
        """Return the slot that holds `key`, or the empty one where it would go."""
        cdef size_t place = hash & self.mask
        cdef Slot* slot
        while True:
            slot = &self.slots[place]
            if slot.key is NULL:
                return slot
            if slot.hash == hash and size_of(slot.key) == size and memcmp(bytes_of(slot.key), key, size) == 0:
                return slot
            place = (place + 1) & self.mask

    cdef PyObject* find(self, const char* key, Py_ssize_t size) noexcept:
        """Return the state under a key, borrowed, or NULL. O(1)."""
        cdef Slot* slot = self.slot_of(hash64(key, size), key, size)
        if self.marks is not NULL:
            self.marks[slot - self.slots] |= MARK_SEEN
        return slot.state

    cdef Slot* insert(self, bytes key, Lattice state) except NULL:
        """Put `state` under a key that is not there yet; return its slot, valid until the next key comes or goes. O(1), now and then O(keys)."""
        cdef uint64_t hash = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        cdef Slot* slot
        if <size_t>(self.used + 1) * 8 > (self.mask + 1) * EIGHTHS_USED_MAX:
            self.resize()
        slot = self.slot_of(hash, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        assert slot.key is NULL, "the key is in the table already"
        Py_INCREF(key)
        Py_INCREF(state)
        slot.hash = hash
        slot.key = <PyObject*>key
        slot.state = <PyObject*>state
        slot.sent_round = 0
        slot.logged_round = 0
        if self.marks is not NULL:
            self.marks[slot - self.slots] = MARK_SEEN
        self.used += 1
        if self.ordered is not None:
            self.ordered.add(key)
        return slot

    cdef Lattice pop(self, bytes key):
        """Take a key out and return its state, or None."""
        cdef Slot* slot = self.slot_of(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        cdef PyObject* held
        cdef Lattice state
        cdef size_t hole, place, home
        if slot.key is NULL:
            return None
        state = <Lattice>slot.state
        held = slot.key
        # Close the hole: each slot of the run after it that may move back moves back, so that no look-up ends too early.
        hole = slot - self.slots
        place = (hole + 1) & self.mask
        while self.slots[place].key is not NULL:
            home = self.slots[place].hash & self.mask
            if ((place - home) & self.mask) >= ((place - hole) & self.mask):
                self.slots[hole] = self.slots[place]
                if self.marks is not NULL:
                    self.marks[hole] = self.marks[place]
                hole = place
            place = (place + 1) & self.mask
        self.slots[hole].key = NULL
        self.slots[hole].state = NULL
        self.used -= 1
        if self.ordered is not None:
            self.ordered.remove(key)
        Py_DECREF(<object>held)
        Py_DECREF(state)
        return state

    cdef int resize(self) except -1:
        """Double the slots."""
        cdef size_t count = (self.mask + 1) * 2
        cdef Slot* old = self.slots
        cdef Slot* larger = <Slot*>calloc(count, sizeof(Slot))
        cdef uint8_t* marks = NULL if self.marks is NULL else <uint8_t*>calloc(count, 1)
        cdef size_t place, end = self.mask + 1, target
        if larger is NULL or (marks is NULL and self.marks is not NULL):
            free(larger)
            free(marks)
            raise MemoryError(f"no memory for {count:,} slots of a table of keys")
        for place in range(end):
            if old[place].key is not NULL:
                target = old[place].hash & (count - 1)
                while larger[target].key is not NULL:
                    target = (target + 1) & (count - 1)
                larger[target] = old[place]
                if marks is not NULL:
                    marks[target] = self.marks[place]
        free(self.marks)
        self.slots = larger
        self.marks = marks
        self.mask = count - 1
        free(old)
        return 0

    cdef void announce(self, const uint64_t* hashes, int count) noexcept:
        """Begin to fetch what is under `count` keys from memory, stage by stage, so that their misses overlap."""
        cdef int index
        for index in range(count):
            self.prefetch_slot(hashes[index])
        for index in range(count):
            self.prefetch_entry(hashes[index])
        for index in range(count):
            self.prefetch_payload(hashes[index])

    cdef void prefetch_slot(self, uint64_t hash) noexcept:
        """First stage of announcing a key: its slot."""
        __builtin_prefetch(&self.slots[hash & self.mask])

    cdef void prefetch_entry(self, uint64_t hash) noexcept:
        """Second stage: the key's bytes and the state."""
        cdef size_t place = hash & self.mask
        while self.slots[place].key is not NULL:
            if self.slots[place].hash == hash:
                # Objects begin at any 16 bytes, so one that is no longer than a line of the cache may lie in two.
                __builtin_prefetch(self.slots[place].key)
                __builtin_prefetch(<const char*>self.slots[place].key + OBJECT_END)
                __builtin_prefetch(self.slots[place].state)
                __builtin_prefetch(<const char*>self.slots[place].state + OBJECT_END)
                return
            place = (place + 1) & self.mask

    cdef void prefetch_payload(self, uint64_t hash) noexcept:
        """Third stage: the bytes of a register, as many as the last one had that was written: values of one store tend to be alike."""
        cdef size_t place = hash & self.mask
        cdef const char* line
        cdef const char* end
        while self.slots[place].key is not NULL:
            if self.slots[place].hash == hash:
                if type(<object>self.slots[place].state) is LWW:
                    line = <const char*><PyObject*>(<LWW>self.slots[place].state).payload
                    end = line + BYTES_HEADER + self.reach
                    while line < end:
                        __builtin_prefetch(line)
                        line += LINE
                return
            place = (place + 1) & self.mask

    def __len__(self):
        return self.used

    def __contains__(self, bytes key):
        return self.find(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)) is not NULL

    def __getitem__(self, bytes key):
        cdef PyObject* state = self.find(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if state is NULL:
            raise KeyError(key)
        return <object>state

    def after(self, bytes begin, bytes cursor, int limit):
        """Return at most `limit` keys that begin with `begin` and are greater than `cursor`, ascending.

        The first call orders all keys, in O(keys · log keys) and 8 bytes each; from then on the order is kept.
        """
        found = []
        if self.ordered is None:
            self.ordered = SortedList([<object>self.slots[place].key for place in range(self.mask + 1) if self.slots[place].key is not NULL])
        least = max(begin, cursor)
        for key in self.ordered.irange(least):
            if not key.startswith(begin) or len(found) == limit:
                break
            if key > cursor:
                found.append(key)
        return found

    cdef list list_keys(self):
        """Return the keys, in the order of their slots."""
        cdef size_t place
        return [<object>self.slots[place].key for place in range(self.mask + 1) if self.slots[place].key is not NULL]

    def items(self):
        """Return {key: state} as it is now, by ascending key."""
        return dict(sorted([
            (<object>self.slots[place].key, <object>self.slots[place].state)
            for place in range(self.mask + 1) if self.slots[place].key is not NULL
        ], key=lambda pair: pair[0])).items()

    def __iter__(self):
        return iter([key for key, _ in self.items()])

    def keys(self):
        """Return the set of keys as it is now."""
        return {key for key, _ in self.items()}

    def values(self):
        """Return the states as they are now, by ascending key."""
        return [state for _, state in self.items()]

    def check(self):
        """Assert that every key is found where look-ups begin, and that the count is right."""
        count = 0
        for place in range(self.mask + 1):
            if self.slots[place].key is NULL:
                assert self.slots[place].state is NULL, place
                continue
            count += 1
            key = <object>self.slots[place].key
            assert self.slots[place].hash == hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), key
            assert self.slot_of(self.slots[place].hash, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)) == &self.slots[place], key
        assert count == self.used, (count, self.used)
        assert self.ordered is None or list(self.ordered) == sorted(self.keys()), "the order of the keys is not theirs"
        assert self.used * 8 <= (self.mask + 1) * EIGHTHS_USED_MAX
