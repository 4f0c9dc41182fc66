"""The rings of one view, compiled: which workers own a key, in a few nanoseconds.

The one rule: it answers exactly what `Rings.owners` answers, on the rings of the nodes that serve or on the rings of those that will
(`which`). It is hot because clients route, workers check every key of every request, and every write asks for all its owners:
2.9 µs for the ring's primary owner, some 5 ns here. Keys with a replication vector of their own stand in a table by their hash, which is
looked into only when there are any.

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
from anna.vectors import Vector

cdef enum:
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


cdef int primary_on(const Tier* tier, uint64_t position) noexcept nogil:
    """Return the first worker on a tier's ring from `position` on, as an index in `view.workers`; the ring is not empty."""
    cdef Branch branch = tier.branches[member_at(tier.arcs, position) if tier.nodes > 1 else 0]
    if branch.seats.members_count == 1:
        return branch.first_worker
    return branch.first_worker + member_at(branch.seats, swapped(position))


cdef int workers_on(const Tier* tier, uint64_t position, int count, int* out) noexcept nogil:
    """Write `count` workers of a tier's ring, no more than it has and OWNERS_ROOM, from `position` on; return `count`.

    They are on different nodes as long as there are any, then on different seats; one more is one at the end.
    """
    cdef int nodes[OWNERS_ROOM]
    cdef Branch branch
    cdef int i
    if count <= 1:
        if count:
            out[0] = primary_on(tier, position)
        return count
    if tier.nodes == 1:
        nodes[0] = 0
    else:
        clockwise(tier.arcs, position, count, nodes)
    if count > tier.nodes:
        return workers_of_few_nodes(tier, swapped(position), count, nodes, out)
    for i in range(count):
        branch = tier.branches[nodes[i]]
        out[i] = branch.first_worker
        if branch.seats.members_count > 1:
            out[i] += member_at(branch.seats, swapped(position))
    return count


cdef int workers_of_few_nodes(const Tier* tier, uint64_t entry, int count, const int* nodes, int* out) noexcept nogil:
    """Write `count` workers, no more than there are and more than there are nodes: every node's first seat, then second…"""
    cdef int seats[OWNERS_ROOM][OWNERS_ROOM]
    cdef int seats_count[OWNERS_ROOM]
    cdef int i, rank, found = 0
    for i in range(tier.nodes):
        seats_count[i] = clockwise(tier.branches[nodes[i]].seats, entry, count, seats[i])
    for rank in range(count):
        for i in range(tier.nodes):
            if rank < seats_count[i] and found < count:
                out[found] = tier.branches[nodes[i]].first_worker + seats[i][rank]
                found += 1
    return found


@cython.final
cdef class TierOwner:
    """Owns the memory of one tier's ring: its nodes, ascending by id, and where the workers of each begin in `view.workers`."""

    def __cinit__(self, list nodes, dict index_of, int virtual_nodes):
        self.tier.nodes = <int>len(nodes)
        self.tier.workers = <int>sum([len(node.workers) for node in nodes])
        if not nodes:
            return
        self.arcs = ArcsOwner(b"node", [node.node_id for node in nodes], virtual_nodes)
        self.tier.arcs = &self.arcs.arcs
        self.tier.branches = <Branch*>malloc(len(nodes) * sizeof(Branch))
        if self.tier.branches == NULL:
            raise MemoryError(f"no memory for a ring of {len(nodes):,} nodes")
        self.compile_seats(nodes, index_of, virtual_nodes)

    cdef int compile_seats(self, list nodes, dict index_of, int virtual_nodes) except -1:
        """Fill the branches, and keep what keeps their arcs alive. Nodes with the same seats share them."""
        cdef dict compiled = {}
        cdef ArcsOwner arcs
        cdef int n
        for n, node in enumerate(nodes):
            seats = tuple([worker.seat for worker in node.workers])
            arcs = compiled.get(seats)
            if arcs is None:
                arcs = compiled[seats] = ArcsOwner(b"seat", list(seats), virtual_nodes)
            self.tier.branches[n].seats = &arcs.arcs
            self.tier.branches[n].first_worker = index_of[node.workers[0].worker_id]
        self.seat_arcs = list(compiled.values())
        return 0

    def __dealloc__(self):
        free(self.tier.branches)


