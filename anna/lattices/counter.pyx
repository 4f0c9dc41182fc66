"""Counter: a sum that any number of workers add to and subtract from at once.

The one rule: a row belongs to one writer and one of its *incarnations*, which alone adds to it, so the maximum of two
copies of a row is the later one. Rows are (writer, incarnation, plus, minus); the value is all plus less all minus.
An incarnation is the stamp of the writer's first increment in one tenure (`anna.lattices.dots`): a worker that hands
a key over, forgets it and gets a stale copy back begins a new row, instead of counting on in the old one, where its
next increments would vanish under the maximum. What a client asks for is a row under writer 0 until the worker that
accepts it adds it to its own.

Encoding: rows of four integers of 8 bytes, ascending (`anna.lattices.records`). Source: DESIGN §3; Shapiro et al.
2011 (PN-Counter).
"""

from libc.stdint cimport uint64_t

cimport cython

from anna.lattices.base cimport Lattice, expect
from anna.lattices.dots cimport Tenure, begin
from anna.lattices.records cimport Records

from anna.errors import ProtocolError, ValueTooLarge

cdef enum:
    WRITER = 0
    INCARNATION = 1
    PLUS = 2
    MINUS = 3


@cython.final
@cython.no_gc
cdef class Counter(Records):
    """A counter. `Counter(+3)` asks for three more, `Counter(-1)` for one less.

    >>> seen_here = Counter(+3, writer=1).join(Counter(-1, writer=2))
    >>> seen_here.value, seen_here.join(seen_here).value
    (2, 2)
    >>> (seen_here | seen_here.increment(5, writer=1)).value
    7
    """

    NUMBER = 5

    cdef Tenure tenure

    def __cinit__(self):
        self.keys = 2
        self.width = 4

    def __init__(self, amount=0, *, uint64_t writer=0, uint64_t incarnation=0):
        cdef uint64_t[4] record = [writer, incarnation, 0, 0]
        if writer == 0 and incarnation:
            raise ValueError(f"a request has no writer and no incarnation, got incarnation {incarnation}")
        _add(record, amount)
        self.raise_to(record)

    cdef int expect_state(self) except -1:
        cdef Py_ssize_t i
        Records.expect_state(self)
        for i in range(self.count):
            if self.row(i)[WRITER] == 0 and self.row(i)[INCARNATION]:
                raise ProtocolError(f"a Counter's request has no writer, but incarnation {self.row(i)[INCARNATION]}")
        return 0

    cpdef object read(self, bint allow_pickle):
        cdef Py_ssize_t i
        total = 0
        for i in range(self.count):
            total += self.row(i)[PLUS]
            total -= self.row(i)[MINUS]
        return total

    cpdef Lattice assign(self, Lattice current, uint64_t stamp, uint64_t writer):
        """Add what is asked for to the writer's own row; the delta is that row, as it is after the increment."""
        cdef uint64_t[4] record = [0, 0, 0, 0]
        cdef uint64_t* pending = self.find(record)
        cdef uint64_t* own
        cdef uint64_t since
        cdef Counter delta
        cdef Py_ssize_t i
        if pending is NULL:
            return self
        record[WRITER], record[INCARNATION] = writer, stamp
        if current is not None:
            expect(self, current)
            own = _latest(<Counter>current, writer)
            since = begin(&(<Counter>current).tenure, stamp, writer)
            if own is not NULL and own[INCARNATION] >= since:
                record[INCARNATION], record[PLUS], record[MINUS] = own[INCARNATION], own[PLUS], own[MINUS]
        record[PLUS] = _sum(record[PLUS], pending[PLUS])
        record[MINUS] = _sum(record[MINUS], pending[MINUS])
        delta = Counter.__new__(Counter)
        delta.raise_to(record)
        for i in range(self.count):
            if self.row(i)[WRITER]:
                delta.raise_to(self.row(i))
        return delta

    def as_request(self, uint64_t first):
        cdef uint64_t[4] pending = [0, 0, 0, 0]
        cdef Counter request = Counter.__new__(Counter)
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.row(i)[WRITER] and self.row(i)[WRITER] < first:
                request.raise_to(self.row(i))
            else:
                pending[PLUS] = _sum(pending[PLUS], self.row(i)[PLUS])
                pending[MINUS] = _sum(pending[MINUS], self.row(i)[MINUS])
        request.raise_to(pending)
        return request

    def increment(self, amount=1, *, uint64_t writer=0, uint64_t incarnation=0):
        """Return the delta that adds `amount` to the row of `writer`: its latest, unless `incarnation` says which."""
        cdef uint64_t[4] record = [writer, incarnation, 0, 0]
        cdef uint64_t* own = self.find(record) if incarnation or not writer else _latest(self, writer)
        cdef Counter delta = Counter.__new__(Counter)
        if writer == 0 and incarnation:
            raise ValueError(f"a request has no writer and no incarnation, got incarnation {incarnation}")
        if own is not NULL:
            record[INCARNATION], record[PLUS], record[MINUS] = own[INCARNATION], own[PLUS], own[MINUS]
        _add(record, amount)
        delta.raise_to(record)
        return delta

    def decrement(self, amount=1, *, uint64_t writer=0, uint64_t incarnation=0):
        """Return the delta that subtracts `amount`."""
        return self.increment(-amount, writer=writer, incarnation=incarnation)

    def __int__(self):
        return self.read(True)

    def __repr__(self):
        return f"Counter({self.read(True):+d})"


cdef int _add(uint64_t* record, object amount) except -1:
    if type(amount) is not int:
        if not hasattr(amount, "__index__") or isinstance(amount, bool):
            raise TypeError(f"a Counter counts whole numbers, got a {type(amount).__name__}")
        amount = amount.__index__()
    if abs(amount) >> 64:
        raise ValueTooLarge(f"one step of a Counter is below 2**64, got {amount:+,}")
    cdef int column = MINUS if amount < 0 else PLUS
    record[column] = _sum(record[column], abs(amount))
    return 0


cdef uint64_t _sum(uint64_t left, uint64_t right) except? 0:
    if right > 0xFFFFFFFFFFFFFFFF - left:
        raise ValueTooLarge(f"a row of a Counter counts to 2**64 - 1; it is at {left:,} and {right:,} are to be added")
    return left + right


cdef uint64_t* _latest(Counter counter, uint64_t writer) noexcept:
    """Return the row of the writer's greatest incarnation, or NULL."""
    cdef uint64_t[2] beyond = [writer, 0xFFFFFFFFFFFFFFFF]
    cdef Py_ssize_t i = counter.search(beyond)
    if i < counter.count and counter.row(i)[WRITER] == writer:
        return counter.row(i)
    if i > 0 and counter.row(i - 1)[WRITER] == writer:
        return counter.row(i - 1)
    return NULL
