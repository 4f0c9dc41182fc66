"""Where a robot is, and what it touches: spheres on frames, against solid obstacles and against itself.

Rule: `hit` answers exactly what the plain definition answers (tests/demos/motion/oracle.py), whatever it skips.
It skips by bounds: all spheres of a frame lie in one ball, so a ball that touches nothing settles its spheres,
and only frames whose ball touches something are placed sphere by sphere. Two solids collide when they overlap;
touching is free.

An edge between two configurations is looked at in points so close that no sphere moves more than
`EDGE_METRES` from one to the next, by a bound: a joint that turns by `a` moves what hangs on it by at most `a`
times its reach. Between two free points a sphere can still dip into a corner, by no more than the chord's
sagitta, EDGE_METRES² / (8 · smallest radius); a planner that plans with spheres fatter than that needs no finer
look. The middle of the edge comes first, because obstacles are rarely at its ends. What a planner keeps is looked at
more closely (`closely_hit`): where spheres that are fatter by as far as they can move are free, all that lies between
is; elsewhere it is looked at every EDGE_METRES / 2 ** HALVINGS.

Everything below runs without the GIL on arrays that belong to one `Checker`; threads need one each.
"""

import functools
import json
from pathlib import Path

import numpy as np

from libc.math cimport ceil, cos, fabs, sin, sqrt

# How far any sphere may move between two points of an edge, by the bound; what really moves is about half of it.
EDGE_METRES = 0.02
cdef double EDGE = EDGE_METRES
# Between so many halvings of that, even the smallest sphere of the cover dips into a corner by less than 0.2 mm.
cdef enum:
    HALVINGS = 3
# Further spheres lie in clumps of about so many, each in a ball.
CLUMP = 8
CLUMP_ROUNDS = 10
COVER_ENCLOSING_ROUNDS = 40
cdef int FIT_ROUNDS = 24
ENCLOSING_ROUNDS = 400


def enclosing(spheres, rounds=ENCLOSING_ROUNDS):
    """Return a ball (x, y, z, radius) that holds all `spheres` (rows x, y, z, radius), and is nearly the smallest.

    Badoiu and Clarkson's walk (SODA 2003): step ever less towards what sticks out most.
    """
    centre = spheres[:, :3].mean(axis=0)
    for step in range(1, rounds):
        away = np.linalg.norm(spheres[:, :3] - centre, axis=1) + spheres[:, 3]
        centre = centre + (spheres[away.argmax(), :3] - centre) / (step + 1)
    return np.append(centre, (np.linalg.norm(spheres[:, :3] - centre, axis=1) + spheres[:, 3]).max())


def clumped(spheres):
    """Return spheres that lie near one another together, as a list of arrays of about CLUMP rows (k-means)."""
    middles = spheres[:: CLUMP, :3]
    for _ in range(CLUMP_ROUNDS):
        own = np.linalg.norm(spheres[:, None, :3] - middles[None], axis=2).argmin(axis=1)
        middles = np.array([spheres[own == clump, :3].mean(axis=0) for clump in np.unique(own)]).reshape(-1, 3)
    return [spheres[own == clump] for clump in np.unique(own)]


