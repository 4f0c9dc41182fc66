"""OrderedSet: elements in order, all of them or the n greatest.

The one rule: a limit is part of the state, and join takes the lesser of two limits. Then whatever one replica
dropped, the join would have dropped too, and it is a lattice; with the greater limit the result would depend on who
dropped what before. So a limit can be lowered and never raised, and no limit, which is what a plain delta has, is the
bottom of that order.

Elements are kept as order keys (`anna.lattices.ordering`): comparing bytes is comparing values. Up to `LIST_MAX` of
them are a plain list, where a search and a shift cost well under a microsecond; more are a
`sortedcontainers.SortedList`. A delta that cannot reach the n greatest costs one comparison per element.

Encoding: the limit as a varint, 0 for none, then the order keys ascending, each after its length. Source: DESIGN §3.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

cimport cython

from anna.lattices.base cimport Lattice, expect
from anna.lattices.elements cimport expect_after
from anna.lattices.ordering cimport check_order_key, from_order_key, order_key
from anna.lattices.place cimport place_of
from anna.layout cimport (
    Reader,
    reader_of,
    sized_bytes,
    take_sized,
    take_varint,
    varint_bytes,
    write_sized,
    write_varint,
)

from bisect import bisect_left

from anna.errors import ProtocolError

cdef enum:
    LIST_MAX = 2048

cdef Py_ssize_t LIMIT_MAX = 0x7FFFFFFF
cdef Py_ssize_t UNLIMITED = LIMIT_MAX + 1


@cython.final
cdef class OrderedSet(Lattice):
    """A grow-only set of values in their order; with a limit n, the n greatest of all that were ever added.

    >>> timeline = OrderedSet([(17, "b"), (11, "a")], limit=2)
    >>> timeline.join(timeline.add((23, "c"))).value
    [(17, 'b'), (23, 'c')]
    >>> OrderedSet(range(100)).range(10, 90, count=3, reverse=True)
    [89, 88, 87]
    """

    NUMBER = 8

    cdef list few  # the order keys while they are few, then None
    cdef object many  # then a SortedList of them
    cdef Py_ssize_t most  # the limit
    cdef Py_ssize_t key_bytes

    def __cinit__(self):
        self.few = []
        self.most = UNLIMITED

    def __init__(self, values=(), limit=None):
        if isinstance(values, (str, bytes)):
            raise TypeError(f"expected several elements, got one {type(values).__name__}: put it into a list")
        if limit is not None:
            if not 1 <= limit <= LIMIT_MAX:
                raise ValueError(f"the limit of an OrderedSet is 1 to {LIMIT_MAX:,}, got {limit}")
            self.most = limit
        self.replace(sorted({place_of(value) for value in values}))
        self.trim()

    @classmethod
    def decode(cls, data):
        cdef bytes raw = bytes(data)
        cdef Reader reader = reader_of(raw)
        cdef OrderedSet result = OrderedSet.__new__(OrderedSet)
        cdef Py_ssize_t limit = _take_limit(&reader)
        cdef bytes key, last = None
        cdef list keys = []
        while reader.next < reader.end:
            key = take_sized(&reader)
            check_order_key(key)
            expect_after(key, last, "the elements of an OrderedSet")
            keys.append(key)
            last = key
        if len(keys) > limit:
            raise ProtocolError(f"an OrderedSet of the {limit:,} greatest has {len(keys):,} elements")
        result.most = limit
        result.replace(keys)
        return result

    cpdef bytes encode(self):
        cdef bytes result = bytes(self.size_bytes)
        cdef char* target = write_varint(PyBytes_AS_STRING(result), 0 if self.most == UNLIMITED else self.most)
        cdef bytes key
        for key in self.sequence():
            target = write_sized(target, key)
        return result

    cpdef object read(self, bint allow_pickle):
        return [from_order_key(key) for key in self.sequence()]

    def range(self, low=None, high=None, count=None, reverse=False):
        """Return the values from `low` up to, but without, `high`, ascending, or descending if `reverse`.

        A bound that is None is open; `count` keeps the first so many. O(log n) and the values returned.
        """
        cdef Py_ssize_t first = 0 if low is None else self.find(order_key(low))
        cdef Py_ssize_t last = len(self) if high is None else self.find(order_key(high))
        cdef Py_ssize_t kept = max(0, last - first if count is None else min(last - first, count))
        if reverse:
            return [from_order_key(key) for key in reversed(self.slice(last - kept, last))]
        return [from_order_key(key) for key in self.slice(first, first + kept)]

    @property
    def limit(self):
        """How many of the greatest are kept; None for all."""
        return None if self.most == UNLIMITED else self.most

    @property
    def size_bytes(self):
        return varint_bytes(0 if self.most == UNLIMITED else self.most) + self.key_bytes

    cpdef Lattice copy(self):
        cdef OrderedSet result = OrderedSet.__new__(OrderedSet)
        result.few = None if self.few is None else self.few.copy()
        result.many = None if self.many is None else self.many.copy()
        result.most = self.most
        result.key_bytes = self.key_bytes
        return result

    cpdef bint merge(self, Lattice other) except -1:
        expect(self, other)
        cdef OrderedSet that = <OrderedSet>other
        cdef bint grew = False
        cdef bytes key
        if that is self:
            return False
        if that.most < self.most:
            self.most = that.most
            self.trim()
            grew = True
        for key in that.sequence():
            if self.insert(key):
                grew = True
        return grew

    cpdef bint precedes(self, Lattice other) except -1:
        expect(self, other)
        cdef OrderedSet that = <OrderedSet>other
        cdef bytes key
        if that.most > self.most:
            return False
        for key in self.sequence():
            if not that.has(key) and (len(that) < that.most or key > that.least()):
                return False
        return True

    def add(self, value):
        """Return the delta that adds `value`."""
        return OrderedSet((value,))

    def update(self, values):
        """Return the delta that adds all `values`."""
        return OrderedSet(values)

    def __contains__(self, value):
        return self.has(order_key(value))

    def __len__(self):
        return len(self.many) if self.few is None else len(self.few)

    def __iter__(self):
        return iter(self.read(True))

    def __repr__(self):
        limit = "" if self.limit is None else f", limit={self.limit}"
        return f"OrderedSet({self.read(True)!r}{limit})"

    # The sequence of order keys, in either form.

    cdef object sequence(self):
        return self.many if self.few is None else self.few

    cdef int replace(self, list keys) except -1:
        """Make `keys`, which are ascending, the elements."""
        cdef bytes key
        self.key_bytes = 0
        for key in keys:
            self.key_bytes += sized_bytes(key)
        self.few, self.many = (keys, None) if len(keys) <= LIST_MAX else (None, _sorted_list(keys))
        return 0

    cdef list slice(self, Py_ssize_t first, Py_ssize_t last):
        return self.few[first:last] if self.few is not None else list(self.many.islice(first, last))

    cdef Py_ssize_t find(self, bytes key) except -1:
        """Return how many elements are less than `key`."""
        return self.many.bisect_left(key) if self.few is None else bisect_left(self.few, key)

    cdef bint has(self, bytes key) except -1:
        cdef Py_ssize_t i = self.find(key)
        return i < len(self) and self.sequence()[i] == key

    cdef bytes least(self):
        return self.sequence()[0]

    cdef bint insert(self, bytes key) except -1:
        """Add `key` unless it is here or below the n greatest; True when it was added."""
        cdef Py_ssize_t count = len(self)
        cdef Py_ssize_t i
        if count == self.most and key < self.least():
            return False
        i = self.find(key)
        if i < count and self.sequence()[i] == key:
            return False
        if self.few is None:
            self.many.add(key)
        else:
            self.few.insert(i, key)
            if count == LIST_MAX and count < self.most:
                self.few, self.many = None, _sorted_list(self.few)
        self.key_bytes += sized_bytes(key)
        self.trim()
        return True

    cdef int trim(self) except -1:
        """Drop the least until the limit is kept."""
        cdef Py_ssize_t surplus = len(self) - self.most
        cdef bytes key
        if surplus <= 0:
            return 0
        for key in self.slice(0, surplus):
            self.key_bytes -= sized_bytes(key)
        del self.sequence()[:surplus]
        if self.few is None and len(self.many) <= LIST_MAX:
            self.few, self.many = list(self.many), None
        return 0


cdef object _sorted_list(list keys):
    from sortedcontainers import SortedList
    return SortedList(keys)


cdef Py_ssize_t _take_limit(Reader* reader) except -1:
    cdef unsigned long long limit = take_varint(reader)
    if limit > <unsigned long long>LIMIT_MAX:
        raise ProtocolError(f"the limit of an OrderedSet is up to {LIMIT_MAX:,}, got {limit:,}")
    return UNLIMITED if limit == 0 else <Py_ssize_t>limit
