"""Set: elements that are added and never removed.

The one rule: join is union. Elements are kept in their encodings (`anna.lattices.elements`), in a hash set, so
joining a delta costs its own size whatever the size of the set. For removal see `ORSet`, for order and bounds
`OrderedSet`.

Encoding: the elements ascending, each after its length. Source: DESIGN §3.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE

from anna.codec cimport encode_element
from anna.lattices.base cimport Lattice, expect
from anna.lattices.elements cimport (
    decoded,
    element_of,
    elements_bytes,
    elements_of,
    expect_after,
    take_element,
    write_elements,
)
from anna.layout cimport Reader, reader_of, sized_bytes

cdef enum:
    # An encoding is kept when it is short, or takes little beside the objects: then its elements are many, and to order them takes long.
    ENCODED_BYTES_KEPT_MAX = 65536
    ELEMENT_BYTES_KEPT_MAX = 64


@cython.final
cdef class Set(Lattice):
    """A grow-only set of hashable values.

    >>> tags = Set({"a"}).join(Set({"b"}))
    >>> sorted(tags.value), "a" in tags, len(tags)
    (['a', 'b'], True, 2)
    >>> tags.join(tags.add("c")) == Set({"c", "b", "a"})
    True
    """

    NUMBER = 6

    cdef set elements
    cdef Py_ssize_t bytes_held
    cdef bytes encoded  # kept from one read to the next, unless it takes too much; None when the set has grown

    def __init__(self, values=()):
        self.elements = elements_of(values)
        self.bytes_held = elements_bytes(self.elements)

    @classmethod
    def decode(cls, data):
        cdef bytes raw = bytes(data)
        cdef Reader reader = reader_of(raw)
        cdef bytes element, last = None
        cdef list elements = []
        while reader.next < reader.end:
            element = take_element(&reader)
            expect_after(element, last, "the elements of a Set")
            elements.append(element)
            last = element
        cdef Set result = _of(set(elements), len(raw))
        result.keep(raw)
        return result

    cpdef bytes encode(self):
        cdef bytes result = self.encoded
        if result is None:
            result = bytes(self.bytes_held)
            write_elements(<char*>result, self.elements)
            self.keep(result)
        return result

    cdef int keep(self, bytes encoded) except -1:
        """Keep an encoding of this set for those who will ask for it, unless it takes too much."""
        if PyBytes_GET_SIZE(encoded) <= max(<Py_ssize_t>ENCODED_BYTES_KEPT_MAX, ELEMENT_BYTES_KEPT_MAX * <Py_ssize_t>len(self.elements)):
            self.encoded = encoded
        return 0

    cpdef object read(self, bint allow_pickle):
        return decoded(self.elements, allow_pickle)

    @property
    def size_bytes(self):
        return self.bytes_held

    cpdef Lattice copy(self):
        cdef Set result = _of(self.elements.copy(), self.bytes_held)
        result.encoded = self.encoded
        return result

    cpdef bint merge(self, Lattice other) except -1:
        expect(self, other)
        cdef Py_ssize_t before = len(self.elements)
        cdef bytes element
        for element in (<Set>other).elements:
            if element not in self.elements:
                self.elements.add(element)
                self.bytes_held += sized_bytes(element)
        if len(self.elements) == before:
            return False
        self.encoded = None
        return True

    cpdef bint precedes(self, Lattice other) except -1:
        expect(self, other)
        return self.elements <= (<Set>other).elements

    cpdef bint equals(self, Lattice other) except -1:
        expect(self, other)
        return self.elements == (<Set>other).elements

    def add(self, value):
        """Return the delta that adds `value`."""
        cdef bytes element = element_of(value)
        return _of({element}, sized_bytes(element))

    def update(self, values):
        """Return the delta that adds all `values`."""
        return Set(values)

    def __contains__(self, value):
        return encode_element(value) in self.elements

    def __len__(self):
        return len(self.elements)

    def __iter__(self):
        return iter(self.value)


cdef Set _of(set elements, Py_ssize_t bytes_held):
    cdef Set result = Set.__new__(Set)
    result.elements = elements
    result.bytes_held = bytes_held
    return result
