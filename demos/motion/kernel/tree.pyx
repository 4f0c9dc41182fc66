"""A tree of configurations in flat arrays: the nearest by looking at all, costs kept along every branch.

Rule: `so_far[node]` is the cost of the way from the root to the node, always; a node that gets a cheaper parent
makes all below it cheaper at once.

Looking at all nodes is what a processor is best at: eight nodes lie side by side, joint by joint, so that the
loop is vectorised. With 2,000 nodes of 14 joints it costs about as much as five collision checks, and an edge
takes dozens; a k-d tree would win only with many more nodes than pruning leaves.
"""

from libc.math cimport fabs
from libc.stdlib cimport free, realloc

cdef enum:
    LANES = 8


cdef void *resized(void *memory, size_t size) except NULL nogil:
    cdef void *grown = realloc(memory, size)
    if grown == NULL:
        with gil:
            raise MemoryError(f"a tree of {size:,} bytes")
    return grown


cdef int grow(Tree *self) except -1 nogil:
    """Make room for twice as many nodes."""
    cdef int room = 2 * self.room if self.room else 256
    self.blocks = <double*>resized(self.blocks, room * self.joints * sizeof(double))
    self.so_far = <double*>resized(self.so_far, room * sizeof(double))
    self.away = <double*>resized(self.away, room * sizeof(double))
    self.parent = <int*>resized(self.parent, room * sizeof(int))
    self.child = <int*>resized(self.child, room * sizeof(int))
    self.sibling = <int*>resized(self.sibling, room * sizeof(int))
    self.moved = <int*>resized(self.moved, room * sizeof(int))
    self.room = room
    return 0


cdef void drop(Tree *self) noexcept nogil:
    """Give the memory back."""
    free(self.blocks)
    free(self.so_far)
    free(self.away)
    free(self.parent)
    free(self.child)
    free(self.sibling)
    free(self.moved)


cdef void read(const Tree *self, int node, double* out) noexcept nogil:
    """Copy a node's configuration."""
    cdef double *lane = self.blocks + (node // LANES) * LANES * self.joints + node % LANES
    cdef int joint
    for joint in range(self.joints):
        out[joint] = lane[joint * LANES]


cdef double apart(const Tree *self, int node, const double* q) noexcept nogil:
    """Return the cost of the straight line between a node and `q`."""
    cdef double *lane = self.blocks + (node // LANES) * LANES * self.joints + node % LANES
    cdef int joint
    cdef double total = 0
    for joint in range(self.joints):
        total += fabs(lane[joint * LANES] - q[joint])
    return total


cdef int add(Tree *self, const double* q, int parent, double length) except -1 nogil:
    """Add a node at `length` from its parent (-1 for the root) and return its number."""
    cdef int node = self.count, joint
    cdef double *lane
    if node == self.room:
        grow(self)
    lane = self.blocks + (node // LANES) * LANES * self.joints + node % LANES
    for joint in range(self.joints):
        lane[joint * LANES] = q[joint]
    self.count += 1
    self.parent[node], self.child[node], self.sibling[node] = parent, -1, -1
    self.so_far[node] = 0
    if parent >= 0:
        self.so_far[node] = self.so_far[parent] + length
        self.sibling[node], self.child[parent] = self.child[parent], node
    return node


cdef int nearest(Tree *self, const double* q) noexcept nogil:
    """Return the node that is nearest to `q`; `away` then holds the distance of every node."""
    cdef int block, lane, joint, best = 0
    cdef double *row
    cdef double[8] total
    cdef double at
    for block in range((self.count + LANES - 1) // LANES):
        row = self.blocks + block * LANES * self.joints
        for lane in range(8):
            total[lane] = 0
        for joint in range(self.joints):
            at = q[joint]
            for lane in range(8):
                total[lane] += fabs(row[lane] - at)
            row += LANES
        for lane in range(8):
            self.away[block * LANES + lane] = total[lane]
    for block in range(1, self.count):
        if self.away[block] < self.away[best]:
            best = block
    return best


cdef void unlink(Tree *self, int node) noexcept nogil:
    """Take a node out of its parent's children."""
    cdef int *link = &self.child[self.parent[node]]
    while link[0] != node:
        link = &self.sibling[link[0]]
    link[0] = self.sibling[node]


cdef void move(Tree *self, int node, int parent, double length) noexcept nogil:
    """Give a node, which is not the root nor above `parent`, another parent."""
    cdef double less = self.so_far[node] - self.so_far[parent] - length
    unlink(self, node)
    self.parent[node] = parent
    self.sibling[node], self.child[parent] = self.child[parent], node
    cheapen(self, node, less)


cdef void cheapen(Tree *self, int node, double less) noexcept nogil:
    """Make a node and all below it cheaper by `less`; no recursion, the links lead the way back."""
    cdef int at = node
    while True:
        self.so_far[at] -= less
        if self.child[at] >= 0:
            at = self.child[at]
            continue
        while at != node and self.sibling[at] < 0:
            at = self.parent[at]
        if at == node:
            return
        at = self.sibling[at]


cdef int keep(Tree *self) noexcept nogil:
    """Drop the nodes whose `moved` is negative, and all below them; return how many are left.

    `moved[node]` is then the new number of a node that was kept, and the root keeps its own.
    """
    cdef int node, kept = 0, joint, parent
    cdef double *source
    cdef double *target
    # A parent can have a higher number than its child, since nodes change parents: dropping goes on until
    # nothing changes, which is at once as a rule.
    cdef bint again = True
    while again:
        again = False
        for node in range(1, self.count):
            if self.moved[node] >= 0 and self.moved[self.parent[node]] < 0:
                self.moved[node] = -1
                again = True
    for node in range(self.count):
        if self.moved[node] >= 0:
            self.moved[node] = kept
            kept += 1
    for node in range(self.count):
        if self.moved[node] < 0:
            continue
        source = self.blocks + (node // LANES) * LANES * self.joints + node % LANES
        target = self.blocks + (self.moved[node] // LANES) * LANES * self.joints + self.moved[node] % LANES
        for joint in range(self.joints):
            target[joint * LANES] = source[joint * LANES]
        self.so_far[self.moved[node]] = self.so_far[node]
        parent = self.parent[node]
        self.parent[self.moved[node]] = self.moved[parent] if parent >= 0 else -1
    self.count = kept
    for node in range(kept):
        self.child[node] = -1
    for node in range(1, kept):
        parent = self.parent[node]
        self.sibling[node], self.child[parent] = self.child[parent], node
    self.sibling[0] = -1
    return kept
