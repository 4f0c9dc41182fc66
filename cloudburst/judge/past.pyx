"""What is in a transaction's past, and which commits a read forces into an order: the part that is hot.

The one rule: `Past` says what reachability along the edges says, no more and no less (the naive search in
`tests/cloudburst/judge` is its oracle). Sessions are chains, so a past is one number for each chain, how far it reaches into it: a
vector clock, which is the greatest of its predecessors'. A past of 100,000 transactions in 50 sessions is 20 MB and
takes some 10 ms; the same by lists of Python took seconds. Chains are loaded in blocks of columns, so that memory stays
bounded however many there are.

Source: Biswas & Enea, On the Complexity of Checking Transactional Consistency (OOPSLA 2019): a read of `x` from t1 by
t3 forces every t2 that wrote `x` and is in the past of t3 before t1; consistent is what can then still be put into one line.
Of each chain the last such t2 is enough, since the others are before it already.
"""

from array import array

from cpython cimport array
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset

cdef enum:
    NOBODY = -1
    INDIRECT = 0
    DIRECT = 1
    UNDECIDED = 2


cdef array.array template = array("i")


cdef array.array taken(const int* values, Py_ssize_t count):
    cdef array.array made = array.clone(template, count, zero=False)
    cdef Py_ssize_t place
    for place in range(count):
        made.data.as_ints[place] = values[place]
    return made


def topological(int count, array.array tails, array.array heads):
    """Return `count` transactions so that each edge's tail is before its head; those on a cycle, or after one, are missing."""
    cdef Py_ssize_t edges = len(tails), edge
    cdef array.array starts = array.clone(template, count + 1, zero=True)
    cdef array.array after = array.clone(template, edges, zero=False)
    cdef array.array waits = array.clone(template, count, zero=True)
    cdef array.array order = array.clone(template, count, zero=False)
    cdef int* start = starts.data.as_ints
    cdef int* waiting = waits.data.as_ints
    cdef int* sorted_ones = order.data.as_ints
    cdef int one, head, begin, end
    for edge in range(edges):
        start[tails.data.as_ints[edge]] += 1
        waiting[heads.data.as_ints[edge]] += 1
    for one in range(1, count + 1):
        start[one] += start[one - 1]
    for edge in range(edges):
        one = tails.data.as_ints[edge]
        start[one] -= 1
        after.data.as_ints[start[one]] = heads.data.as_ints[edge]
    begin = end = 0
    for one in range(count):
        if waiting[one] == 0:
            sorted_ones[end] = one
            end += 1
    while begin < end:
        one = sorted_ones[begin]
        begin += 1
        for edge in range(start[one], start[one + 1]):
            head = after.data.as_ints[edge]
            waiting[head] -= 1
            if waiting[head] == 0:
                sorted_ones[end] = head
                end += 1
    return order[:end]


