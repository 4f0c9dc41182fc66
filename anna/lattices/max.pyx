"""Max: the greatest of everything that was ever put.

The one rule: join takes the greater of two places in the order of `anna.lattices.ordering`, which is exact: 64-bit
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
cdef class Max(Lattice):
    """The greatest of all values joined; None, the bottom, before the first.

    >>> Max(7).join(Max(9.5)).value, Max.bottom().value
    (9.5, None)
    >>> Max((3, "x")).update((3, "y"))
    Max((3, 'y'))
    """

    NUMBER = 2

    cdef readonly bytes key

    def __init__(self, value=None):
        self.key = b"" if value is None else place_of(value)

    @classmethod
    def decode(cls, data):
        return _of(take_place(bytes(data), "Max"))

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
        if (<Max>other).precedes(self):
            return False
        self.key = (<Max>other).key
        return True

    cpdef bint precedes(self, Lattice other) except -1:
        expect(self, other)
        return self.key <= (<Max>other).key

    def update(self, value):
        """Return the delta that offers `value`."""
        return Max(value)


cdef Max _of(bytes key):
    cdef Max result = Max.__new__(Max)
    result.key = key
    return result
