"""ORSet: elements that are added and removed; where the two are concurrent, the add wins.

The one rule: a removal removes the *dots* that its author has seen, never the element as such. Each addition is an
event of its own (`anna.lattices.dots`). The state is which dot stands for which element, and the context of all dots
ever seen: a dot in the context without an element is a removed one. For one dot the states are unseen < present <
removed, a chain; the set is a product of these chains, and join is its pointwise maximum. So nothing has to remember
removed elements, and the context of contiguous dots is one interval however many they were.

A client has no dots. It asks for additions and removals, which are two more sets joined by union, until the worker
that accepts the write turns them into dots (`assign`): removals first, of what the worker has seen, then additions.

Encoding: the context; the number of elements, then each ascending: the element after its length, the number of its
dots, and the dots, 16 bytes each; the number of requested additions and they; the number of requested removals and
they. Source: Bieniusa et al. 2012 (optimised OR-set), Almeida et al. 2018 (delta-state, contexts with gaps).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

cimport cython

from anna.codec cimport encode_element
from anna.lattices.base cimport Lattice, expect
from anna.lattices.dots cimport DOT_BYTES, Dots, Tenure, begin, next_number, take_dots
from anna.lattices.elements cimport (
    decoded,
    element_of,
    elements_bytes,
    elements_of,
    expect_after,
    take_element,
    write_elements,
)
from anna.layout cimport (
    Reader,
    expect_end,
    reader_of,
    sized_bytes,
    take,
    take_varint,
    varint_bytes,
    write_sized,
    write_varint,
)

from anna.errors import ProtocolError


@cython.final
cdef class ORSet(Lattice):
    """A set with removal. `ORSet(add=…, remove=…)` asks for both; removed is what the owner has seen by then.

    >>> cart = ORSet().assign(None, 1, 1).join(ORSet({"milk", "eggs"}).assign(None, stamp=1, writer=1))
    >>> here = cart.join(cart.remove("milk"))
    >>> there = cart.join(ORSet(add={"milk"}).assign(cart, stamp=2, writer=2))
    >>> sorted(here.value), sorted(here.join(there).value)
    (['eggs'], ['eggs', 'milk'])
    """

    NUMBER = 7

    cdef dict entries  # element -> its dots, ascending, DOT_BYTES each
    cdef dict index  # dot -> element; None until it is needed
    cdef Dots context
    cdef set additions
    cdef set removals
    cdef Py_ssize_t entry_bytes
    cdef Tenure tenure

    def __cinit__(self):
        self.entries = {}
        self.context = Dots.__new__(Dots)
        self.additions = set()
        self.removals = set()

    def __init__(self, add=(), remove=()):
        self.additions = elements_of(add)
        self.removals = elements_of(remove)

    cpdef object read(self, bint allow_pickle):
        return decoded((self.entries.keys() - self.removals) | self.additions, allow_pickle)

    @property
    def dots(self):
        """The context: every dot that this state has seen, those of removed elements included."""
        return self.context.copy()

    cpdef Lattice copy(self):
        cdef ORSet result = ORSet.__new__(ORSet)
        result.entries = self.entries.copy()
        result.index = None if self.index is None else self.index.copy()
        result.context = self.context.copy()
        result.additions = self.additions.copy()
        result.removals = self.removals.copy()
        result.entry_bytes = self.entry_bytes
        return result

    # The algebra.

    cpdef bint merge(self, Lattice other) except -1:
        """Join in place. O(elements of `other`), and its context or the elements here, whichever are fewer."""
        expect(self, other)
        cdef ORSet that = <ORSet>other
        cdef Py_ssize_t requests = len(self.additions) + len(self.removals)
        cdef bint grew = False
        if that is self:
            return False
        if that.context.count:
            grew = self.drop_removed(that)
            if self.adopt(that):
                grew = True
            if self.context.unite(that.context):
                grew = True
        self.additions |= that.additions
        self.removals |= that.removals
        return grew or len(self.additions) + len(self.removals) > requests

    cpdef bint precedes(self, Lattice other) except -1:
        expect(self, other)
        cdef ORSet that = <ORSet>other
        cdef bytes dot, element
        if not (self.additions <= that.additions and self.removals <= that.removals):
            return False
        if not self.context.within(that.context):
            return False
        self.ensure_index()
        for dot, element in that.ensure_index().items():
            if self.saw(dot) and self.index.get(dot) != element:
                return False
        return True

    cdef bint drop_removed(self, ORSet that) except -1:
        """Drop every dot here that `that` has seen and does not hold for the same element; True if there was one."""
        cdef dict mine = self.ensure_index()
        cdef dict theirs = that.ensure_index()
        cdef list dropped
        cdef bytes dot
        if that.context.total() < <uint64_t>len(mine):
            dropped = [dot for dot in _dots_in(that.context) if dot in mine and theirs.get(dot) != mine[dot]]
        else:
            dropped = [dot for dot, element in mine.items() if that.saw(dot) and theirs.get(dot) != element]
        for dot in dropped:
            self.take_away(dot)
        return len(dropped) > 0

    cdef bint adopt(self, ORSet that) except -1:
        """Take over every dot that `that` holds and this state has not seen; True if there was one."""
        cdef bint grew = False
        cdef bytes dot, element
        for dot, element in that.index.items():
            if not self.saw(dot):
                self.put(dot, element)
                grew = True
        return grew

    cpdef Lattice assign(self, Lattice current, uint64_t stamp, uint64_t writer):
        """Turn requests into dots: remove what `current` holds of the removals, then add, each with a dot of `writer`.

        An element that was there already gets a new dot for its old ones: so it survives a concurrent removal.
        """
        cdef ORSet present
        cdef ORSet delta
        cdef uint64_t number = 0
        cdef uint64_t since
        cdef bytes element
        if not self.additions and not self.removals:
            return self
        if current is None:
            present = ORSet.__new__(ORSet)
        else:
            expect(self, current)
            present = <ORSet>current
        delta = self.without_requests()
        if self.additions:
            since = begin(&present.tenure, stamp, writer)
            number = next_number(present.context, self.context, since, stamp, writer, len(self.additions))
        for element in self.removals | self.additions:
            delta.see(present.entries.get(element))
        for element in sorted(self.additions):
            delta.put(_dot(writer, number), element)
            delta.context.insert(writer, number, number)
            number += 1
        return delta

    def as_prepared(self, Lattice current, uint64_t writer):
        cdef ORSet delta = self.assign(None, 1, writer)
        cdef bytes element
        if current is not None:
            expect(self, current)
            for element in self.removals | self.additions:
                delta.see((<ORSet>current).entries.get(element))
        return delta

    def as_request(self, uint64_t first):
        cdef ORSet request = ORSet.__new__(ORSet)
        cdef bytes element, dots, dot
        cdef uint64_t[2] parts
        cdef Py_ssize_t i
        for i in range(self.context.count):
            if self.context.spans[i].writer < first:
                request.context.insert(self.context.spans[i].writer, self.context.spans[i].first, self.context.spans[i].last)
        request.additions = self.additions.copy()
        request.removals = self.removals.copy()
        for element, dots in self.entries.items():
            for dot in _split(dots):
                memcpy(parts, PyBytes_AS_STRING(dot), DOT_BYTES)
                if parts[0] < first:
                    request.put(dot, element)
                else:
                    request.additions.add(element)
        return request

    def add(self, value):
        """Return the delta that asks for `value` to be added."""
        return ORSet(add=(value,))

    def remove(self, value):
        """Return the delta that removes `value` as far as it is in this state; requests for it are not taken back.

        What others add meanwhile stays. `ORSet(remove={value})` removes what the owner has seen, without a read.
        """
        return self.update(remove=(value,))

    def update(self, add=(), remove=()):
        """Return the delta that asks for `add`, and removes the elements of `remove` as far as they are in this state."""
        cdef ORSet delta = ORSet(add)
        cdef bytes element
        for element in elements_of(remove):
            delta.see(self.entries.get(element))
        return delta

    def __contains__(self, value):
        cdef bytes element = encode_element(value)
        return element in self.additions or (element in self.entries and element not in self.removals)

    def __len__(self):
        if not self.removals and not self.additions:
            return len(self.entries)
        return len((self.entries.keys() - self.removals) | self.additions)

    def __iter__(self):
        return iter(self.read(True))

    def __repr__(self):
        return f"ORSet({self.read(True)!r})"

    # Bytes.

    @property
    def size_bytes(self):
        return (
            self.context.size()
            + varint_bytes(len(self.entries)) + self.entry_bytes
            + varint_bytes(len(self.additions)) + elements_bytes(self.additions)
            + varint_bytes(len(self.removals)) + elements_bytes(self.removals)
        )

    cpdef bytes encode(self):
        cdef bytes result = bytes(self.size_bytes)
        cdef char* target = self.context.write(PyBytes_AS_STRING(result))
        cdef bytes element, dots
        target = write_varint(target, len(self.entries))
        for element in sorted(self.entries):
            dots = self.entries[element]
            target = write_sized(target, element)
            target = write_varint(target, PyBytes_GET_SIZE(dots) // DOT_BYTES)
            memcpy(target, PyBytes_AS_STRING(dots), PyBytes_GET_SIZE(dots))
            target += PyBytes_GET_SIZE(dots)
        target = write_elements(write_varint(target, len(self.additions)), self.additions)
        write_elements(write_varint(target, len(self.removals)), self.removals)
        return result

    @classmethod
    def decode(cls, data):
        cdef bytes raw = bytes(data)
        cdef Reader reader = reader_of(raw)
        cdef ORSet result = ORSet.__new__(ORSet)
        cdef uint64_t count
        cdef bytes element, last = None
        result.context = take_dots(&reader, len(raw))
        count = take_varint(&reader)
        while count:
            element = take_element(&reader)
            expect_after(element, last, "the elements of an ORSet")
            result.take_entry(&reader, element)
            last = element
            count -= 1
        if len(result.ensure_index()) * DOT_BYTES != result.dot_bytes():
            raise ProtocolError("one dot of an ORSet stands for two elements")
        result.additions = _take_set(&reader, "the additions of an ORSet")
        result.removals = _take_set(&reader, "the removals of an ORSet")
        expect_end(&reader, "an ORSet")
        return result

    cdef int take_entry(self, Reader* reader, bytes element) except -1:
        """Read the dots of one element, which are ascending and in the context."""
        cdef uint64_t count = take_varint(reader)
        cdef const char* data
        cdef bytes dots
        cdef uint64_t[2] dot, last
        cdef Py_ssize_t i
        if not 1 <= count <= <uint64_t>(reader.end - reader.next) // DOT_BYTES:
            left = reader.end - reader.next
            raise ProtocolError(f"an element of an ORSet has {count:,} dots, with {left:,} bytes left")
        data = take(reader, count * DOT_BYTES)
        for i in range(<Py_ssize_t>count):
            memcpy(dot, data + i * DOT_BYTES, DOT_BYTES)
            if not self.context.has(dot[0], dot[1]):
                raise ProtocolError(f"dot {dot[1]} of writer {dot[0]} is not in the context of its ORSet")
            if i and (last[0] > dot[0] or last[0] == dot[0] and last[1] >= dot[1]):
                raise ProtocolError("the dots of an element of an ORSet are not strictly ascending")
            memcpy(last, dot, DOT_BYTES)
        dots = PyBytes_FromStringAndSize(data, count * DOT_BYTES)
        self.entries[element] = dots
        self.entry_bytes += _entry_bytes(element, dots)
        return 0

    # Dots, one at a time.

    cdef dict ensure_index(self):
        cdef bytes element, dots
        cdef Py_ssize_t i
        if self.index is None:
            self.index = {}
            for element, dots in self.entries.items():
                if PyBytes_GET_SIZE(dots) == DOT_BYTES:
                    self.index[dots] = element
                else:
                    for i in range(0, PyBytes_GET_SIZE(dots), DOT_BYTES):
                        self.index[dots[i:i + DOT_BYTES]] = element
        return self.index

    cdef Py_ssize_t dot_bytes(self) except -1:
        cdef Py_ssize_t total = 0
        cdef bytes dots
        for dots in self.entries.values():
            total += PyBytes_GET_SIZE(dots)
        return total

    cdef bint saw(self, bytes dot) noexcept:
        cdef uint64_t[2] parts
        memcpy(parts, PyBytes_AS_STRING(dot), DOT_BYTES)
        return self.context.has(parts[0], parts[1])

    cdef int see(self, bytes dots) except -1:
        """Count `dots`, if any, as seen; without an element, that means removed."""
        cdef uint64_t[2] parts
        cdef Py_ssize_t i
        if dots is not None:
            for i in range(0, PyBytes_GET_SIZE(dots), DOT_BYTES):
                memcpy(parts, PyBytes_AS_STRING(dots) + i, DOT_BYTES)
                self.context.insert(parts[0], parts[1], parts[1])
        return 0

    cdef int put(self, bytes dot, bytes element) except -1:
        cdef bytes dots = self.entries.get(element)
        self.ensure_index()[dot] = element
        if dots is not None:
            self.entry_bytes -= _entry_bytes(element, dots)
            dot = _ascending(dots + dot)
        self.entries[element] = dot
        self.entry_bytes += _entry_bytes(element, dot)
        return 0

    cdef int take_away(self, bytes dot) except -1:
        cdef bytes element = self.index.pop(dot)
        cdef bytes dots = self.entries[element]
        cdef bytes rest = b"".join([one for one in _split(dots) if one != dot])
        self.entry_bytes -= _entry_bytes(element, dots)
        if rest:
            self.entries[element] = rest
            self.entry_bytes += _entry_bytes(element, rest)
        else:
            del self.entries[element]
        return 0

    cdef ORSet without_requests(self):
        cdef ORSet result = <ORSet>self.copy()
        result.additions = set()
        result.removals = set()
        return result


cdef bytes _dot(uint64_t writer, uint64_t number):
    cdef uint64_t[2] parts = [writer, number]
    return PyBytes_FromStringAndSize(<char*>parts, DOT_BYTES)


cdef list _split(bytes dots):
    cdef Py_ssize_t i
    return [dots[i:i + DOT_BYTES] for i in range(0, PyBytes_GET_SIZE(dots), DOT_BYTES)]


def _place(bytes dot):
    """The order of dots: by writer, then by number; not that of their little-endian bytes."""
    cdef uint64_t[2] parts
    memcpy(parts, PyBytes_AS_STRING(dot), DOT_BYTES)
    return parts[0], parts[1]


cdef bytes _ascending(bytes dots):
    return b"".join(sorted(_split(dots), key=_place))


cdef list _dots_in(Dots context):
    """All dots of a context that is known to be small."""
    cdef list dots = []
    cdef Py_ssize_t i
    cdef uint64_t number
    for i in range(context.count):
        for number in range(context.spans[i].first, context.spans[i].last + 1):
            dots.append(_dot(context.spans[i].writer, number))
    return dots


cdef Py_ssize_t _entry_bytes(bytes element, bytes dots) noexcept:
    return sized_bytes(element) + varint_bytes(PyBytes_GET_SIZE(dots) // DOT_BYTES) + PyBytes_GET_SIZE(dots)


cdef set _take_set(Reader* reader, str what):
    cdef uint64_t count = take_varint(reader)
    cdef set elements = set()
    cdef bytes element, last = None
    while count:
        element = take_element(reader)
        expect_after(element, last, what)
        elements.add(element)
        last = element
        count -= 1
    return elements