cdef class Past:
    """The pasts of all transactions along edges without cycles, for one block of chains at a time.

    `column[t]` is the chain of t, or -1 when nobody asks who follows t; `position[t]` its place there, from 1.
    """

    cdef readonly int first, width, count
    cdef array.array order, starts, before_it, column, position
    cdef int* reach

    def __cinit__(self):
        self.reach = NULL

    def __init__(self, array.array order, array.array tails, array.array heads, array.array column, array.array position):
        cdef Py_ssize_t edge, edges = len(tails)
        cdef int one
        self.count = len(order)
        self.order, self.column, self.position = order, column, position
        self.starts = array.clone(template, self.count + 1, zero=True)
        self.before_it = array.clone(template, edges, zero=False)
        self.first = self.width = 0
        cdef int* start = self.starts.data.as_ints
        for edge in range(edges):
            start[heads.data.as_ints[edge]] += 1
        for one in range(1, self.count + 1):
            start[one] += start[one - 1]
        for edge in range(edges):
            one = heads.data.as_ints[edge]
            start[one] -= 1
            self.before_it.data.as_ints[start[one]] = tails.data.as_ints[edge]

    def __dealloc__(self):
        free(self.reach)

    def load(self, int first, int width):
        """Compute how far all pasts reach into the chains `first` to `first + width - 1`. 4 bytes for each of both."""
        cdef size_t size = <size_t>self.count * max(width, 1) * sizeof(int)
        if width > self.width or self.reach is NULL:
            free(self.reach)
            self.reach = <int*>malloc(size)
            if self.reach is NULL:
                raise MemoryError(f"{size:,} bytes for {self.count:,} transactions and {width:,} chains")
        self.first, self.width = first, width
        memset(self.reach, 0, size)
        cdef int place, one, chain
        cdef Py_ssize_t edge, at
        cdef int* mine
        cdef const int* theirs
        for place in range(self.count):
            one = self.order.data.as_ints[place]
            mine = self.reach + <Py_ssize_t>one * width
            for edge in range(self.starts.data.as_ints[one], self.starts.data.as_ints[one + 1]):
                theirs = self.reach + <Py_ssize_t>self.before_it.data.as_ints[edge] * width
                for at in range(width):
                    mine[at] = theirs[at] if theirs[at] > mine[at] else mine[at]
            chain = self.column.data.as_ints[one] - first
            if 0 <= chain < width and self.column.data.as_ints[one] >= 0:
                mine[chain] = self.position.data.as_ints[one]

    def holds(self, int one):
        """Return whether the chain of `one` is among those loaded."""
        return self.column.data.as_ints[one] >= 0 and self.first <= self.column.data.as_ints[one] < self.first + self.width

    def precedes(self, int one, int other):
        """Return whether `one` is in the past of `other`, another one. The chain of `one` must be loaded."""
        return one != other and self.includes(one, other)

    cdef inline bint includes(self, int one, int other) noexcept:
        return self.reach[<Py_ssize_t>other * self.width + self.column.data.as_ints[one] - self.first] >= self.position.data.as_ints[one]

    def reaches(self, int one, int chain):
        """Return how far the past of `one` reaches into a chain that is loaded, `one` itself left out."""
        return self.bound(one, chain)

    cdef inline int bound(self, int one, int chain) noexcept:
        cdef int upto = self.reach[<Py_ssize_t>one * self.width + chain - self.first]
        return upto - 1 if self.column.data.as_ints[one] == chain else upto

    def forced(
        self, array.array reader, array.array key, array.array source,
        array.array key_groups, array.array group_chain, array.array group_start, array.array writer_position, array.array writer,
    ):
        """Return (read, t2, directness) of each order that the reads force, in the chains that are loaded, as three arrays.

        Reads are columns: who read which key from whom, -1 for what was there before all. The writers of key k are the
        groups key_groups[k] to key_groups[k + 1], one for each chain; group g has the chain group_chain[g] and the
        writers group_start[g] to group_start[g + 1] by position. Left out are orders that the past of the source has.
        Directness: 1 when t1 is in the past of t2, 2 when its chain is not loaded, 0 otherwise; of those with 0 only such that are no consequence of others.
        """
        cdef Py_ssize_t reads = len(reader), read, group, low, high, middle, room = 1024, found = 0
        cdef int one, origin, chain, upto, other, directness
        cdef int* forced_reads = <int*>malloc(room * 3 * sizeof(int))
        cdef int* told = <int*>calloc(<size_t>self.count * max(self.width, 1), sizeof(int))
        cdef int* slot
        if forced_reads is NULL or told is NULL:
            free(forced_reads)
            free(told)
            raise MemoryError
        try:
            for read in range(reads):
                one = reader.data.as_ints[read]
                origin = source.data.as_ints[read]
                for group in range(key_groups.data.as_ints[key.data.as_ints[read]], key_groups.data.as_ints[key.data.as_ints[read] + 1]):
                    chain = group_chain.data.as_ints[group]
                    if chain < self.first or chain >= self.first + self.width:
                        continue
                    upto = self.bound(one, chain)
                    low, high = group_start.data.as_ints[group], group_start.data.as_ints[group + 1]
                    while low < high:
                        middle = (low + high) // 2
                        if writer_position.data.as_ints[middle] <= upto:
                            low = middle + 1
                        else:
                            high = middle
                    if low == group_start.data.as_ints[group]:
                        continue
                    other = writer.data.as_ints[low - 1]
                    if other == origin:
                        continue
                    if origin == NOBODY:
                        directness = DIRECT
                    else:
                        if self.includes(other, origin):
                            continue
                        if not (0 <= self.column.data.as_ints[origin] - self.first < self.width):
                            directness = UNDECIDED
                        elif self.includes(origin, other):
                            directness = DIRECT
                        else:
                            directness = INDIRECT
                            slot = told + <Py_ssize_t>origin * self.width + chain - self.first
                            if slot[0] >= self.position.data.as_ints[other]:
                                continue
                            slot[0] = self.position.data.as_ints[other]
                    if found == room:
                        room *= 2
                        slot = <int*>realloc(forced_reads, room * 3 * sizeof(int))
                        if slot is NULL:
                            raise MemoryError
                        forced_reads = slot
                    forced_reads[3 * found] = read
                    forced_reads[3 * found + 1] = other
                    forced_reads[3 * found + 2] = directness
                    found += 1
            flat = taken(forced_reads, 3 * found)
            return flat[0::3], flat[1::3], flat[2::3]
        finally:
            free(forced_reads)
            free(told)
