"""The rings of one view, compiled: which workers own a key, in a few nanoseconds.

The one rule: it answers exactly what `Ring.owners` answers, on the ring of the nodes that serve or on the ring of those that will
(`which`). It is hot because clients route, workers check every key of every request, and every write asks for all its owners:
2.9 µs for the ring's primary owner, some 5 ns here.

A circle becomes a flat array of arc ends with, on top, a table indexed by the position's leading bits that says where in the array
to begin; with at least twice as many entries as points the search ends after about one comparison. (Rejected: binary search, 7 or
more dependent steps with unpredictable branches.) The same table sorts the points when a view is compiled, because hashes fall
evenly into its entries: a thousand workers' circle takes milliseconds, where the ring's sorted list takes most of a second.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from anna.routing.hash cimport hash64

from anna import config
from anna.config import VIRTUAL_NODES
from anna.errors import NoWorkers

cdef enum:
    # Room for the owners of one key on one ring: config.OWNERS_MAX.
    OWNERS_ROOM = 16
    POINT_BYTES = 16

assert config.OWNERS_MAX == OWNERS_ROOM, config.OWNERS_MAX


cdef inline uint64_t swapped(uint64_t position) noexcept nogil:
    return (position << 32) | (position >> 32)


cdef inline Py_ssize_t arc_at(const Arcs* arcs, uint64_t position) noexcept nogil:
    """Return the place of the first arc that ends at or after `position`, clockwise."""
    cdef Py_ssize_t i = arcs.first[position >> arcs.shift]
    while i < arcs.size and arcs.ends[i] < position:
        i += 1
    return i if i < arcs.size else 0


cdef inline int member_at(const Arcs* arcs, uint64_t position) noexcept nogil:
    return arcs.members[arc_at(arcs, position)]


cdef inline bint is_among(int one, const int* some, int count) noexcept nogil:
    cdef int i
    for i in range(count):
        if some[i] == one:
            return True
    return False


cdef int clockwise(const Arcs* arcs, uint64_t position, int count, int* out) noexcept nogil:
    """Write the first `count` distinct members from `position` on; return how many there are, at most all."""
    cdef Py_ssize_t i = arc_at(arcs, position)
    cdef int found = 0, member
    if count > arcs.members_count:
        count = arcs.members_count
    while found < count:
        member = arcs.members[i]
        if not is_among(member, out, found):
            out[found] = member
            found += 1
        i += 1
        if i == arcs.size:
            i = 0
    return found


@cython.final
cdef class ArcsOwner:
    """Owns the memory of one circle's arcs: `Circle(label)` of these members, ascending, numbered anew from 0."""

    def __cinit__(self, bytes label, list numbers, int virtual_nodes):
        cdef Py_ssize_t size = len(numbers) * virtual_nodes
        cdef int bits = max(1, (2 * size).bit_length())
        cdef uint64_t* positions = <uint64_t*>malloc(size * sizeof(uint64_t))
        cdef int32_t* members = <int32_t*>malloc(size * sizeof(int32_t))
        self.arcs.size = size
        self.arcs.shift = 64 - bits
        self.arcs.members_count = <int>len(numbers)
        self.arcs.ends = <uint64_t*>malloc(size * sizeof(uint64_t))
        self.arcs.members = <int32_t*>malloc(size * sizeof(int32_t))
        self.arcs.first = <int32_t*>calloc(1 << bits, sizeof(int32_t))
        try:
            if not (positions and members and self.arcs.ends and self.arcs.members and self.arcs.first):
                raise MemoryError(f"no memory for a circle of {size:,} points")
            place_points(label, numbers, virtual_nodes, positions, members)
            self.sort_points(positions, members)
        finally:
            free(positions)
            free(members)

    cdef int sort_points(self, const uint64_t* positions, const int32_t* members) except -1:
        """Fill `first`, `ends` and `members` in clockwise order; members at one position by number. O(points) for hashes."""
        cdef Arcs* arcs = &self.arcs
        cdef Py_ssize_t entries = 1 << (64 - arcs.shift)
        cdef Py_ssize_t i, hole
        cdef uint64_t entry
        for i in range(arcs.size):
            arcs.first[positions[i] >> arcs.shift] += 1
        for i in range(1, entries):
            arcs.first[i] += arcs.first[i - 1]
        # `first` has the ends of the entries; as the points are taken, last to first, it moves to their beginnings.
        for i in range(arcs.size - 1, -1, -1):
            entry = positions[i] >> arcs.shift
            arcs.first[entry] -= 1
            arcs.ends[arcs.first[entry]] = positions[i]
            arcs.members[arcs.first[entry]] = members[i]
        # What is left to sort are the few points within an entry.
        for i in range(1, arcs.size):
            hole = i
            while hole > 0 and arcs.ends[hole - 1] > arcs.ends[hole]:
                arcs.ends[hole - 1], arcs.ends[hole] = arcs.ends[hole], arcs.ends[hole - 1]
                arcs.members[hole - 1], arcs.members[hole] = arcs.members[hole], arcs.members[hole - 1]
                hole -= 1
        return 0

    def __dealloc__(self):
        free(self.arcs.ends)
        free(self.arcs.members)
        free(self.arcs.first)


