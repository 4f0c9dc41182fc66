"""Sets of events, exactly: what a replica has seen, what a version supersedes.

A *dot* (writer, number) names one event: the writer's number-th write. The one rule: a set of dots says precisely
which events are meant, never "all up to". A vector clock cannot tell "seen 2" from "seen 1 and 2", and would let a
write supersede a sibling that its author never read. Kept as maximal intervals (writer, first, last), so that
contiguous events cost 24 bytes however many they are. Source: Almeida et al. 2018, §7.2 (causal contexts with gaps);
Preguiça et al. 2010 (dotted version vectors).

Numbers must never repeat, even when a worker hands a key over, forgets it, gets a stale copy back, and writes on. So
each *tenure* of a worker over a key, the time in which one object in its store holds the key's state, begins at the
stamp of its first write and goes on by one from there: numbers before the stamp belong to earlier tenures, and are
never continued. A worker's clock runs faster (1,024 stamps a microsecond) than it can write, so no tenure catches up
with the next.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove

cimport cython

from anna.layout cimport Reader, expect_end, reader_of, take, take_varint, varint_bytes, write_varint

from anna.errors import ProtocolError, ValueTooLarge

cdef enum:
    FEW = 8  # intervals that are inserted one by one; more are merged in one pass

cdef uint64_t NUMBER_MAX = (<uint64_t>1 << 63) - 1


@cython.final
@cython.no_gc
cdef class Dots:
    """A set of dots.

    >>> seen = Dots([(7, 1), (7, 2), (7, 4), (9, 1)])
    >>> seen.intervals
    ((7, 1, 2), (7, 4, 4), (9, 1, 1))
    >>> (7, 3) in seen, len(seen | Dots([(7, 3)])), Dots([(7, 2)]) <= seen
    (False, 5, True)
    """

    def __cinit__(self):
        self.spans = NULL
        self.count = self.capacity = 0

    def __init__(self, dots=()):
        cdef uint64_t writer, number
        for writer, number in dots:
            if not 1 <= number <= NUMBER_MAX:
                raise ValueError(f"the number of a dot is 1 to 2**63 - 1, got {number}")
            self.insert(writer, number, number)

    def __dealloc__(self):
        free(self.spans)

    @property
    def intervals(self):
        """The maximal intervals (writer, first, last), ascending."""
        cdef Py_ssize_t i
        return tuple([(self.spans[i].writer, self.spans[i].first, self.spans[i].last) for i in range(self.count)])

    cpdef Dots copy(self):
        cdef Dots result = Dots.__new__(Dots)
        _reserve(result, self.count)
        if self.count:
            memcpy(result.spans, self.spans, self.count * sizeof(Interval))
        result.count = self.count
        return result

    cdef bint has(self, uint64_t writer, uint64_t number) noexcept:
        cdef Py_ssize_t i = _search(self, writer, number)
        return i < self.count and self.spans[i].writer == writer and self.spans[i].first <= number

    cdef uint64_t last_of(self, uint64_t writer) noexcept:
        """The greatest number of `writer`, 0 when there is none."""
        cdef Py_ssize_t i = _search(self, writer, NUMBER_MAX + 1)
        return self.spans[i - 1].last if i > 0 and self.spans[i - 1].writer == writer else 0

    cdef uint64_t total(self) noexcept:
        """How many dots; at most 2**64 - 1, however many more."""
        cdef uint64_t total = 0
        cdef uint64_t length
        cdef Py_ssize_t i
        for i in range(self.count):
            length = self.spans[i].last - self.spans[i].first + 1
            if length > 0xFFFFFFFFFFFFFFFF - total:
                return 0xFFFFFFFFFFFFFFFF
            total += length
        return total

    cdef bint insert(self, uint64_t writer, uint64_t first, uint64_t last) except -1:
        """Add the dots `first` to `last` of `writer`; True when any was new. O(log n), plus a shift of what follows."""
        cdef Py_ssize_t i = _search(self, writer, first - 1)
        cdef Py_ssize_t end = i
        cdef Interval* at
        while end < self.count and self.spans[end].writer == writer and self.spans[end].first <= last + 1:
            end += 1
        if end == i:
            _reserve(self, self.count + 1)
        else:
            if end == i + 1 and self.spans[i].first <= first and last <= self.spans[i].last:
                return False
            first = min(first, self.spans[i].first)
            last = max(last, self.spans[end - 1].last)
        at = self.spans + i
        memmove(at + 1, self.spans + end, (self.count - end) * sizeof(Interval))
        self.count += 1 - (end - i)
        at.writer, at.first, at.last = writer, first, last
        return True

    cdef bint unite(self, Dots other) except -1:
        """Add all dots of `other`; True when any was new. O(few · log n), or O(n + m)."""
        cdef bint grew = False
        cdef Py_ssize_t i
        if other.count <= FEW:
            for i in range(other.count):
                if self.insert(other.spans[i].writer, other.spans[i].first, other.spans[i].last):
                    grew = True
            return grew
        if other.within(self):
            return False
        _merge(self, other)
        return True

    cdef bint within(self, Dots other) noexcept:
        cdef Py_ssize_t i, j
        cdef Interval* mine
        for i in range(self.count):
            mine = self.spans + i
            j = _search(other, mine.writer, mine.last)
            if j == other.count or other.spans[j].writer != mine.writer or other.spans[j].first > mine.first:
                return False
        return True

    cdef bint same(self, Dots other) noexcept:
        return self.count == other.count and (
            self.count == 0 or memcmp(self.spans, other.spans, self.count * sizeof(Interval)) == 0
        )

    cdef Py_ssize_t size(self) noexcept:
        """How many bytes `write` writes."""
        return varint_bytes(self.count) + INTERVAL_BYTES * self.count

    cdef char* write(self, char* target) noexcept:
        """Write the number of intervals, then each as three integers of 8 bytes."""
        target = write_varint(target, self.count)
        if self.count:
            memcpy(target, self.spans, INTERVAL_BYTES * self.count)
        return target + INTERVAL_BYTES * self.count

    def encode(self):
        cdef bytes result = bytes(self.size())
        self.write(<char*>result)
        return result

    @classmethod
    def decode(cls, data):
        cdef bytes raw = bytes(data)
        cdef Reader reader = reader_of(raw)
        cdef Dots result = take_dots(&reader, len(raw))
        expect_end(&reader, "a set of dots")
        return result

    def __iter__(self):
        for writer, first, last in self.intervals:
            for number in range(first, last + 1):
                yield writer, number

    def __len__(self):
        return min(self.total(), 0x7FFFFFFFFFFFFFFF)

    def __bool__(self):
        return self.count > 0

    def __contains__(self, dot):
        writer, number = dot
        return self.has(writer, number)

    def __or__(self, other):
        if type(other) is not Dots:
            return NotImplemented
        cdef Dots result = self.copy()
        result.unite(<Dots>other)
        return result

    def __le__(self, other):
        if type(other) is not Dots:
            return NotImplemented
        return self.within(<Dots>other)

    def __lt__(self, other):
        return self <= other and self != other

    def __eq__(self, other):
        return type(other) is Dots and self.same(<Dots>other)

    def __hash__(self):
        return hash(self.encode())

    def __repr__(self):
        return f"Dots.of_intervals({list(self.intervals)})"

    @classmethod
    def of_intervals(cls, intervals):
        """Return the dots of some (writer, first, last), which may touch, overlap and come in any order."""
        cdef Dots result = Dots.__new__(Dots)
        cdef uint64_t writer, first, last
        for writer, first, last in intervals:
            if not 1 <= first <= last <= NUMBER_MAX:
                raise ValueError(f"an interval has 1 <= first <= last <= 2**63 - 1, got {first} to {last}")
            result.insert(writer, first, last)
        return result

    def __reduce__(self):
        return Dots.decode, (self.encode(),)


cdef int _reserve(Dots dots, Py_ssize_t wanted) except -1:
    cdef Interval* grown
    if wanted > dots.capacity:
        wanted = max(wanted, dots.capacity + (dots.capacity >> 1) if dots.capacity else wanted)
        grown = <Interval*>realloc(dots.spans, wanted * sizeof(Interval))
        if grown is NULL:
            raise MemoryError(f"no memory for {wanted:,} intervals")
        dots.spans, dots.capacity = grown, wanted
    return 0


cdef Py_ssize_t _search(Dots dots, uint64_t writer, uint64_t number) noexcept:
    """Return where the first interval is that ends at or after (writer, number)."""
    cdef Py_ssize_t low = 0
    cdef Py_ssize_t high = dots.count
    cdef Py_ssize_t middle
    cdef Interval* at
    while low < high:
        middle = (low + high) >> 1
        at = dots.spans + middle
        if at.writer < writer or at.writer == writer and at.last < number:
            low = middle + 1
        else:
            high = middle
    return low


cdef int _merge(Dots dots, Dots other) except -1:
    """Replace the intervals of `dots` by those of the union, in one pass over both."""
    cdef Interval* left = dots.spans
    cdef Interval* left_end = left + dots.count
    cdef Interval* right = other.spans
    cdef Interval* right_end = right + other.count
    cdef Interval* merged = <Interval*>malloc((dots.count + other.count) * sizeof(Interval))
    cdef Interval* top = merged - 1
    cdef Interval* at
    if merged is NULL:
        raise MemoryError(f"no memory for {dots.count + other.count:,} intervals")
    while left < left_end or right < right_end:
        if right == right_end or left < left_end and (
            left.writer < right.writer or left.writer == right.writer and left.first <= right.first
        ):
            at = left
            left += 1
        else:
            at = right
            right += 1
        if top >= merged and top.writer == at.writer and at.first <= top.last + 1:
            top.last = max(top.last, at.last)
        else:
            top += 1
            top[0] = at[0]
    free(dots.spans)
    dots.capacity = dots.count + other.count
    dots.count = top + 1 - merged
    dots.spans = merged
    return 0


cdef Dots take_dots(Reader* reader, Py_ssize_t intervals_max):
    """Read what `write` wrote. Raises ProtocolError on intervals that are empty, not maximal or not ascending."""
    cdef uint64_t count = take_varint(reader)
    cdef const char* data
    cdef Dots result
    cdef Interval* at
    cdef Py_ssize_t i
    if count > <uint64_t>intervals_max:
        raise ProtocolError(f"a set of dots has {count:,} intervals; the most is {intervals_max:,}")
    if count > <uint64_t>(reader.end - reader.next) // INTERVAL_BYTES:
        raise ProtocolError(f"{count:,} intervals of dots need more than the {reader.end - reader.next:,} bytes left")
    data = take(reader, count * INTERVAL_BYTES)
    result = Dots.__new__(Dots)
    _reserve(result, count)
    if count:
        memcpy(result.spans, data, count * INTERVAL_BYTES)
    result.count = count
    for i in range(result.count):
        at = result.spans + i
        if not 1 <= at.first <= at.last <= NUMBER_MAX:
            raise ProtocolError(f"dots {at.first} to {at.last} of writer {at.writer} are no interval")
        if i and ((at - 1).writer > at.writer or (at - 1).writer == at.writer and (at - 1).last + 1 >= at.first):
            raise ProtocolError(f"interval {i} of a set of dots is not beyond the one before")
    return result


cdef Dots dots_of(object source):
    """Return the dots that a user means by Dots, or by anything with a `clock` that is one."""
    if source is None:
        return Dots.__new__(Dots)
    if type(source) is Dots:
        return source
    clock = getattr(source, "clock", None)
    if type(clock) is Dots:
        return clock
    raise TypeError(f"expected Dots or a state that has a clock, got {type(source).__name__}")


cdef uint64_t begin(Tenure* tenure, uint64_t stamp, uint64_t writer) noexcept:
    """Return the stamp since which `writer` has written to the state that keeps `tenure`; now, if it has not yet.

    A tenure is a note of the worker on its own object. It is no part of the state: not encoded, copied or compared.
    """
    if tenure.writer != writer or tenure.since == 0:
        tenure.writer, tenure.since = writer, stamp
    return tenure.since


cdef uint64_t next_number(
    Dots mine, Dots seen, uint64_t since, uint64_t stamp, uint64_t writer, uint64_t count
) except 0:
    """Return the first number of the next `count` events of `writer` on a key.

    `mine` are the key's dots at this worker, `seen` those that the events' author had read. The number follows the
    greatest of this tenure, or is the stamp when there is none. Raises ValueTooLarge when they are used up.
    """
    cdef uint64_t last = mine.last_of(writer)
    cdef uint64_t known = max(last, seen.last_of(writer))
    cdef uint64_t number = known + 1 if last and last >= since else max(known + 1, stamp)
    if number > NUMBER_MAX or count > NUMBER_MAX - number + 1:
        raise ValueTooLarge(f"writer {writer} has no {count:,} numbers of dots left after {known}")
    return number
