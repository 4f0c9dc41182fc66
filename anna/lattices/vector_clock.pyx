"""VectorClock: how far each writer's events are known.

The one rule: join is the pointwise maximum, and a writer with count 0 is not in the clock, so that no clock is newer
than its equal. Use it to order what users version by themselves. It says "all events up to", so a clock cannot name
one event without its predecessors; `Causal` therefore keeps exact sets (`anna.lattices.dots`).

Encoding: (writer, count) of 8 bytes each, ascending (`anna.lattices.records`). Source: DESIGN §3; Mattern 1989.
"""

from libc.stdint cimport uint64_t

cimport cython

from anna.lattices.base cimport Lattice, expect
from anna.lattices.records cimport Records

from anna.errors import ValueTooLarge


@cython.final
@cython.no_gc
cdef class VectorClock(Records):
    """Writer -> count.

    >>> base = VectorClock({1: 2})
    >>> left, right = base | base.increment(1), base | base.increment(2)
    >>> left.descends(base), left.concurrent(right), left.join(right).value
    (True, True, {1: 3, 2: 1})
    """

    NUMBER = 11

    def __cinit__(self):
        self.keys = 1
        self.width = 2

    def __init__(self, counts=()):
        cdef uint64_t[2] record
        for writer, count in dict(counts).items():
            record[0], record[1] = writer, count
            self.raise_to(record)

    cpdef object read(self, bint allow_pickle):
        cdef Py_ssize_t i
        return {self.row(i)[0]: self.row(i)[1] for i in range(self.count)}

    def __len__(self):
        return self.count

    def __getitem__(self, writer):
        """The count of `writer`, 0 when it is not in the clock."""
        cdef uint64_t key = writer
        cdef uint64_t* own = self.find(&key)
        return 0 if own is NULL else own[1]

    def increment(self, uint64_t writer):
        """Return the delta of one more event of `writer`."""
        cdef uint64_t[2] record = [writer, 0]
        cdef uint64_t* own = self.find(record)
        cdef VectorClock delta = VectorClock.__new__(VectorClock)
        if own is not NULL and own[1] == 0xFFFFFFFFFFFFFFFF:
            raise ValueTooLarge(f"writer {writer} is at 2**64 - 1 events")
        record[1] = 1 if own is NULL else own[1] + 1
        delta.raise_to(record)
        return delta

    def update(self, counts):
        """Return the delta that raises the clock to at least `counts`."""
        return VectorClock(counts)

    def descends(self, VectorClock other not None):
        """Whether this clock knows everything that `other` knows; true for equals."""
        return other.precedes(self)

    def concurrent(self, VectorClock other not None):
        """Whether each clock knows something that the other does not."""
        return not self.precedes(other) and not other.precedes(self)
