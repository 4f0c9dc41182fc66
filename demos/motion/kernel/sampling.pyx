"""Random configurations: anywhere within the limits, or only where a path cheaper than a bound can pass.

The cost of a path is the sum of all joints' angle changes, so no path through `q` costs less than
|start - q| + |q - goal|, summed over the joints (Gammell et al., IROS 2014, for the Euclidean cost, where the set
is an ellipsoid). Here the set takes the joints apart: a joint between its start and its goal costs nothing
beyond the direct way, a joint outside costs twice its excess. So the set is { sum of excesses <= spare },
spare = (bound - direct) / 2, and it can be drawn from uniformly without trial: first how many joints lie outside
(a volume is a product of intervals and a simplex), then which, then where.

Rule: the same seed gives the same draws on every machine (splitmix64; no generator of the library).
"""

from libc.math cimport fabs, log
from libc.stdint cimport uint64_t

import numpy as np

# Draws from the set that violate a joint's limits are drawn again so often, then moved to the limit, which
# lies in the set, too.
cdef int TRIES_MAX = 16


cdef class Sampler:
    """A stream of random configurations between two given ones; `direct` is the cost of the straight line."""

    def __init__(self, lower, upper, start, goal, uint64_t seed):
        cdef int joint, count
        self.state = seed
        self.joints = len(start)
        self.lower, self.upper = np.array(lower), np.array(upper)
        self.start, self.goal = np.array(start), np.array(goal)
        apart = np.abs(np.array(goal) - np.array(start))
        self.apart, self.direct = apart, apart.sum()
        # symmetric[j, m]: the sum over all ways to choose m of the joints j, j+1, … of the product of their ways.
        table = np.zeros((self.joints + 1, self.joints + 1))
        table[self.joints, 0] = 1
        for joint in range(self.joints - 1, -1, -1):
            table[joint, 0] = 1
            for count in range(1, self.joints - joint + 1):
                table[joint, count] = table[joint + 1, count] + apart[joint] * table[joint + 1, count - 1]
        self.symmetric = table
        self.weight = np.zeros(self.joints + 1)

    cdef uint64_t word(self) noexcept nogil:
        """Return 64 random bits (Steele, Lea and Flood, OOPSLA 2014)."""
        cdef uint64_t z
        self.state += <uint64_t>0x9E3779B97F4A7C15
        z = self.state
        z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
        return z ^ (z >> 31)

    cdef double uniform(self) noexcept nogil:
        """Return a number in [0, 1)."""
        return (self.word() >> 11) * (1.0 / 9007199254740992.0)

    cdef int below(self, int count) noexcept nogil:
        """Return a number in 0 … count - 1."""
        return <int>(self.uniform() * count)

    cdef void anywhere(self, double* out) noexcept nogil:
        """Draw uniformly within the joints' limits."""
        cdef int joint
        for joint in range(self.joints):
            out[joint] = self.lower[joint] + self.uniform() * (self.upper[joint] - self.lower[joint])

    cdef double through(self, const double* q) noexcept nogil:
        """Return what a path through `q` costs at least."""
        cdef int joint
        cdef double total = 0
        for joint in range(self.joints):
            total += fabs(q[joint] - self.start[joint]) + fabs(q[joint] - self.goal[joint])
        return total

    cdef bint inside(self, const double* q) noexcept nogil:
        """Return whether `q` is within the joints' limits."""
        cdef int joint
        for joint in range(self.joints):
            if not self.lower[joint] <= q[joint] <= self.upper[joint]:
                return False
        return True

    cdef void informed(self, double* out, double bound) noexcept nogil:
        """Draw uniformly, within the limits, where a path cheaper than `bound` can pass; anywhere when it is inf."""
        cdef int attempt, joint
        if bound > 1e300:
            self.anywhere(out)
            return
        for attempt in range(TRIES_MAX):
            # Where the bound is loose, the limits are the smaller set: each of the two is tried in turn.
            self.anywhere(out)
            if self.through(out) < bound:
                return
            self.within(out, bound)
            if self.inside(out):
                return
        for joint in range(self.joints):
            out[joint] = min(max(out[joint], self.lower[joint]), self.upper[joint])

    cdef void within(self, double* out, double bound) noexcept nogil:
        """Draw uniformly where a path cheaper than `bound` can pass, whatever the limits."""
        cdef double spare = (bound - self.direct) / 2 if bound > self.direct else 0.0
        cdef double factor = 1, total = 0, pick, low, chosen, exponentials
        cdef int outside, between, joint
        for outside in range(self.joints + 1):
            if outside:
                factor *= 2 * spare / outside
            self.weight[outside] = factor * self.symmetric[0, self.joints - outside]
            total += self.weight[outside]
        pick = self.uniform() * total
        outside = 0
        while outside < self.joints and pick >= self.weight[outside]:
            pick -= self.weight[outside]
            outside += 1
        between = self.joints - outside
        # The excesses of those outside, and what is left of `spare`, are one point of a simplex.
        exponentials = -log(1 - self.uniform())
        for joint in range(self.joints):
            low = min(self.start[joint], self.goal[joint])
            chosen = self.apart[joint] * self.symmetric[joint + 1, between - 1] if between else 0.0
            if between and self.uniform() * self.symmetric[joint, between] < chosen:
                between -= 1
                out[joint] = low + self.uniform() * self.apart[joint]
            else:
                # For now only the share of `spare`, marked by what no configuration is: 1e6 and above.
                pick = -log(1 - self.uniform())
                exponentials += pick
                out[joint] = 1e6 + pick
        for joint in range(self.joints):
            if out[joint] >= 1e6:
                pick = (out[joint] - 1e6) / exponentials * spare
                low = min(self.start[joint], self.goal[joint])
                out[joint] = low - pick if self.word() & 1 else low + self.apart[joint] + pick

    def draw(self, double bound, int count):
        """Return `count` configurations (rows) drawn where a path cheaper than `bound` can pass."""
        cdef double[:, ::1] rows = np.zeros((count, self.joints))
        cdef int row
        for row in range(count):
            self.informed(&rows[row, 0], bound)
        return np.asarray(rows)
