"""Priority: the value with the least priority.

The one rule: states are ordered by (priority, value bytes), totally, and join takes the least. Keeping the first of
two values with equal priorities, as others do, is not commutative: replicas would differ for ever. Priorities are
places in the order of `anna.lattices.ordering`: numbers exactly, infinities too, or tuples of them.

Encoding: the priority's order key after its length, then the encoded value; nothing at the bottom. Source: DESIGN §3.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy

cimport cython

from anna.codec cimport decode_value, encode_value
from anna.lattices.base cimport Lattice, expect
from anna.lattices.ordering cimport check_order_key, from_order_key
from anna.lattices.place cimport place_of
from anna.layout cimport Reader, reader_of, sized_bytes, take_sized, write_sized

from anna.errors import ProtocolError


@cython.final
@cython.no_gc
cdef class Priority(Lattice):
    """A value and its priority; the least priority wins, and at a tie the value whose encoding is less.

    >>> best = Priority(17.2, "over the shelf").join(Priority(16, "under it"))
    >>> best.value, best.priority
    ('under it', 16)
    >>> best.join(best.update(20, "around it")) == best
    True
    """

    NUMBER = 10

    cdef readonly bytes key
    cdef readonly bytes payload

    def __init__(self, *arguments):
        if not arguments:
            self.key = self.payload = b""
            return
        priority, value = arguments
        self.key = place_of(priority)
        self.payload = encode_value(value)

    @classmethod
    def decode(cls, data):
        cdef bytes raw = bytes(data)
        cdef Reader reader = reader_of(raw)
        cdef bytes key
        if not raw:
            return _of(b"", b"")
        key = take_sized(&reader)
        check_order_key(key)
        if reader.next == reader.end:
            raise ProtocolError(f"a Priority of {len(raw):,} bytes has no value")
        return _of(key, reader.next[:reader.end - reader.next])

    cpdef bytes encode(self):
        cdef bytes result
        if not self.key:
            return b""
        result = PyBytes_FromStringAndSize(NULL, self.size_bytes)
        memcpy(
            write_sized(PyBytes_AS_STRING(result), self.key),
            PyBytes_AS_STRING(self.payload),
            PyBytes_GET_SIZE(self.payload),
        )
        return result

    cpdef object read(self, bint allow_pickle):
        return decode_value(self.payload, allow_pickle) if self.key else None

    @property
    def priority(self):
        """The priority of the value, None at the bottom."""
        return from_order_key(self.key) if self.key else None

    @property
    def size_bytes(self):
        return sized_bytes(self.key) + PyBytes_GET_SIZE(self.payload) if self.key else 0

    cpdef Lattice copy(self):
        return _of(self.key, self.payload)

    cpdef bint merge(self, Lattice other) except -1:
        expect(self, other)
        cdef Priority that = <Priority>other
        if that.precedes(self):
            return False
        self.key, self.payload = that.key, that.payload
        return True

    cpdef bint precedes(self, Lattice other) except -1:
        expect(self, other)
        cdef Priority that = <Priority>other
        if not self.key or not that.key:
            return not self.key
        if self.key != that.key:
            return that.key < self.key
        return that.payload <= self.payload

    def update(self, priority, value):
        """Return the delta that offers `value` at `priority`."""
        return Priority(priority, value)

    def __repr__(self):
        return f"Priority({self.priority!r}, {self.value!r})" if self.key else "Priority()"


cdef Priority _of(bytes key, bytes payload):
    cdef Priority result = Priority.__new__(Priority)
    result.key = key
    result.payload = payload
    return result
