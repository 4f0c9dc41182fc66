"""The ring of one view, compiled: which worker is the primary owner of a key, in a few nanoseconds.

The one rule: it answers exactly what `Ring.owners(key, 1)` answers. Nothing here places anything; the
points come from the ring. It is hot because clients route, and workers check, every key of every request:
2.9 µs for the ring, some 5 ns here.

A circle becomes a flat array of arc ends with, on top, a table indexed by the position's leading bits that
says where in the array to begin; with at least twice as many entries as points the search ends after about
one comparison. (Rejected: binary search, 7 or more dependent steps with unpredictable branches.)
"""

from libc.stdint cimport int32_t, uint64_t
from libc.stdlib cimport free, malloc

cimport cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from anna.routing.hash cimport hash64

from anna.config import VIRTUAL_NODES
from anna.errors import NoWorkers
from anna.routing.ring import Ring


cdef inline int member_at(const Arcs* arcs, uint64_t position) noexcept nogil:
    cdef Py_ssize_t i = arcs.first[position >> arcs.shift]
    while i < arcs.size and arcs.ends[i] < position:
        i += 1
    return arcs.members[i if i < arcs.size else 0]


@cython.final
cdef class ArcsOwner:
    """Owns the memory of one circle's arcs: at least one point, at most 2**31 - 1; members are numbered anew."""

    def __cinit__(self, list points, dict ordinals):
        cdef int bits = max(1, (2 * len(points)).bit_length())
        cdef Py_ssize_t entries = 1 << bits
        cdef Py_ssize_t i, j = 0
        cdef Arcs* arcs = &self.arcs
        arcs.size = len(points)
        arcs.shift = 64 - bits
        arcs.ends = <uint64_t*>malloc(arcs.size * sizeof(uint64_t))
        arcs.members = <int32_t*>malloc(arcs.size * sizeof(int32_t))
        arcs.first = <int32_t*>malloc(entries * sizeof(int32_t))
        if arcs.ends == NULL or arcs.members == NULL or arcs.first == NULL:
            raise MemoryError()
        for i in range(arcs.size):
            arcs.ends[i], arcs.members[i] = points[i][0], ordinals[points[i][1]]
        for i in range(entries):
            while j < arcs.size and arcs.ends[j] >> arcs.shift < <uint64_t>i:
                j += 1
            arcs.first[i] = <int32_t>j

    def __dealloc__(self):
        free(self.arcs.ends)
        free(self.arcs.members)
        free(self.arcs.first)


@cython.final
cdef class Placement:
    """The primary owners under one view, immutable; thread-safe.

    >>> from anna.messages import NodeInfo, View, WorkerInfo
    >>> view = View(1, (NodeInfo(1, (WorkerInfo(7, ("unix:/run/w0",), 0), WorkerInfo(8, ("unix:/run/w1",), 1))),))
    >>> Placement(view).owner_of(b"greeting").worker_id
    8
    """

    def __cinit__(self, view, virtual_nodes=VIRTUAL_NODES):
        cdef Py_ssize_t i
        self.view = view
        self.workers = len(view.workers)
        self.nodes = len(view.nodes)
        if self.nodes == 0:
            return
        ring = Ring.of(view, virtual_nodes)
        self.node_arcs = ArcsOwner(ring.circle.points, {node.node_id: n for n, node in enumerate(view.nodes)})
        self.branches = <Branch*>malloc(self.nodes * sizeof(Branch))
        if self.branches == NULL:
            raise MemoryError()
        self.seat_arcs = self.compile_seats(ring)

    cdef list compile_seats(self, object ring):
        """Fill `branches`; return what keeps their arcs alive. Nodes with the same seats share them."""
        cdef dict compiled = {}
        cdef ArcsOwner arcs
        cdef int first_worker = 0
        cdef int n
        for n, node in enumerate(self.view.nodes):
            circle = ring.seat_circle(node)
            if circle not in compiled:
                ordinals = {worker.seat: w for w, worker in enumerate(node.workers)}
                compiled[circle] = ArcsOwner(circle.points, ordinals)
            arcs = compiled[circle]
            self.branches[n].seats = &arcs.arcs
            self.branches[n].first_worker = first_worker
            first_worker += len(node.workers)
        return list(compiled.values())

    def __dealloc__(self):
        free(self.branches)

    cdef int owner(self, const char* key, Py_ssize_t size) noexcept nogil:
        """Return the index in `view.workers` of the key's primary owner; -1 when the view is empty."""
        if self.workers == 1:
            return 0
        return self.owner_at(hash64(key, size))

    cdef int owner_at(self, uint64_t position) noexcept nogil:
        """Return what `owner` does, for a key whose hash is known."""
        cdef Branch branch
        if self.workers <= 1:
            return self.workers - 1
        branch = self.branches[member_at(&self.node_arcs.arcs, position) if self.nodes > 1 else 0]
        return branch.first_worker + member_at(branch.seats, (position << 32) | (position >> 32))

    def index_of(self, bytes key not None):
        """Return the index in `view.workers` of the key's primary owner. Raises NoWorkers on an empty view."""
        cdef int index = self.owner(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if index < 0:
            raise NoWorkers(f"view {self.view.version} has no nodes")
        return index

    def owner_of(self, bytes key not None):
        """Return the key's primary owner. Raises NoWorkers on an empty view."""
        return self.view.workers[self.index_of(key)]
