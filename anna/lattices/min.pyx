"""Min: the least of everything that was ever put.

The one rule: join takes the lesser of two places in the order of `anna.lattices.ordering`, which is exact: 64-bit
ints and floats, infinities included, are compared by value and never rounded; equal numbers of different types are
ordered by type. Anything in that order will do, not only numbers: a tuple (score, name) too. NaN is refused.

Encoding: the order key of the value; nothing at the bottom. Source: DESIGN §3.
"""

cimport cython

from anna.lattices.base cimport Lattice, expect
from anna.lattices.place cimport place_of, take_place
from anna.lattices.ordering cimport from_order_key


@cython.final
@cython.no_gc
cdef class Min(Lattice):
    """The least of all values joined; None, the bottom, before the first.

    >>> Min(7).join(Min(9.5)).value, Min.bottom().value
    (7, None)
    >>> Min((3, "x")).update((3, "y"))
    Min((3, 'y'))
    """

    NUMBER = 3

    cdef readonly bytes key

    def __init__(self, value=None):
        self.key = b"" if value is None else place_of(value)

    @classmethod
    def decode(cls, data):
        return _of(take_place(bytes(data), "Min"))

    cpdef bytes encode(self):
        return self.key

    cpdef object read(self, bint allow_pickle):
        return from_order_key(self.key) if self.key else None

    @property
    def size_bytes(self):
        return len(self.key)

    cpdef Lattice copy(self):
        return _of(self.key)

    cpdef bint merge(self, Lattice other) except -1:
        expect(self, other)
        if (<Min>other).precedes(self):
            return False
        self.key = (<Min>other).key
        return True

    cpdef bint precedes(self, Lattice other) except -1:
        expect(self, other)
        cdef bytes key = (<Min>other).key
        return not self.key or (bool(key) and key <= self.key)

    def update(self, value):
        """Return the delta that offers `value`."""
        return Min(value)


cdef Min _of(bytes key):
    cdef Min result = Min.__new__(Min)
    result.key = key
    return result