cdef void place_points(bytes label, list numbers, int virtual_nodes, uint64_t* positions, int32_t* members):
    """Write each member's points as `Circle` defines them: the hashes of (label of 4 bytes, u64 number, u32 index)."""
    cdef char point[POINT_BYTES]
    cdef uint64_t number
    cdef uint32_t index
    cdef int32_t ordinal
    cdef Py_ssize_t i = 0
    memcpy(point, PyBytes_AS_STRING(label), 4)
    for ordinal in range(<int32_t>len(numbers)):
        number = numbers[ordinal]
        memcpy(point + 4, &number, 8)
        for index in range(<uint32_t>virtual_nodes):
            memcpy(point + 12, &index, 4)
            positions[i] = hash64(point, POINT_BYTES)
            members[i] = ordinal
            i += 1


@cython.final
cdef class Placement:
    """The owners of keys under one view, primary first, as indexes into `view.workers`; immutable, thread-safe.

    `which` says on whose ring: that of the nodes that serve, or that of those that will ("target"). `workers` counts those on it.

    >>> from anna.messages import NodeInfo, View, WorkerInfo
    >>> view = View(1, (NodeInfo(1, (WorkerInfo(7, ("unix:/run/w0",), 0), WorkerInfo(8, ("unix:/run/w1",), 1))),))
    >>> Placement(view).owner_of(b"greeting").worker_id
    8
    >>> Placement(view).owners_of(b"greeting", 3)
    (1, 0)
    """

    def __cinit__(self, view, which="serving", int virtual_nodes=VIRTUAL_NODES):
        if which not in ("serving", "target"):
            raise ValueError(f"a placement is 'serving' or 'target', not {which!r}")
        cdef tuple nodes = view.serving if which == "serving" else view.target
        self.view = view
        self.nodes = len(nodes)
        self.workers = sum([len(node.workers) for node in nodes])
        self.only = -1
        # Most of the time nobody is on the way in or out: then one ring is both.
        if which == "serving" and nodes != view.target:
            self.target = Placement(view, "target", virtual_nodes)
        if self.nodes == 0:
            return
        self.node_arcs = ArcsOwner(b"node", [node.node_id for node in nodes], virtual_nodes)
        self.branches = <Branch*>malloc(self.nodes * sizeof(Branch))
        if self.branches == NULL:
            raise MemoryError()
        self.seat_arcs = self.compile_seats(nodes, virtual_nodes)
        self.only = self.branches[0].first_worker

    cdef list compile_seats(self, tuple nodes, int virtual_nodes):
        """Fill `branches`; return what keeps their arcs alive. Nodes with the same seats share them."""
        cdef dict compiled = {}
        cdef dict index_of = {worker.worker_id: index for index, worker in enumerate(self.view.workers)}
        cdef ArcsOwner arcs
        cdef int n
        for n, node in enumerate(nodes):
            seats = tuple([worker.seat for worker in node.workers])
            arcs = compiled.get(seats)
            if arcs is None:
                arcs = compiled[seats] = ArcsOwner(b"seat", list(seats), virtual_nodes)
            self.branches[n].seats = &arcs.arcs
            self.branches[n].first_worker = index_of[node.workers[0].worker_id]
        return list(compiled.values())

    def __dealloc__(self):
        free(self.branches)

    cdef int owner(self, const char* key, Py_ssize_t size) noexcept nogil:
        """Return the index in `view.workers` of the key's primary owner; -1 when nobody is on the ring."""
        if self.workers <= 1:
            return self.only
        return self.owner_at(hash64(key, size))

    cdef int owner_at(self, uint64_t position) noexcept nogil:
        """Return what `owner` does, for a key whose hash is known."""
        cdef Branch branch
        if self.workers <= 1:
            return self.only
        branch = self.branches[member_at(&self.node_arcs.arcs, position) if self.nodes > 1 else 0]
        if branch.seats.members_count == 1:
            return branch.first_worker
        return branch.first_worker + member_at(branch.seats, swapped(position))

    cdef int owners_at(self, uint64_t position, int count, int* out) noexcept nogil:
        """Write the first `count` owners, at most OWNERS_MAX, primary first; return how many there are (D14: never more than workers).

        They are on different nodes as long as there are any, then on different seats; one more is one at the end.
        """
        cdef int nodes[OWNERS_ROOM]
        cdef Branch branch
        cdef int i
        if count > OWNERS_ROOM:
            count = OWNERS_ROOM
        if count > self.workers:
            count = self.workers
        if count == 1:
            out[0] = self.owner_at(position)
        if count <= 1:
            return count
        if self.nodes == 1:
            nodes[0] = 0
        else:
            clockwise(&self.node_arcs.arcs, position, count, nodes)
        if count > self.nodes:
            return self.owners_of_few_nodes(swapped(position), count, nodes, out)
        for i in range(count):
            branch = self.branches[nodes[i]]
            out[i] = branch.first_worker
            if branch.seats.members_count > 1:
                out[i] += member_at(branch.seats, swapped(position))
        return count

    cdef int owners_of_few_nodes(self, uint64_t entry, int count, const int* nodes, int* out) noexcept nogil:
        """Write `count` owners, fewer than there are workers and more than there are nodes: every node's first seat, then second…"""
        cdef int seats[OWNERS_ROOM][OWNERS_ROOM]
        cdef int seats_count[OWNERS_ROOM]
        cdef int i, rank, found = 0
        for i in range(self.nodes):
            seats_count[i] = clockwise(self.branches[nodes[i]].seats, entry, count, seats[i])
        for rank in range(count):
            for i in range(self.nodes):
                if rank < seats_count[i] and found < count:
                    out[found] = self.branches[nodes[i]].first_worker + seats[i][rank]
                    found += 1
        return found

    cdef int span_at(self, uint64_t position, int count, int* out) noexcept nogil:
        """Write the serving owners, then the target owners that are not among them: all who are told of a write.

        At most 2 · OWNERS_MAX; each ring gives `count`. A target placement has its own owners only.
        """
        cdef int arriving[OWNERS_ROOM]
        cdef int found = self.owners_at(position, count, out)
        cdef int i
        if self.target is None:
            return found
        for i in range(self.target.owners_at(position, count, arriving)):
            if not is_among(arriving[i], out, found):
                out[found] = arriving[i]
                found += 1
        return found

    def owners_of(self, bytes key not None, int count):
        """Return what `owners_at` writes: indexes into `view.workers`. Raises NoWorkers on an empty ring."""
        cdef int out[OWNERS_ROOM]
        self.check_not_empty()
        cdef int found = self.owners_at(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), max(count, 0), out)
        return tuple([out[i] for i in range(found)])

    def span_of(self, bytes key not None, int count):
        """Return what `span_at` writes: indexes into `view.workers`. Empty when both rings are."""
        cdef int out[2 * OWNERS_ROOM]
        cdef int found = self.span_at(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), max(count, 0), out)
        return tuple([out[i] for i in range(found)])

    def index_of(self, bytes key not None):
        """Return the index in `view.workers` of the key's primary owner. Raises NoWorkers on an empty ring."""
        self.check_not_empty()
        return self.owner(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))

    def owner_of(self, bytes key not None):
        """Return the key's primary owner. Raises NoWorkers on an empty ring."""
        return self.view.workers[self.index_of(key)]

    def check_not_empty(self):
        """Raise NoWorkers when nobody is on the ring."""
        if self.nodes == 0:
            raise NoWorkers(f"view {self.view.version} has no nodes")
