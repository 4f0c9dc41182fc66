"""LWW: a register that keeps the last write.

The one rule: states are ordered by (stamp, writer, payload), totally, and join takes the greater. Ordering by stamp
alone is not commutative at a tie: each replica would keep whichever write reached it first, for ever. The state is
the encoded value, not the object, so what was put is a snapshot and the store never decodes it. Source: DESIGN §3.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

cimport cython

from anna.codec cimport decode_value, encode_value
from anna.lattices.base cimport Lattice, expect

from anna.errors import ProtocolError

cdef extern from *:
    """
    #pragma GCC diagnostic push
    #pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    /* Whether nobody but one owner can see these bytes, and there are so many of them. CPython keeps those of 0 and 1 byte for everybody. */
    static inline int anna_is_own(PyObject* held, Py_ssize_t size) {
        return size > 1 && Py_REFCNT(held) == 1 && PyBytes_GET_SIZE(held) == size && ((PyBytesObject*)held)->ob_shash == -1;
    }
    #pragma GCC diagnostic pop
    """
    bint is_own "anna_is_own"(PyObject* held, Py_ssize_t size) noexcept

cdef enum:
    HEADER_BYTES = 16


@cython.final
@cython.no_gc
cdef class LWW(Lattice):
    """A last-writer-wins register.

    `LWW(value)` has no stamp yet: the worker that accepts it assigns its own (DESIGN §4). `LWW(value, stamp, writer)`
    is a write that was placed in history already.

    >>> a, b = LWW("draft", stamp=7, writer=1), LWW("final", stamp=7, writer=2)
    >>> a.join(b).value, b.join(a).value
    ('final', 'final')
    """

    NUMBER = 1

    def __init__(self, value=None, uint64_t stamp=0, uint64_t writer=0):
        self.stamp = stamp
        self.writer = writer
        self.payload = encode_value(value) if stamp or writer or value is not None else b""

    @staticmethod
    cdef LWW make(uint64_t stamp, uint64_t writer, bytes payload):
        cdef LWW state = LWW.__new__(LWW)
        state.stamp = stamp
        state.writer = writer
        state.payload = payload
        return state

    @staticmethod
    def of(value):
        """Return an unstamped register that holds `value`, None included (`LWW()` is the bottom)."""
        return LWW.make(0, 0, encode_value(value))

    @classmethod
    def decode(cls, data):
        cdef bytes raw = bytes(data)
        cdef uint64_t head[2]
        if PyBytes_GET_SIZE(raw) < HEADER_BYTES:
            raise ProtocolError(f"an LWW has at least {HEADER_BYTES} bytes, got {len(raw)}")
        memcpy(head, PyBytes_AS_STRING(raw), HEADER_BYTES)
        if (head[0] or head[1]) and PyBytes_GET_SIZE(raw) == HEADER_BYTES:
            raise ProtocolError(f"an LWW with stamp {head[0]} and writer {head[1]} has no value; None is one byte")
        return LWW.make(head[0], head[1], raw[HEADER_BYTES:])

    cpdef bytes encode(self):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.payload)
        cdef bytes result = PyBytes_FromStringAndSize(NULL, HEADER_BYTES + size)
        cdef uint64_t[2] head = [self.stamp, self.writer]
        cdef char* target = PyBytes_AS_STRING(result)
        memcpy(target, head, HEADER_BYTES)
        memcpy(target + HEADER_BYTES, PyBytes_AS_STRING(self.payload), size)
        return result

    cpdef object read(self, bint allow_pickle):
        return decode_value(self.payload, allow_pickle) if self.payload else None

    @property
    def size_bytes(self):
        return HEADER_BYTES + PyBytes_GET_SIZE(self.payload)

    cpdef Lattice copy(self):
        return LWW.make(self.stamp, self.writer, self.payload)

    cdef bint loses_to(self, uint64_t stamp, uint64_t writer, const char* payload, Py_ssize_t size) noexcept:
        """Whether a write is greater."""
        cdef Py_ssize_t own
        cdef int order
        if self.stamp != stamp:
            return self.stamp < stamp
        if self.writer != writer:
            return self.writer < writer
        own = PyBytes_GET_SIZE(self.payload)
        order = memcmp(PyBytes_AS_STRING(self.payload), payload, min(own, size))
        return own < size if order == 0 else order < 0

    cdef int become(self, uint64_t stamp, uint64_t writer, const char* payload, Py_ssize_t size) except -1:
        """Be a write of `size` bytes from now on, whose bytes are copied: over those of before where they fit, which nobody else may see.

        To free an object that was written long ago, and to make another, costs more than all else that a write does to a key.
        """
        self.stamp = stamp
        self.writer = writer
        if is_own(<PyObject*>self.payload, size):
            memcpy(<char*>PyBytes_AS_STRING(self.payload), payload, size)
        else:
            self.payload = PyBytes_FromStringAndSize(payload, size)
        return 0

    cpdef bint merge(self, Lattice other) except -1:
        expect(self, other)
        cdef LWW that = <LWW>other
        if not self.loses_to(that.stamp, that.writer, PyBytes_AS_STRING(that.payload), PyBytes_GET_SIZE(that.payload)):
            return False
        self.stamp, self.writer, self.payload = that.stamp, that.writer, that.payload
        return True

    cpdef bint precedes(self, Lattice other) except -1:
        expect(self, other)
        cdef LWW that = <LWW>other
        return not that.loses_to(self.stamp, self.writer, PyBytes_AS_STRING(self.payload), PyBytes_GET_SIZE(self.payload))

    cpdef Lattice assign(self, Lattice current, uint64_t stamp, uint64_t writer):
        if self.stamp or self.writer:
            return self
        return LWW.make(stamp, writer, self.payload)

    def as_prepared(self, Lattice current, uint64_t writer):
        return self

    def as_request(self, uint64_t first):
        return LWW.make(0, 0, self.payload) if self.writer >= first else self

    def set(self, value, uint64_t stamp, uint64_t writer):
        """Return the delta of writing `value` at `stamp`; joining it in is the write."""
        return LWW.make(stamp, writer, encode_value(value))
