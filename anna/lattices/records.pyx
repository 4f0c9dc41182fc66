"""Records: a table of counts, joined by pointwise maximum; the body of `Counter` and `VectorClock`.

The one rule: rows are sorted by key, each key once, and no row has only zeros for counts: a count of zero and an
absent row mean the same, so only one of them may be written. Rows are `width` unsigned 64-bit integers, of which the
first `keys` are the key. Joining a few rows costs a search each; joining many is one pass over both.

Encoding: the rows, little-endian.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove

from anna.lattices.base cimport Lattice, expect

from anna.config import CLOCK_ENTRIES_MAX
from anna.errors import ProtocolError

cdef enum:
    FEW = 8  # rows that are joined one by one
    WORD = 8

cdef Py_ssize_t ROWS_MAX = CLOCK_ENTRIES_MAX


cdef class Records(Lattice):
    """Not a lattice type of its own: it has no number."""

    def __cinit__(self):
        self.rows = NULL
        self.count = self.capacity = 0
        self.keys = self.width = 0

    def __dealloc__(self):
        free(self.rows)

    @classmethod
    def decode(cls, data):
        cdef bytes raw = bytes(data)
        cdef Records result = cls.__new__(cls)
        cdef Py_ssize_t row_bytes = WORD * result.width
        cdef Py_ssize_t count = len(raw) // row_bytes
        if len(raw) % row_bytes or count > ROWS_MAX:
            raise ProtocolError(
                f"a {cls.__name__} has up to {ROWS_MAX:,} entries of {row_bytes} bytes, got {len(raw):,} bytes"
            )
        _reserve(result, count)
        if count:
            memcpy(result.rows, <char*>raw, len(raw))
        result.count = count
        result.expect_state()
        return result

    cpdef bytes encode(self):
        return (<char*>self.rows)[:WORD * self.width * self.count] if self.count else b""

    @property
    def size_bytes(self):
        return WORD * self.width * self.count

    cpdef Lattice copy(self):
        cdef Records result = type(self).__new__(type(self))
        _reserve(result, self.count)
        if self.count:
            memcpy(result.rows, self.rows, WORD * self.width * self.count)
        result.count = self.count
        return result

    cpdef bint merge(self, Lattice other) except -1:
        expect(self, other)
        cdef Records that = <Records>other
        cdef Py_ssize_t i
        cdef bint grew = False
        if that.count > FEW:
            return _merge_many(self, that)
        for i in range(that.count):
            if self.raise_to(that.row(i)):
                grew = True
        return grew

    cpdef bint precedes(self, Lattice other) except -1:
        expect(self, other)
        cdef Records that = <Records>other
        cdef Py_ssize_t i
        cdef int column
        cdef uint64_t* mine
        cdef uint64_t* theirs
        for i in range(self.count):
            mine = self.row(i)
            theirs = that.find(mine)
            if theirs is NULL:
                return False
            for column in range(self.keys, self.width):
                if mine[column] > theirs[column]:
                    return False
        return True

    cdef uint64_t* row(self, Py_ssize_t i) noexcept:
        return self.rows + i * self.width

    cdef Py_ssize_t search(self, const uint64_t* key) noexcept:
        """Return where the first row is whose key is not less than `key`."""
        cdef Py_ssize_t low = 0
        cdef Py_ssize_t high = self.count
        cdef Py_ssize_t middle
        while low < high:
            middle = (low + high) >> 1
            if _compare(self.row(middle), key, self.keys) < 0:
                low = middle + 1
            else:
                high = middle
        return low

    cdef uint64_t* find(self, const uint64_t* key) noexcept:
        cdef Py_ssize_t i = self.search(key)
        return self.row(i) if i < self.count and _compare(self.row(i), key, self.keys) == 0 else NULL

    cdef bint raise_to(self, const uint64_t* record) except -1:
        """Join one row; True when it grew. Nothing happens for a row of zeros."""
        cdef Py_ssize_t i = self.search(record)
        cdef uint64_t* mine
        if _is_zero(record, self.keys, self.width):
            return False
        if i < self.count and _compare(self.row(i), record, self.keys) == 0:
            return _raise(self.row(i), record, self.keys, self.width)
        _reserve(self, self.count + 1)
        mine = self.row(i)
        memmove(mine + self.width, mine, WORD * self.width * (self.count - i))
        memcpy(mine, record, WORD * self.width)
        self.count += 1
        return True

    cdef int expect_state(self) except -1:
        """Raise ProtocolError unless the rows, just read, are those of a state."""
        cdef Py_ssize_t i
        for i in range(self.count):
            if _is_zero(self.row(i), self.keys, self.width):
                raise ProtocolError(f"entry {i} of a {type(self).__name__} counts nothing")
            if i and _compare(self.row(i - 1), self.row(i), self.keys) >= 0:
                raise ProtocolError(f"entry {i} of a {type(self).__name__} is not beyond the one before")
        return 0


cdef int _reserve(Records table, Py_ssize_t wanted) except -1:
    cdef uint64_t* grown
    if wanted > table.capacity:
        wanted = max(wanted, table.capacity + (table.capacity >> 1))
        grown = <uint64_t*>realloc(table.rows, WORD * table.width * wanted)
        if grown is NULL:
            raise MemoryError(f"no memory for {wanted:,} entries")
        table.rows, table.capacity = grown, wanted
    return 0


cdef int _compare(const uint64_t* left, const uint64_t* right, int keys) noexcept:
    cdef int column
    for column in range(keys):
        if left[column] != right[column]:
            return -1 if left[column] < right[column] else 1
    return 0


cdef bint _is_zero(const uint64_t* record, int keys, int width) noexcept:
    cdef int column
    for column in range(keys, width):
        if record[column]:
            return False
    return True


cdef bint _raise(uint64_t* mine, const uint64_t* theirs, int keys, int width) noexcept:
    cdef bint grew = False
    cdef int column
    for column in range(keys, width):
        if theirs[column] > mine[column]:
            mine[column] = theirs[column]
            grew = True
    return grew


cdef bint _merge_many(Records table, Records other) except -1:
    """Replace the rows of `table` by those of the join, in one pass over both; True when they grew."""
    cdef int width = table.width
    cdef uint64_t* merged
    cdef uint64_t* top
    cdef uint64_t* left = table.rows
    cdef uint64_t* left_end = left + table.count * width
    cdef uint64_t* right = other.rows
    cdef uint64_t* right_end = right + other.count * width
    cdef bint grew = False
    cdef int order
    if table.count == other.count and memcmp(left, right, WORD * width * table.count) == 0:
        return False
    merged = top = <uint64_t*>malloc(WORD * width * (table.count + other.count))
    if merged is NULL:
        raise MemoryError(f"no memory for {table.count + other.count:,} entries")
    while left < left_end or right < right_end:
        order = 1 if left == left_end else -1 if right == right_end else _compare(left, right, table.keys)
        memcpy(top, left if order <= 0 else right, WORD * width)
        if order <= 0:
            left += width
        if order > 0:
            grew = True
        elif order == 0 and _raise(top, right, table.keys, width):
            grew = True
        if order >= 0:
            right += width
        top += width
    free(table.rows)
    table.capacity = table.count + other.count
    table.count = (top - merged) // width
    table.rows = merged
    return grew
