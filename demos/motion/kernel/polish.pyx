"""Making a path cheaper without leaving its class: three small random changes, each kept only when it is free.

Rule: no change makes the path dearer, and its ends stay; what is kept was looked at more closely than edges are
elsewhere. With the sum of angle changes as the cost, the line
between two configurations is one of many cheapest ways: every way on which each joint only goes from its one
angle to its other is as cheap. What a path wastes is joints that go there and back. So:

- `shortcut` joins two points of the path by a line;
- `clip` takes a joint at a turn of its own and holds it at a level between, while the others go on as before:
  it saves twice what it cuts off, and is the change that finds most;
- `slide` moves a waypoint towards the box that its neighbours span. That never costs more (the cost is convex,
  and least in the box), mostly costs the same, and gives the other two something new to begin with.
"""

from libc.math cimport fabs, pow
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove

from demos.motion.kernel.geometry cimport Checker
from demos.motion.kernel.sampling cimport Sampler

# A path is a value that travels. It seldom has more than 40 waypoints (14 joints: 4.4 KB).
WAYPOINTS_MAX = 128
cdef int POINTS = WAYPOINTS_MAX
cdef int SLIDE_POINTS = 40
cdef double LEAST = 1e-7


cdef class Polisher:
    """One path, and the random changes that shorten it; `spare` has room for a path that is being tried."""

    def __init__(self, Checker checker, Sampler sampler, double margin):
        self.checker, self.sampler, self.margin = checker, sampler, margin
        self.joints = checker.robot.joints
        self.points = <double*>calloc((POINTS + 4) * self.joints, sizeof(double))
        self.spare = <double*>calloc((POINTS + 4) * self.joints, sizeof(double))
        self.along = <double*>calloc(POINTS + 4, sizeof(double))
        if not self.points or not self.spare or not self.along:
            raise MemoryError("a path")

    def __dealloc__(self):
        free(self.points)
        free(self.spare)
        free(self.along)

    cdef void measure(self) noexcept nogil:
        """Compute how far along the path each waypoint is."""
        cdef int point, joint
        cdef double *a = self.points
        cdef double total = 0
        self.along[0] = 0
        for point in range(1, self.count):
            for joint in range(self.joints):
                total += fabs(a[self.joints + joint] - a[joint])
            self.along[point] = total
            a += self.joints
        self.cost = total

    cdef void load(self, const double* points, int count) noexcept nogil:
        """Take a path of at most WAYPOINTS_MAX waypoints."""
        memcpy(self.points, points, count * self.joints * sizeof(double))
        self.count = count
        self.tidy()

    cdef int step(self) noexcept nogil:
        """Try one change; return the checks that it took (0 when there was nothing to try)."""
        cdef double pick = self.sampler.uniform()
        if self.count >= POINTS - 2 or pick < 0.3:
            return self.shortcut()
        if pick < 0.7:
            return self.clip()
        return self.slide()

    cdef int locate(self, double at, double* out) noexcept nogil:
        """Write the configuration at `at` along the path; return the last waypoint that is not behind it."""
        cdef int low = 0, high = self.count - 1, middle, joint
        cdef double share
        cdef double *a
        while high - low > 1:
            middle = (low + high) // 2
            if self.along[middle] <= at:
                low = middle
            else:
                high = middle
        a = self.points + low * self.joints
        share = (at - self.along[low]) / (self.along[low + 1] - self.along[low])
        for joint in range(self.joints):
            out[joint] = a[joint] + share * (a[self.joints + joint] - a[joint])
        return low

    cdef int free_ways(self, const double* points, int first, int last, int* made) noexcept nogil:
        """Return whether the edges between points `first` … `last` of an array are free; count the checks.

        All are looked at coarsely before any is closely.
        """
        return self.look(points, first, last, False, made) and self.look(points, first, last, True, made)

    cdef bint look(self, const double* points, int first, int last, bint closely, int* made) noexcept nogil:
        """Return whether edges are free, at a coarse look or a close one; count the checks."""
        cdef int point, done
        cdef const double *a
        cdef const double *b
        for point in range(first, last):
            a, b = points + point * self.joints, points + (point + 1) * self.joints
            done = self.checker.points(a, b)
            if closely:
                done = self.checker.closely_hit(a, b, self.margin, done)
            else:
                done = self.checker.edge_hit(a, b, self.margin, done)
            made[0] += done if done > 0 else -done
            if done < 0:
                return False
        return True

    cdef void splice(self, int first, int last, const double* points, int count) noexcept nogil:
        """Put `count` points in the place of the waypoints between `first` and `last`, which stay."""
        cdef int tail = self.count - last
        cdef size_t row = self.joints * sizeof(double)
        memmove(self.points + (first + 1 + count) * self.joints, self.points + last * self.joints, tail * row)
        memcpy(self.points + (first + 1) * self.joints, points, count * row)
        self.count = first + 1 + count + tail
        self.tidy()

    cdef void tidy(self) noexcept nogil:
        """Drop waypoints that lie on the line between their neighbours; the path stays what it was."""
        cdef int point = 1, joint
        cdef double *a
        cdef double whole, part, share, off
        while point < self.count - 1:
            a = self.points + (point - 1) * self.joints
            whole, part, off = 0, 0, 0
            for joint in range(self.joints):
                whole += fabs(a[2 * self.joints + joint] - a[joint])
                part += fabs(a[self.joints + joint] - a[joint])
            share = part / whole if whole > 0 else 0
            if share <= 1:
                for joint in range(self.joints):
                    off += fabs(a[joint] + share * (a[2 * self.joints + joint] - a[joint]) - a[self.joints + joint])
            if share <= 1 and off < 1e-9:
                memmove(a + self.joints, a + 2 * self.joints, (self.count - 1 - point) * self.joints * sizeof(double))
                self.count -= 1
            else:
                point += 1
        self.measure()

    cdef int shortcut(self) noexcept nogil:
        """Join two random points of the path by a line."""
        cdef double length = self.cost * pow(2.0, -5 * self.sampler.uniform())
        cdef double begin = self.sampler.uniform() * (self.cost - length)
        cdef double *new = self.spare
        cdef double total = 0
        cdef int first, last, joint, made = 0
        first = self.locate(begin, new)
        last = self.locate(begin + length, new + self.joints)
        if last == first:
            return 0
        for joint in range(self.joints):
            total += fabs(new[joint] - new[self.joints + joint])
        # A line as cheap as what it replaces is welcome when it makes the path simpler.
        if total > length - LEAST and last - first < 3 and self.count < POINTS - 2:
            return 0
        if self.free_ways(new, 0, 1, &made) and self.count - (last - first) + 2 <= POINTS:
            self.splice(first, last + 1, new, 2)
        return made

    cdef int clip(self) noexcept nogil:
        """Hold one joint at a level where it goes there and back."""
        cdef int joint = self.sampler.below(self.joints), n = self.joints
        cdef int point, turns = 0, turn = 0, first, last, index, made = 0
        cdef double *p = self.points + joint
        cdef double sign, top, low, level, before, after, share
        for point in range(1, self.count - 1):
            before, after = p[point * n] - p[(point - 1) * n], p[(point + 1) * n] - p[point * n]
            if (before > LEAST and after <= 0) or (before < -LEAST and after >= 0):
                turns += 1
                if self.sampler.below(turns) == 0:
                    turn = point
        if not turns:
            return 0
        sign = 1 if p[turn * n] > p[(turn - 1) * n] else -1
        top = sign * p[turn * n]
        # Down on both sides of the turn to where the joint turns again.
        first, last = turn - 1, turn
        while first > 0 and sign * p[(first - 1) * n] <= sign * p[first * n]:
            first -= 1
        while last < self.count - 1 and sign * p[(last + 1) * n] <= sign * p[last * n]:
            last += 1
        low = max(sign * p[first * n], sign * p[last * n])
        if top - low < LEAST:
            return 0
        level = low + (top - low) * (1 - pow(2.0, -6 * self.sampler.uniform()))
        if self.sampler.uniform() < 0.3:
            level = low
        # The waypoints that are above the level, and the two points where the path crosses it.
        first, last = turn, turn
        while sign * p[(first - 1) * n] > level:
            first -= 1
        while sign * p[(last + 1) * n] > level:
            last += 1
        if self.count + 2 > POINTS:
            return 0
        share = (sign * p[first * n] - level) / (sign * (p[first * n] - p[(first - 1) * n]))
        for index in range(n):
            self.spare[index] = self.points[first * n + index] + share * (
                self.points[(first - 1) * n + index] - self.points[first * n + index]
            )
        memcpy(self.spare + n, self.points + first * n, (last - first + 1) * n * sizeof(double))
        share = (sign * p[last * n] - level) / (sign * (p[last * n] - p[(last + 1) * n]))
        for index in range(n):
            self.spare[(last - first + 2) * n + index] = self.points[last * n + index] + share * (
                self.points[(last + 1) * n + index] - self.points[last * n + index]
            )
        for point in range(last - first + 3):
            self.spare[point * n + joint] = sign * level
        if self.free_ways(self.spare, 0, last - first + 2, &made):
            self.splice(first - 1, last + 1, self.spare, last - first + 3)
        return made

    cdef int slide(self) noexcept nogil:
        """Move a waypoint, or a point between two, towards a random point of the box that its neighbours span."""
        cdef int n = self.joints, joint, point, made = 0
        cdef double share = pow(2.0, -4 * self.sampler.uniform()), target
        cdef double *new = self.spare + n
        cdef double *a
        if self.count < 3 or (self.count < SLIDE_POINTS and self.sampler.uniform() < 0.3):
            point = self.locate(self.sampler.uniform() * self.cost, new)
            a = self.points + (point + 1) * n
        else:
            point = self.sampler.below(self.count - 2)
            memcpy(new, self.points + (point + 1) * n, n * sizeof(double))
            a = self.points + (point + 2) * n
        memcpy(self.spare, self.points + point * n, n * sizeof(double))
        for joint in range(n):
            target = self.spare[joint] + self.sampler.uniform() * (a[joint] - self.spare[joint])
            new[joint] += share * (target - new[joint])
        memcpy(new + n, a, n * sizeof(double))
        if self.free_ways(self.spare, 0, 2, &made):
            self.splice(point, point + (1 if a == self.points + (point + 1) * n else 2), new, 1)
        return made
