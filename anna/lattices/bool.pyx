"""Bool: a flag that goes up once.

The one rule: join is "or". Encoding: one byte, 0 or 1. Source: DESIGN §3.
"""

cimport cython

from anna.lattices.base cimport Lattice, expect

from anna.errors import ProtocolError


@cython.final
@cython.no_gc
cdef class Bool(Lattice):
    """A flag: False until anybody puts True.

    >>> Bool().join(Bool(True)).value, Bool().set().value
    (True, True)
    """

    NUMBER = 4

    cdef bint raised

    def __init__(self, value=False):
        if type(value) is not bool:
            raise TypeError(f"a Bool holds True or False, got a {type(value).__name__}")
        self.raised = value

    @classmethod
    def decode(cls, data):
        cdef bytes raw = bytes(data)
        if raw != b"\x00" and raw != b"\x01":
            raise ProtocolError(f"a Bool is the byte 00 or 01, got {len(raw)} bytes {raw[:8].hex()}")
        return Bool(raw == b"\x01")

    cpdef bytes encode(self):
        return b"\x01" if self.raised else b"\x00"

    cpdef object read(self, bint allow_pickle):
        return self.raised

    @property
    def size_bytes(self):
        return 1

    cpdef Lattice copy(self):
        return Bool(self.raised)

    cpdef bint merge(self, Lattice other) except -1:
        expect(self, other)
        if self.raised or not (<Bool>other).raised:
            return False
        self.raised = True
        return True

    cpdef bint precedes(self, Lattice other) except -1:
        expect(self, other)
        return not self.raised or (<Bool>other).raised

    def set(self):
        """Return the delta that raises the flag."""
        return Bool(True)

    def __bool__(self):
        return self.raised