cdef class Robot:
    """A robot as flat arrays; frame 0 is the world, frame `k` turns with one joint about its z axis.

    `local` holds the spheres (x, y, z in their frame, radius), sorted by `frame_of`; `body` is each sphere's
    link, `pairs` the links that must not touch each other. `cover` holds further spheres, of `cover_frame`, over
    what those leave out of the robot's outline; planners keep them clear of obstacles, too.
    """

    def __init__(self, description):
        frames = description["frames"]
        limits = np.array(description["limits"], dtype=float)
        self.name, self.joint_names = description["name"], tuple(description["joints"])
        self.joints, self.frames = len(limits), len(frames) + 1
        self.limits = limits
        self.lower, self.upper = limits[:, 0].copy(), limits[:, 1].copy()
        self.parents = np.array([-1] + [frame["parent"] + 1 for frame in frames], dtype=np.int32)
        self.turning = np.array([-1] + [frame["joint"] for frame in frames], dtype=np.int32)
        self.poses = np.array(
            [np.eye(3, 4)]
            + [np.column_stack((frame["rotation"], frame["position"])) for frame in frames], dtype=float
        )
        self.parent, self.joint = self.parents, self.turning
        self.fixed = self.poses.reshape(-1)
        order = sorted(range(len(description["bodies"])), key=lambda body: description["bodies"][body]["frame"])
        bodies = [description["bodies"][body] for body in order]
        self.links = tuple(body["link"] for body in bodies)
        place = {body: index for index, body in enumerate(order)}
        self.pairs = tuple(sorted(tuple(sorted((place[a], place[b]))) for a, b in description["pairs"]))
        self.local = np.concatenate([body["spheres"] for body in bodies]).astype(float)
        self.spheres = len(self.local)
        counts = [len(body["spheres"]) for body in bodies]
        self.body = np.repeat(np.arange(len(bodies), dtype=np.int32), counts)
        self.frame_of = np.repeat(np.array([body["frame"] + 1 for body in bodies], dtype=np.int32), counts)
        self.x, self.y, self.z, self.r = (self.local[:, column].copy() for column in range(4))
        self.first = np.searchsorted(self.frame_of, np.arange(self.frames + 1)).astype(np.int32)
        self.bodies = np.searchsorted(self.body, np.arange(len(bodies) + 1)).astype(np.int32)
        self.bound = np.array([
            enclosing(self.local[self.frame_of == frame]) if (self.frame_of == frame).any() else (0, 0, 0, -1e9)
            for frame in range(self.frames)
        ], dtype=float)
        self.couple([body["frame"] + 1 for body in bodies])
        self.wrap_in(description.get("cover", {}))
        self.reaches = self.farthest()
        self.reach = self.reaches

    @staticmethod
    def named(name):
        """Return the robot of `data/NAME.json`, "panda" or "baxter", read once."""
        return named(name)

    def wrap_in(self, cover):
        """Take the spheres, by joint, that cover what the published ones leave out of the robot's outline."""
        clumps = []
        for frame in range(self.frames):
            spheres = np.array(cover.get(self.joint_names[self.turning[frame]], []) if frame else [], dtype=float)
            clumps.append(clumped(spheres) if len(spheres) else [])
        every = [clump for of_frame in clumps for clump in of_frame]
        self.cover = np.concatenate([np.zeros((0, 4)), *every])
        self.cover_frame = np.repeat(
            np.arange(self.frames, dtype=np.int32), [sum(map(len, of_frame)) for of_frame in clumps]
        )
        self.clumps = np.array([enclosing(clump, COVER_ENCLOSING_ROUNDS) for clump in every]).reshape(-1, 4)
        self.clump = self.clumps
        self.clump_first = np.cumsum([0, *map(len, every)]).astype(np.int32)
        self.frame_clumps = np.cumsum([0, *map(len, clumps)]).astype(np.int32)
        self.wrap = np.array([
            enclosing(np.concatenate((self.local[self.frame_of == frame], *clumps[frame])), COVER_ENCLOSING_ROUNDS)
            if (self.frame_of == frame).any() else (0, 0, 0, -1e9)
            for frame in range(self.frames)
        ], dtype=float)

    def couple(self, frame_of_body):
        """Sort the pairs of links by the frames that they ride on, so that two balls settle many pairs."""
        grouped = {}
        for a, b in self.pairs:
            grouped.setdefault((frame_of_body[a], frame_of_body[b]), []).append((a, b))
        self.frame_pairs = len(grouped)
        self.pair_frames = np.array([*grouped, (0, 0)], dtype=np.int32).reshape(-1)
        self.pair_bodies = np.array([*sum(grouped.values(), []), (0, 0)], dtype=np.int32).reshape(-1)
        self.pair_first = np.cumsum([0, *map(len, grouped.values())]).astype(np.int32)

    def farthest(self):
        """Return for each joint how far from its axis a sphere's centre can ever be, whatever the joints beyond."""
        reach = np.zeros(self.joints)
        spheres = np.concatenate((self.local, self.cover))
        for sphere, frame in zip(spheres, np.append(self.frame_of, self.cover_frame), strict=True):
            offset, beyond = sphere[:3], 0.0
            while frame > 0:
                joint = self.turning[frame]
                reach[joint] = max(reach[joint], np.hypot(offset[0], offset[1]) + beyond)
                beyond += np.linalg.norm(offset)
                offset, frame = self.poses[frame][:, 3], self.parents[frame]
        return reach


@functools.cache
def named(name):
    """Return the robot of this name and its cover."""
    # By its own place: inside a function the package itself has come by its sources, and has no data beside it.
    data = Path(__file__).resolve().parents[1] / "data"
    described = json.loads((data / f"{name}.json").read_text("ascii"))
    return Robot(described | {"cover": json.loads((data / f"{name}-cover.json").read_text("ascii"))})


