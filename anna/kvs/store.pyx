"""The states of one worker's keys, in memory.

The one rule: a key keeps the lattice type of its first write, and its state only grows, until the key is deleted. Existence is
the key's being here, never its value: empty bytes, empty sets and None are values. States are merged in place, so nobody else
may hold a reference to one; what leaves the store leaves encoded, or as a copy.
"""

from libc.stdint cimport uint64_t

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject

from anna.kvs.table cimport Table
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW

from anna.errors import LatticeTypeMismatch


@cython.final
cdef class Store:
    """Key bytes to lattice states, with an account of their bytes (keys and states; not the interpreter's overhead)."""

    def __init__(self):
        self.states = Table()
        self.size_bytes = 0

    def __len__(self):
        return len(self.states)

    cdef int write_register(self, const char* key, Py_ssize_t key_bytes, uint64_t stamp, uint64_t writer, bytes payload) except -1:
        """Join a register's write into `key`. The hot path of `write`: no delta object is made for an existing key."""
        cdef PyObject* found = self.states.find(key, key_bytes)
        cdef LWW state
        if found is NULL:
            self.states.insert(PyBytes_FromStringAndSize(key, key_bytes), LWW.make(stamp, writer, payload))
            self.size_bytes += key_bytes + 16 + PyBytes_GET_SIZE(payload)
            return 0
        if type(<object>found) is not LWW:
            raise self.mismatch(PyBytes_FromStringAndSize(key, key_bytes), <Lattice>found, LWW)
        state = <LWW>found
        if state.loses_to(stamp, writer, payload):
            self.size_bytes += PyBytes_GET_SIZE(payload) - PyBytes_GET_SIZE(state.payload)
            state.stamp = stamp
            state.writer = writer
            state.payload = payload
        return 0

    cpdef Lattice read(self, bytes key):
        """Return the state of `key`, still owned by the store, or None when there is none. O(1)."""
        cdef PyObject* found = self.states.find(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        return None if found is NULL else <Lattice>found

    cpdef Lattice write(self, bytes key, Lattice delta):
        """Join `delta` into `key` and return its state, still owned by the store. Raises LatticeTypeMismatch, and changes nothing."""
        cdef Lattice state = self.read(key)
        cdef Py_ssize_t before
        if state is None:
            state = delta.copy()
            self.states.insert(key, state)
            self.size_bytes += PyBytes_GET_SIZE(key) + <Py_ssize_t>state.size_bytes
            return state
        if type(state) is not type(delta):
            raise self.mismatch(key, state, type(delta))
        before = state.size_bytes
        state.merge(delta)
        self.size_bytes += <Py_ssize_t>state.size_bytes - before
        return state

    cpdef bint remove(self, bytes key) except -1:
        """Forget `key`; False when it was not there."""
        cdef Lattice state = self.states.pop(key)
        if state is None:
            return False
        self.size_bytes -= PyBytes_GET_SIZE(key) + <Py_ssize_t>state.size_bytes
        return True

    def mismatch(self, bytes key, Lattice state, got):
        """Return the error for a write of type `got` to `key`, which holds `state`."""
        return LatticeTypeMismatch.between(type(state).__name__, got.__name__, key.decode("utf-8", "backslashreplace"))

    def check(self):
        """Assert the store's invariants: the byte account is exact and every value is a lattice state."""
        total = 0
        self.states.check()
        for key, state in self.states.items():
            assert isinstance(key, bytes) and isinstance(state, Lattice), (key, state)
            total += len(key) + state.size_bytes
        assert total == self.size_bytes, f"{total} bytes are stored, {self.size_bytes} are on account"