@cython.final
cdef class Placement:
    """The owners of keys under one view, primary first, as indexes into `view.workers`; immutable, thread-safe.

    `which` says who is meant: who answers for keys, or who will ("target"). `workers` counts those on its rings, `copies_usual` the
    owners of a key without a vector of its own, `copies_most` those that a key has or will have at most; `everywhere`: each worker of
    the view has a copy of each key.

    >>> from anna.messages import NodeInfo, View, WorkerInfo
    >>> view = View(1, (NodeInfo(1, (WorkerInfo(7, ("unix:/run/w0",), 0), WorkerInfo(8, ("unix:/run/w1",), 1))),), factor=2)
    >>> Placement(view).owner_of(b"greeting").worker_id
    8
    >>> Placement(view).owners_of(b"greeting")
    (1, 0)
    """

    def __cinit__(self, view, which="serving", int virtual_nodes=VIRTUAL_NODES):
        if which not in ("serving", "target"):
            raise ValueError(f"a placement is 'serving' or 'target', not {which!r}")
        cdef tuple nodes = view.serving if which == "serving" else view.target
        cdef dict index_of = {worker.worker_id: index for index, worker in enumerate(view.workers)}
        self.view = view
        self.memory = TierOwner([node for node in nodes if node.tier == "memory"], index_of, virtual_nodes)
        self.disk = TierOwner([node for node in nodes if node.tier != "memory"], index_of, virtual_nodes)
        self.workers = self.memory.tier.workers + self.disk.tier.workers
        self.usual = self.clamped(view.default)
        self.copies_usual = self.copies_most = self.usual.memory + self.usual.disk
        self.place_own(view.vectors.serving if which == "serving" else view.vectors.target)
        # Most of the time nobody is on the way in or out, and no copies move: then one ring is both.
        if which == "serving" and view.in_motion:
            self.target = Placement(view, "target", virtual_nodes)
            self.copies_most = max(self.copies_most, self.target.copies_most)
        self.everywhere = (self.target is None and self.own is NULL
                           and self.copies_usual == <int>len(view.workers))
        cdef Tier* first = &self.memory.tier if self.usual.memory else &self.disk.tier
        self.only = first.branches[0].first_worker if self.workers else -1
        self.is_one = self.workers <= 1 or (self.own is NULL and first.workers == 1)

    cdef Copies clamped(self, vector):
        """Return a vector as far as there are workers for it."""
        cdef Copies copies
        found = vector.clamped(self.memory.tier.workers, self.disk.tier.workers)
        copies.memory, copies.disk = found.memory, found.disk
        return copies

    cdef int place_own(self, dict vectors) except -1:
        """Fill the table of the keys that have a vector of their own, {position: vector}; at most half of its entries are used."""
        cdef uint64_t position, entry
        cdef Copies copies
        if not vectors or not self.workers:
            return 0
        self.own_mask = (1 << (2 * len(vectors)).bit_length()) - 1
        self.own = <Own*>calloc(self.own_mask + 1, sizeof(Own))
        if self.own is NULL:
            raise MemoryError(f"no memory for the vectors of {len(vectors):,} keys")
        for position, vector in vectors.items():
            copies = self.clamped(vector)
            entry = position & self.own_mask
            while self.own[entry].copies.memory + self.own[entry].copies.disk:
                entry = (entry + 1) & self.own_mask
            self.own[entry] = Own(position, copies)
            self.copies_most = max(self.copies_most, copies.memory + copies.disk)
        return 0

    def __dealloc__(self):
        free(self.own)

    cdef Copies copies_at(self, uint64_t position) noexcept nogil:
        """Return how many owners on each tier the key has whose hash is `position`."""
        cdef uint64_t entry
        if self.own is NULL:
            return self.usual
        entry = position & self.own_mask
        while self.own[entry].copies.memory + self.own[entry].copies.disk:
            if self.own[entry].position == position:
                return self.own[entry].copies
            entry = (entry + 1) & self.own_mask
        return self.usual

    cdef int owner(self, const char* key, Py_ssize_t size) noexcept nogil:
        """Return the index in `view.workers` of the key's primary owner; -1 when nobody is on the rings."""
        if self.is_one:
            return self.only
        return self.owner_at(hash64(key, size))

    cdef int owner_at(self, uint64_t position) noexcept nogil:
        """Return what `owner` does, for a key whose hash is known."""
        if self.is_one:
            return self.only
        if self.copies_at(position).memory:
            return primary_on(&self.memory.tier, position)
        return primary_on(&self.disk.tier, position)

    cdef int owners_at(self, uint64_t position, int* out) noexcept nogil:
        """Write the key's owners, at most OWNERS_ROOM on each of the two rings, primary first; return how many there are.

        (D14: never more than workers.)
        """
        cdef Copies copies = self.copies_at(position)
        cdef int found = workers_on(&self.memory.tier, position, copies.memory, out)
        if copies.disk:
            found += workers_on(&self.disk.tier, position, copies.disk, out + found)
        return found

    cdef int span_at(self, uint64_t position, int* out) noexcept nogil:
        """Write the owners that serve, then those to come that are not among them: all who are told of a write.

        At most SPAN_ROOM. A target placement has its own owners only.
        """
        cdef int arriving[2 * OWNERS_ROOM]
        cdef int found = self.owners_at(position, out)
        cdef int i
        if self.target is None:
            return found
        for i in range(self.target.owners_at(position, arriving)):
            if not is_among(arriving[i], out, found):
                out[found] = arriving[i]
                found += 1
        return found

    cdef int count_at(self, uint64_t position) noexcept nogil:
        """Return how many owners the key has, or will have when all moves are over, whichever are more."""
        cdef Copies copies = self.copies_at(position)
        if self.target is None:
            return copies.memory + copies.disk
        return max(copies.memory + copies.disk, self.target.count_at(position))

    cdef bint spans(self, uint64_t position, int place) noexcept nogil:
        """Whether the worker at `place` is among those whom `span_at` writes."""
        cdef int owners[SPAN_ROOM]
        return is_among(place, owners, self.span_at(position, owners))

    def owners_of(self, bytes key not None, count=None):
        """Return what `owners_at` writes: indexes into `view.workers`. Raises NoWorkers on empty rings.

        With a `count`: what it would write for a key with so many copies in memory and no vector of its own.
        """
        cdef int out[2 * OWNERS_ROOM]
        self.check_not_empty()
        cdef uint64_t position = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        cdef int found = self.owners_at(position, out) if count is None else self.some_at(position, count, out)
        return tuple([out[i] for i in range(found)])

    cdef int some_at(self, uint64_t position, object count, int* out):
        """Write the owners that a key with `count` copies in memory would have."""
        cdef Copies copies = self.clamped(Vector(min(max(count, 0), OWNERS_ROOM)))
        cdef int found = workers_on(&self.memory.tier, position, copies.memory, out)
        return found + workers_on(&self.disk.tier, position, copies.disk, out + found)

    def span_of(self, bytes key not None, count=None):
        """Return what `span_at` writes: indexes into `view.workers`. Empty when all rings are. `count` as for `owners_of`."""
        cdef int out[SPAN_ROOM]
        cdef uint64_t position = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if count is None:
            return tuple([out[i] for i in range(self.span_at(position, out))])
        serving = self.owners_of(key, count) if self.workers else ()
        arriving = self.target.owners_of(key, count) if self.target is not None and self.target.workers else ()
        return serving + tuple([place for place in arriving if place not in serving])

    def index_of(self, bytes key not None):
        """Return the index in `view.workers` of the key's primary owner. Raises NoWorkers on empty rings."""
        self.check_not_empty()
        return self.owner(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))

    def owner_of(self, bytes key not None):
        """Return the key's primary owner. Raises NoWorkers on empty rings."""
        return self.view.workers[self.index_of(key)]

    def first_at(self, uint64_t position):
        """Return the index in `view.workers` of the primary owner of keys whose hash is `position`. Raises NoWorkers on empty rings."""
        self.check_not_empty()
        return self.owner_at(position)

    def check_not_empty(self):
        """Raise NoWorkers when nobody is on the rings."""
        if self.workers == 0:
            raise NoWorkers(f"view {self.view.version} has no nodes")