cdef class Obstacles:
    """Solid obstacles as rows of numbers, in metres of the world.

    `spheres`: centre, radius (4). `boxes`: centre, rotation row by row, half lengths (15). `cylinders` and
    `capsules`: centre, unit axis, half length, radius (8); a capsule's half length is that of its axis.
    """

    def __init__(self, spheres=(), boxes=(), cylinders=(), capsules=()):
        self.spheres, self.boxes, self.cylinders, self.capsules = (
            np.array(rows, dtype=float).reshape(-1, width)
            for rows, width in ((spheres, 4), (boxes, 15), (cylinders, 8), (capsules, 8))
        )
        self.ball, self.box, self.cylinder, self.capsule = self.spheres, self.boxes, self.cylinders, self.capsules
        self.balls, self.cuboids = len(self.spheres), len(self.boxes)
        self.drums, self.pills = len(self.cylinders), len(self.capsules)


cdef class Checker:
    """A robot among obstacles, with the memory that one thread needs to check it.

    With `cover`, the robot's further spheres must not overlap obstacles either; `around` holds them as they count
    here, a radius below 0 for one that does not.
    """

    def __init__(self, Robot robot not None, Obstacles obstacles not None, bint cover=False):
        self.robot, self.obstacles = robot, obstacles
        self.outer = robot.wrap if cover else robot.bound
        self.covered, self.around = cover, robot.cover.copy()
        self.covering = self.around
        self.solids = obstacles.cuboids + obstacles.drums + obstacles.balls + obstacles.pills
        self.near = np.zeros(max(1, self.solids), dtype=np.int32)
        self.pose = np.zeros(12 * robot.frames)
        self.x, self.y, self.z = np.zeros(robot.spheres), np.zeros(robot.spheres), np.zeros(robot.spheres)
        self.centre = np.zeros(3 * robot.frames)
        self.filled = np.zeros(robot.frames, dtype=np.int32)
        self.between = np.zeros(robot.joints)
        self.place(&self.between[0])
        self.blocked = self.hits_obstacle(0, 0.0)

    cdef void place(self, const double* q) noexcept nogil:
        """Place every frame and its ball; the spheres come when they are asked for."""
        cdef int frame, row
        cdef double *out
        cdef double *base
        cdef double *own
        cdef double c, s, u, v, x, y, z
        cdef double[3] mixed
        for frame in range(self.robot.frames):
            out, own = &self.pose[12 * frame], &self.robot.fixed[12 * frame]
            self.filled[frame] = 0
            if self.robot.parent[frame] <= 0:
                for row in range(12):
                    out[row] = own[row]
            else:
                base = &self.pose[12 * self.robot.parent[frame]]
                for row in range(3):
                    u, v, x = base[4 * row], base[4 * row + 1], base[4 * row + 2]
                    out[4 * row] = u * own[0] + v * own[4] + x * own[8]
                    out[4 * row + 1] = u * own[1] + v * own[5] + x * own[9]
                    out[4 * row + 2] = u * own[2] + v * own[6] + x * own[10]
                    out[4 * row + 3] = u * own[3] + v * own[7] + x * own[11] + base[4 * row + 3]
            if self.robot.joint[frame] >= 0:
                c, s = cos(q[self.robot.joint[frame]]), sin(q[self.robot.joint[frame]])
                for row in range(3):
                    u, v = out[4 * row], out[4 * row + 1]
                    out[4 * row], out[4 * row + 1] = c * u + s * v, c * v - s * u
            x, y, z = self.robot.bound[frame, 0], self.robot.bound[frame, 1], self.robot.bound[frame, 2]
            for row in range(3):
                self.centre[3 * frame + row] = (
                    out[4 * row] * x + out[4 * row + 1] * y + out[4 * row + 2] * z + out[4 * row + 3]
                )

    cdef void fill(self, int frame) noexcept nogil:
        """Place the spheres of a frame that is placed."""
        cdef double *m = &self.pose[12 * frame]
        cdef int sphere
        cdef double x, y, z
        if self.filled[frame]:
            return
        self.filled[frame] = 1
        for sphere in range(self.robot.first[frame], self.robot.first[frame + 1]):
            x, y, z = self.robot.x[sphere], self.robot.y[sphere], self.robot.z[sphere]
            self.x[sphere] = m[0] * x + m[1] * y + m[2] * z + m[3]
            self.y[sphere] = m[4] * x + m[5] * y + m[6] * z + m[7]
            self.z[sphere] = m[8] * x + m[9] * y + m[10] * z + m[11]

    cdef bint overlaps(self, int solid, double x, double y, double z, double r) noexcept nogil:
        """Return whether a ball overlaps an obstacle; boxes come first, then cylinders, spheres and capsules."""
        cdef double *o
        cdef double u, v, w, along, e, f
        if solid < self.obstacles.cuboids:
            o = &self.obstacles.box[solid, 0]
            u, v, w = x - o[0], y - o[1], z - o[2]
            e = fabs(u * o[3] + v * o[6] + w * o[9]) - o[12]
            if e >= r:
                return False
            f = e * e if e > 0 else 0.0
            e = fabs(u * o[4] + v * o[7] + w * o[10]) - o[13]
            if e >= r:
                return False
            f += e * e if e > 0 else 0.0
            e = fabs(u * o[5] + v * o[8] + w * o[11]) - o[14]
            f += e * e if e > 0 else 0.0
            return e < r and f < r * r
        solid -= self.obstacles.cuboids
        if solid < self.obstacles.drums:
            o = &self.obstacles.cylinder[solid, 0]
            u, v, w = x - o[0], y - o[1], z - o[2]
            along = u * o[3] + v * o[4] + w * o[5]
            e = fabs(along) - o[6]
            f = u * u + v * v + w * w - along * along
            if e >= r or f >= (r + o[7]) * (r + o[7]):
                return False
            if e <= 0:
                return True
            f = sqrt(f) - o[7] if f > 0 else 0.0
            return (f * f if f > 0 else 0.0) + e * e < r * r
        solid -= self.obstacles.drums
        if solid < self.obstacles.balls:
            o = &self.obstacles.ball[solid, 0]
            u, v, w = x - o[0], y - o[1], z - o[2]
            return u * u + v * v + w * w < (r + o[3]) * (r + o[3])
        o = &self.obstacles.capsule[solid - self.obstacles.balls, 0]
        u, v, w = x - o[0], y - o[1], z - o[2]
        along = u * o[3] + v * o[4] + w * o[5]
        along = o[6] if along > o[6] else -o[6] if along < -o[6] else along
        u, v, w = u - along * o[3], v - along * o[4], w - along * o[5]
        return u * u + v * v + w * w < (r + o[7]) * (r + o[7])

    cdef bint hits_obstacle(self, int frame, double margin) noexcept nogil:
        """Return whether a sphere of the frame, fatter by `margin`, overlaps an obstacle."""
        cdef double *m = &self.pose[12 * frame]
        cdef double *c = &self.outer[frame, 0]
        cdef double x, y, z
        cdef int sphere, solid, close = 0
        if c[3] < 0:
            return False
        x = m[0] * c[0] + m[1] * c[1] + m[2] * c[2] + m[3]
        y = m[4] * c[0] + m[5] * c[1] + m[6] * c[2] + m[7]
        z = m[8] * c[0] + m[9] * c[1] + m[10] * c[2] + m[11]
        for solid in range(self.solids):
            if self.overlaps(solid, x, y, z, c[3] + margin):
                self.near[close] = solid
                close += 1
        if not close:
            return False
        self.fill(frame)
        for sphere in range(self.robot.first[frame], self.robot.first[frame + 1]):
            for solid in range(close):
                if self.overlaps(
                    self.near[solid], self.x[sphere], self.y[sphere], self.z[sphere], self.robot.r[sphere] + margin
                ):
                    return True
        return self.covered and self.cover_hits(frame, margin, close)

    cdef bint cover_hits(self, int frame, double margin, int close) noexcept nogil:
        """Return whether one of the frame's further spheres overlaps one of the first `close` of the `near` obstacles."""
        cdef double *m = &self.pose[12 * frame]
        cdef double *c
        cdef double x, y, z
        cdef int clump, sphere, solid
        for clump in range(self.robot.frame_clumps[frame], self.robot.frame_clumps[frame + 1]):
            c = &self.robot.clump[clump, 0]
            x = m[0] * c[0] + m[1] * c[1] + m[2] * c[2] + m[3]
            y = m[4] * c[0] + m[5] * c[1] + m[6] * c[2] + m[7]
            z = m[8] * c[0] + m[9] * c[1] + m[10] * c[2] + m[11]
            for solid in range(close):
                if not self.overlaps(self.near[solid], x, y, z, c[3] + margin):
                    continue
                for sphere in range(self.robot.clump_first[clump], self.robot.clump_first[clump + 1]):
                    if self.covering[sphere, 3] > 0 and self.cover_overlaps(frame, sphere, self.near[solid], margin):
                        return True
        return False

    cdef bint cover_overlaps(self, int frame, int sphere, int solid, double margin) noexcept nogil:
        """Return whether a further sphere of a frame that is placed overlaps an obstacle."""
        cdef double *m = &self.pose[12 * frame]
        cdef double *c = &self.covering[sphere, 0]
        return self.overlaps(
            solid,
            m[0] * c[0] + m[1] * c[1] + m[2] * c[2] + m[3],
            m[4] * c[0] + m[5] * c[1] + m[6] * c[2] + m[7],
            m[8] * c[0] + m[9] * c[1] + m[10] * c[2] + m[11],
            c[3] + margin,
        )

    cdef bint hits_itself(self, double margin) noexcept nogil:
        """Return whether two spheres of a pair of links, each fatter by `margin`, overlap."""
        cdef int pair, link, s, t, a, b, first, last
        cdef double u, v, w, r
        for pair in range(self.robot.frame_pairs):
            a, b = self.robot.pair_frames[2 * pair], self.robot.pair_frames[2 * pair + 1]
            u = self.centre[3 * a] - self.centre[3 * b]
            v = self.centre[3 * a + 1] - self.centre[3 * b + 1]
            w = self.centre[3 * a + 2] - self.centre[3 * b + 2]
            r = self.robot.bound[a, 3] + self.robot.bound[b, 3] + 2 * margin
            if u * u + v * v + w * w >= r * r:
                continue
            self.fill(a)
            self.fill(b)
            for link in range(self.robot.pair_first[pair], self.robot.pair_first[pair + 1]):
                a, b = self.robot.pair_bodies[2 * link], self.robot.pair_bodies[2 * link + 1]
                first, last = self.robot.bodies[b], self.robot.bodies[b + 1]
                for s in range(self.robot.bodies[a], self.robot.bodies[a + 1]):
                    for t in range(first, last):
                        u, v, w = self.x[s] - self.x[t], self.y[s] - self.y[t], self.z[s] - self.z[t]
                        r = self.robot.r[s] + self.robot.r[t] + 2 * margin
                        if u * u + v * v + w * w < r * r:
                            return True
        return False

    cdef bint hit(self, const double* q, double margin, double room) noexcept nogil:
        """Return whether the robot at `q`, with spheres fatter by `margin`, overlaps an obstacle or itself.

        For obstacles spheres are fatter by `room` as well.
        """
        cdef int frame
        if self.blocked:
            return True
        self.place(q)
        for frame in range(self.robot.frames - 1, 0, -1):
            if self.hits_obstacle(frame, margin + room):
                return True
        return self.hits_itself(margin)

    cdef int points(self, const double* a, const double* b) noexcept nogil:
        """Return in how many steps an edge is looked at; at least one."""
        cdef int frame, joint
        cdef double longest = 0
        for frame in range(1, self.robot.frames):
            joint = self.robot.joint[frame]
            # `centre` is free between checks: it holds how far each frame can have moved along its chain.
            self.centre[3 * frame] = fabs(b[joint] - a[joint]) * self.robot.reach[joint]
            if self.robot.parent[frame] > 0:
                self.centre[3 * frame] += self.centre[3 * self.robot.parent[frame]]
            if self.centre[3 * frame] > longest:
                longest = self.centre[3 * frame]
        joint = <int>ceil(longest / EDGE)
        return joint if joint > 1 else 1

    cdef int edge_hit(self, const double* a, const double* b, double margin, int points) noexcept nogil:
        """Return the number of checks that were made, negated when the last one hit; `b` is checked, `a` is not."""
        cdef int stride = 1, index, joint, made = 0
        cdef double share
        while stride < points:
            stride *= 2
        while stride:
            index = stride
            while index <= points:
                share = <double>index / points
                for joint in range(self.robot.joints):
                    self.between[joint] = a[joint] + share * (b[joint] - a[joint])
                made += 1
                if self.hit(&self.between[0], margin, 0):
                    return -made
                index += 2 * stride
            stride //= 2
        return made

    cdef int closely_hit(self, const double* a, const double* b, double margin, int points) noexcept nogil:
        """Return the number of checks that were made, negated when the last one hit; of a free edge's insides.

        No sphere moves further than half a step's EDGE from the middle of a step, so where all are free with that much
        room to obstacles, the step is; else its halves are looked at, the last ones in their middles alone.
        """
        cdef int step, level, joint, made = 0
        cdef long half
        cdef double share, room
        for step in range(points):
            level, half = 0, 0
            while True:
                share = (step + (half + 0.5) / (1 << level)) / points
                for joint in range(self.robot.joints):
                    self.between[joint] = a[joint] + share * (b[joint] - a[joint])
                room = EDGE / (2 << level) if level < HALVINGS else 0.0
                made += 1
                if self.hit(&self.between[0], margin, room):
                    if level == HALVINGS:
                        return -made
                    level, half = level + 1, 2 * half
                    continue
                half += 1
                while level and half % 2 == 0:
                    level, half = level - 1, half // 2
                if not level:
                    break
        return made

    def collides(self, q, double margin=0.0):
        """Return whether the robot at `q` (radians), with spheres fatter by `margin` metres, overlaps anything."""
        cdef double[::1] at = self.configuration(q)
        return bool(self.hit(&at[0], margin, 0))

    def fit(self, q, double margin=0.0):
        """Make the further spheres that overlap an obstacle at `q` so small that they do not; return how many.

        A problem's start and goal are free by the published spheres alone, and need not be by these. One whose
        centre is in an obstacle no longer counts.
        """
        cdef double[::1] at = self.configuration(q)
        cdef int sphere, solid, frame, half, changed = 0
        cdef double low, high, before
        self.place(&at[0])
        for sphere in range(len(self.around)):
            frame, before = self.robot.cover_frame[sphere], self.covering[sphere, 3]
            for solid in range(self.solids):
                if before < 0 or not self.cover_overlaps(frame, sphere, solid, margin):
                    continue
                low, high = -margin, self.covering[sphere, 3]
                for half in range(FIT_ROUNDS):
                    self.covering[sphere, 3] = (low + high) / 2
                    if self.cover_overlaps(frame, sphere, solid, margin):
                        high = self.covering[sphere, 3]
                    else:
                        low = self.covering[sphere, 3]
                self.covering[sphere, 3] = low
            changed += self.covering[sphere, 3] < before
        return changed

    def collisions(self, configurations, double margin=0.0):
        """Return how many of the configurations (rows) collide; the GIL is released meanwhile."""
        cdef double[:, ::1] rows = np.ascontiguousarray(configurations, dtype=float)
        cdef Py_ssize_t row
        cdef int found = 0
        if rows.shape[1] != self.robot.joints:
            raise ValueError(f"{self.robot.name} has {self.robot.joints} joints, not {rows.shape[1]}")
        with nogil:
            for row in range(rows.shape[0]):
                found += self.hit(&rows[row, 0], margin, 0)
        return found

    def path_collides(self, path, double margin=0.0, bint closely=False):
        """Return whether the path (rows) collides, looked at as planners do while searching; its first row counts, too.

        With `closely`, looked at as they do at what they keep.
        """
        cdef double[:, ::1] rows = np.ascontiguousarray(path, dtype=float)
        cdef Py_ssize_t row
        cdef int points
        cdef bint found
        if rows.shape[1] != self.robot.joints:
            raise ValueError(f"{self.robot.name} has {self.robot.joints} joints, not {rows.shape[1]}")
        with nogil:
            found = self.hit(&rows[0, 0], margin, 0)
            for row in range(1, rows.shape[0]):
                points = self.points(&rows[row - 1, 0], &rows[row, 0])
                found = found or self.edge_hit(&rows[row - 1, 0], &rows[row, 0], margin, points) < 0
                if closely:
                    found = found or self.closely_hit(&rows[row - 1, 0], &rows[row, 0], margin, points) < 0
        return bool(found)

    def placed(self, q):
        """Return the spheres at `q` as rows x, y, z, radius, in the world, in the order of `Robot.local`."""
        cdef double[::1] at = self.configuration(q)
        cdef int frame
        self.place(&at[0])
        for frame in range(self.robot.frames):
            self.fill(frame)
        return np.column_stack((self.x, self.y, self.z, self.robot.r))

    def configuration(self, q):
        """Return `q` as an array of the robot's joints; raise `ValueError` when it is not."""
        at = np.ascontiguousarray(q, dtype=float)
        if at.shape != (self.robot.joints,):
            raise ValueError(f"{self.robot.name} has {self.robot.joints} joints; the configuration has shape {at.shape}")
        return at
