"""What a cache keeps: the newest word of the owners that push it, large values where executors map them, and no more bytes than it may.

The one rule: what is kept is what is subscribed to, absence too. A key is kept only while an owner pushes it; when the owner is gone, or the key is given up, it is
forgotten. Beyond `bytes_max` those keys are given up that were not read lately, oldest first. Where `delays` is set, what others wrote is taken up at `refresh` only,
what this node writes at once.

A large value is not kept here but in memory that executors can map: a `keeper` puts its bytes there, and what is kept, and answered with, is a register of
the same stamp that says where they are. They never change: another state of the key is other bytes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memcpy

from anna.kvs.clock cimport Clock
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.wire cimport *
from cloudburst.cache.flights cimport Flights

from itertools import islice

from anna.errors import ProtocolError
from anna.lattices import REGISTRY

cdef enum:
    TAG_ELSEWHERE = 10


cdef class Kept(Flights):
    """The keys of a cache: `subscribed` says which owner pushes each, `absent` which have no value, `touched` which were read lately."""

    def __init__(self, view, owners, Clock clock, Py_ssize_t bytes_max, keeper, Py_ssize_t shared_bytes_max):
        super().__init__(view, owners, clock)
        self.bytes_max = bytes_max
        self.keeper = keeper
        self.shared_bytes_min = 0 if keeper is None else keeper.bytes_min
        self.shared = {}
        self.shared_bytes = 0
        self.shared_bytes_max = shared_bytes_max
        self.delays = False
        self.forget_all()

    cdef int replace(self, bytes name, int status, int kind, bytes payload) except -1:
        """Keep an owner's newest word on a key. Who watches it is told unless it is what is known already, as the word on this node's own write is."""
        cdef Lattice known = self.store.read(name) if name in self.subscribers else None
        self.store.remove(name)
        if status == STATUS_MISSING:
            self.unshare(name)
            self.absent.add(name)
        else:
            self.absent.discard(name)
            self.store.write(name, self.share(name, REGISTRY[kind].decode(payload)))
            if known is not None and known == self.store.read(name):
                return 0
        return self.note(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))

    cdef Lattice share(self, bytes name, Lattice state):
        """Return what is kept of the state of a key: itself, or, when it is a large value, where that is."""
        cdef LWW register
        former = self.shared.get(name)
        where = None
        if self.keeper is not None and type(state) is LWW and len((<LWW>state).payload) >= self.shared_bytes_min:
            register = <LWW>state
            where = self.keeper.keep(register.payload, None if former is None else former[0])
        self.unshare(name)
        if where is None:
            return state
        self.shared[name] = (where, len(register.payload))
        self.shared_bytes += len(register.payload)
        return LWW.make(register.stamp, register.writer, bytes((TAG_ELSEWHERE,)) + where)

    cdef int unshare(self, bytes name) except -1:
        """Let go of the large value of a key, if it has one."""
        found = self.shared.pop(name, None)
        if found is not None:
            self.shared_bytes -= found[1]
            self.keeper.drop(found[0])
        return 0

    cdef int take_push(self, uint64_t owner, int status, int kind, bytes payload) except -1:
        cdef uint16_t key_bytes
        cdef bytes name
        if PyBytes_GET_SIZE(payload) < 2:
            raise ProtocolError("a push has no key")
        memcpy(&key_bytes, PyBytes_AS_STRING(payload), 2)
        name = payload[2:2 + key_bytes]
        self.pushed += 1
        if self.subscribed.get(name) == owner:
            if self.delays:
                self.delayed[name] = (status, kind, payload[2 + key_bytes:])
                return 0
            self.replace(name, status, kind, payload[2 + key_bytes:])
            self.evict()
        return 0

    cdef int catch_up(self, bytes name) except -1:
        """Take up what was pushed of a key and is delayed: what comes next is said of a later state."""
        found = self.delayed.pop(name, None)
        if found is not None:
            self.replace(name, found[0], found[1], found[2])
        return 0

    def refresh(self):
        """Take up everything that is delayed."""
        for name in list(self.delayed):
            self.catch_up(name)
        self.evict()

    cdef int evict(self) except -1:
        """Give up keys until the cache fits its bytes."""
        while (self.store.size_bytes > self.bytes_max or self.shared_bytes > self.shared_bytes_max) and self.subscribed:
            self.drop_oldest()
        return 0

    cdef int drop_oldest(self) except -1:
        """Give up the oldest key, or keep it for another round if it was read since the last one."""
        name = next(iter(self.subscribed))
        if name in self.touched:
            self.touched.discard(name)
            self.subscribed[name] = self.subscribed.pop(name)
            return 0
        self.evicted += 1
        return self.unsubscribe(name)

    cdef int unsubscribe(self, bytes name) except -1:
        self.send(OP_UNSUBSCRIBE, 0, FLAG_SYSTEM, name, b"")
        return self.forget(name)

    cdef int forget_owner(self, uint64_t owner) except -1:
        """Forget what this owner pushed."""
        for name in [name for name, pushing in self.subscribed.items() if pushing == owner]:
            self.forget(name)
        return 0

    cdef int forget(self, bytes name) except -1:
        self.store.remove(name)
        self.unshare(name)
        self.absent.discard(name)
        self.touched.discard(name)
        self.subscribed.pop(name, None)
        self.delayed.pop(name, None)
        return 0

    def forget_all(self):
        """Forget every key."""
        for name in list(self.store.states):
            self.store.remove(name)
            self.unshare(name)
        self.subscribed = {}
        self.delayed = {}
        self.absent = set()
        self.touched = set()

    def newest_keys(self, Py_ssize_t most):
        """Return up to `most` keys that have a value here, those that were first read last."""
        return [name for name in islice(reversed(self.subscribed), most) if name not in self.absent]

    def check(self):
        """Assert the invariants of what is kept."""
        super().check()
        self.store.check()
        assert self.store.states.keys() | self.absent == self.subscribed.keys(), "what is kept is not what is subscribed to"
        assert self.delayed.keys() <= self.subscribed.keys(), "what is delayed is of a key that is not kept"
        assert self.shared.keys() <= self.store.states.keys(), "a value is shared of a key that is not kept"
        assert self.shared_bytes == sum(size for _, size in self.shared.values()), "bytes of shared values are miscounted"
        assert not self.store.states.keys() & self.absent, "a key is both present and absent"
