"""From start to goal: a first path by RRT-Connect, cheaper ones by polishing, RRT* and new beginnings.

Rules: `cost` never rises, and `path` is the path of that cost, looked at more closely than edges are while searching;
work is counted in collision checks, and how it is cut into calls changes nothing: `run(100); run(100)` is `run(200)`,
given nothing else between. What others found comes in by `bound` and `adopt`, between calls.

A planner races (applications of shared best paths fail when everybody jumps on the leader's path: then all polish one
way around the obstacles, where planners that know nothing of each other try several, and the best of those wins):

1. connect: two trees grow towards each other (Kuffner and LaValle, ICRA 2000), from configurations where a path
   below the shared bound can pass. Nodes are not dropped for what they cost so far: a first path is long, what
   it costs once it is polished is what counts. Others' paths only narrow where it looks: it goes on until it has a
   path of its own, but for the helpers, one planner of four, who drop their trees and polish the leader's path.
2. polish: the path of this class gets shorter until it stagnates, even when another planner's is cheaper.
3. then, in turns that begin by the seed's parity: begin again (1), or help the leader: grow an informed RRT* (Gammell
   et al., IROS 2014) around the best path known, whose nodes are dropped when cost so far + straight line reaches the
   bound (as in C-FOREST, Otte and Correll, T-RO 2013). Only its own best path it polishes once more before; another's
   is polished by whoever found it.

The cost is the sum of all joints' absolute angle changes, in radians; `cost(path)` is the only definition.
"""

from libc.math cimport fabs, pow
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy as np

from demos.motion.kernel.geometry cimport Checker
from demos.motion.kernel.polish cimport POINTS, Polisher
from demos.motion.kernel.sampling cimport Sampler
from demos.motion.kernel.tree cimport Tree, add, apart, drop, keep, move, nearest, read

from demos.motion.kernel.geometry import Robot

cdef enum Phase:
    CONNECT, LOOK, POLISH, STAR, DONE

# How far a tree grows at once, as a sum of angle changes for each joint of the robot (radians).
cdef double STEP_PER_JOINT = 0.35
cdef double SHORTER = 4
# Polishing stagnates when so many checks gained less than this share.
cdef int PATIENCE = 20_000
cdef double GAIN = 0.003
# A new beginning, and a tree around the leader, end after so many checks without a path.
cdef int CONNECT_CHECKS = 60_000
cdef int STAR_CHECKS = 40_000
# Of so many planners one is a helper, by its seed: more of them polish the first path sooner, fewer try more ways.
cdef int HELPER_OF = 4
cdef int NEAR_MAX = 12
cdef int STAR_NODES_MAX = 4096
cdef double LEAST = 1e-9
cdef double INFINITE = float("inf")
# Spheres are so much fatter while planning (metres) that what lies between two points of an edge is free as well;
# less where start or goal are closer to something than that.
MARGINS = (1e-3, 5e-4, 2.5e-4, 0.0)


def cost(path):
    """Return the sum of all joints' absolute angle changes along a path (rows of joint angles), in radians.

    Summed in the planner's order, so that who adopts a path sees the leader's cost to the last bit.
    """
    cdef double[:, ::1] rows = np.ascontiguousarray(path, dtype=float)
    cdef Py_ssize_t row, joint
    cdef double total = 0
    for row in range(1, rows.shape[0]):
        for joint in range(rows.shape[1]):
            total += fabs(rows[row, joint] - rows[row - 1, joint])
    return total


cdef class Planner:
    """One planner of one problem; deterministic in (problem, seed, the sequence of calls).

    `problem` has `robot` (a name), `start`, `goal` and `obstacles`. Raises `ValueError` when start or goal
    collides. `checks` counts the work done; `nodes` the nodes of its trees.

    With `outline`, the robot's further spheres keep clear of obstacles, too: what the published ones leave out of
    its meshes does not scrape along a shelf. Without, passages are wider and checks cheaper, as in published figures.
    """

    cdef Checker checker
    cdef Sampler sampler
    cdef Polisher polisher
    cdef Tree[2] trees
    cdef Phase phase
    cdef bint from_goal, turn, leading, from_star, helper, own
    cdef bint mine  # the best path known is of its own work
    cdef int joints, best_count, goal_node
    # Of the path in the polisher's spare rows: how many waypoints it has, and how many looks at its edges are done.
    cdef int found_count, looked
    cdef long left
    cdef long since
    cdef double mark, shared, step_length
    cdef double *best
    cdef double *new
    cdef double *sample
    cdef double *walk
    cdef int[12] candidates
    cdef readonly double cost, margin
    cdef readonly long checks
    cdef bint improved
    cdef readonly object start, goal
    cdef double[::1] root, target

    def __init__(self, problem, uint64_t seed, bint outline=True):
        robot = Robot.named(problem.robot) if isinstance(problem.robot, str) else problem.robot
        self.checker = Checker(robot, problem.obstacles, outline)
        self.joints = robot.joints
        self.start = np.array(self.checker.configuration(problem.start))
        self.goal = np.array(self.checker.configuration(problem.goal))
        self.root, self.target = self.start, self.goal
        ends = (self.start, self.goal)
        for end in ends:
            self.checker.fit(end, MARGINS[0])
        if any(self.checker.collides(end) for end in ends):
            raise ValueError("start or goal collides")
        self.margin = next(m for m in MARGINS if not any(self.checker.collides(end, m) for end in ends))
        self.sampler = Sampler(robot.limits[:, 0], robot.limits[:, 1], self.start, self.goal, seed)
        self.polisher = Polisher(self.checker, self.sampler, self.margin)
        self.trees[0].joints = self.trees[1].joints = self.joints
        self.best, self.walk = (
            <double*>calloc((POINTS + 4) * self.joints, sizeof(double)),
            <double*>calloc((POINTS + 4) * self.joints, sizeof(double)),
        )
        self.new, self.sample = (
            <double*>calloc(self.joints, sizeof(double)), <double*>calloc(self.joints, sizeof(double))
        )
        if not self.best or not self.walk or not self.new or not self.sample:
            raise MemoryError("a planner")
        self.cost, self.shared = INFINITE, INFINITE
        self.step_length = STEP_PER_JOINT * self.joints
        self.turn = seed & 1
        self.helper = seed % HELPER_OF == HELPER_OF - 1
        self.own = self.mine = False
        self.begin()

    def __dealloc__(self):
        free(self.best)
        free(self.walk)
        free(self.new)
        free(self.sample)
        drop(&self.trees[0])
        drop(&self.trees[1])

    # What is known

    @property
    def path(self):
        """The best path known, one row of joint angles for each waypoint; no rows before the first."""
        found = np.empty((self.best_count, self.joints))
        cdef double[:, ::1] rows = found
        if self.best_count:
            memcpy(&rows[0, 0], self.best, self.best_count * self.joints * sizeof(double))
        return found

    @property
    def direct(self):
        """The cost of the straight line, below which no path can be."""
        return self.sampler.direct

    @property
    def nodes(self):
        """How many nodes its trees hold."""
        return self.trees[0].count + self.trees[1].count

    @property
    def phase(self):
        """What it does: "connect", "look", "polish", "star" or, with a straight line as the best path, "done"."""
        return ("connect", "look", "polish", "star", "done")[self.phase]

    # What others found

    def bound(self, double cost):
        """Learn that a path of this cost is known: look only where a cheaper one can pass, drop what cannot help.

        The planner's own `cost` and `path` stay. A bound never rises; a higher one than known changes nothing.
        """
        if cost < self.shared:
            self.shared = cost
            self.prune()

    def adopt(self, path):
        """Take over a path that another planner of this problem found free, when it is cheaper than the own best.

        Returns whether it was. Raises `ValueError` for a path that does not lead from start to goal or has more
        than WAYPOINTS_MAX rows. The planner goes on with what it does, the search for a path of its own included, and
        helps with this one when its turn comes; a helper does at once.
        """
        rows = np.ascontiguousarray(path, dtype=float)
        if rows.ndim != 2 or rows.shape[1] != self.joints or not 2 <= len(rows) <= POINTS:
            raise ValueError(f"a path has 2 to {POINTS} rows of {self.joints} joints, not the shape {rows.shape}")
        if np.abs(rows[0] - self.start).max() > LEAST or np.abs(rows[len(rows) - 1] - self.goal).max() > LEAST:
            raise ValueError("the path does not lead from the start to the goal")
        cdef double[:, ::1] source = rows
        cdef double found = cost(rows)
        if found >= self.cost:
            return False
        memcpy(self.best, &source[0, 0], source.shape[0] * self.joints * sizeof(double))
        self.best_count, self.cost, self.mine = source.shape[0], found, False
        if self.finished():
            self.phase = DONE
        elif self.phase == POLISH and self.leading:
            self.lead()
        elif self.phase == STAR:
            self.graft()
        elif self.phase == CONNECT and self.helper and self.turn:
            self.lead()
        self.bound(found)
        return True

    # Work

    def run(self, long checks):
        """Do so many collision checks of work, without the GIL; return whether its own work made `cost` fall.

        An edge that was begun is finished; what it took too much is taken off the next call. A step without a
        check counts as one, so that every call ends. When no cheaper path can exist, it returns at once.
        """
        self.improved = False
        with nogil:
            self.left += checks
            while self.left > 0:
                if self.phase == DONE:
                    self.left = 0
                    break
                self.step()
        return bool(self.improved)

    cdef int step(self) except -1 nogil:
        """Do one step of the phase and count its checks."""
        cdef int made
        if self.phase == CONNECT:
            made = self.connect()
        elif self.phase == LOOK:
            made = self.look()
        elif self.phase == POLISH:
            made = self.polish()
        else:
            made = self.star()
        made = made if made > 0 else 1
        self.checks += made
        self.left -= made
        return 0

    cdef bint finished(self) noexcept nogil:
        """Return whether the best path is as cheap as the straight line."""
        return self.cost <= self.sampler.direct + LEAST

    cdef double limit(self) noexcept nogil:
        """Return the lowest cost that is known."""
        return min(self.cost, self.shared)

    cdef int begin(self) except -1 nogil:
        """Begin with new trees at start and goal."""
        self.trees[0].count = 0
        self.trees[1].count = 0
        add(&self.trees[0], &self.root[0], -1, 0)
        add(&self.trees[1], &self.target[0], -1, 0)
        self.phase, self.since, self.leading, self.polisher.count = CONNECT, 0, False, 0
        return 0

    cdef void lead(self) noexcept nogil:
        """Polish the best path known."""
        self.polisher.load(self.best, self.best_count)
        self.phase, self.leading = POLISH, True
        self.since, self.mark = 0, self.polisher.cost

    cdef void record(self) noexcept nogil:
        """Keep the polished path when it is the cheapest."""
        if self.polisher.cost < self.cost - LEAST:
            self.best_count, self.cost = self.polisher.count, self.polisher.cost
            memcpy(self.best, self.polisher.points, self.best_count * self.joints * sizeof(double))
            self.improved = self.mine = True
            if self.finished():
                self.phase = DONE

    cdef int way(self, Tree *tree, int node, const double* to) noexcept nogil:
        """Return the checks of the edge from a node to `to`, negated when it is not free."""
        read(tree, node, self.walk)
        return self.checker.edge_hit(self.walk, to, self.margin, self.checker.points(self.walk, to))

    cdef double steer(self, Tree *tree, int node, const double* to, double* out, double most) noexcept nogil:
        """Write the configuration one step from a node towards `to`; return its distance from the node."""
        cdef double away = apart(tree, node, to)
        cdef double share = most / away if away > most else 1.0
        cdef int joint
        read(tree, node, out)
        for joint in range(self.joints):
            out[joint] = out[joint] + share * (to[joint] - out[joint]) if share < 1 else to[joint]
        return away * share

    # 1. Connect

    cdef int connect(self) except -1 nogil:
        """Grow one tree towards a sample, and the other towards what that added."""
        cdef Tree *tree = &self.trees[self.from_goal]
        cdef Tree *other = &self.trees[not self.from_goal]
        cdef int node, made, total, far, reached = -1
        cdef double length
        # The smaller tree grows next.
        self.from_goal = self.trees[1].count < self.trees[0].count
        self.sampler.informed(self.sample, self.limit())
        node = nearest(tree, self.sample)
        # Half of the steps are shorter, down to a sixteenth: long ones cross open space, short ones leave narrow places.
        length = self.step_length
        if self.sampler.word() & 1:
            length *= pow(2.0, -SHORTER * self.sampler.uniform())
        length = self.steer(tree, node, self.sample, self.new, length)
        made = self.way(tree, node, self.new)
        total = made if made > 0 else -made
        if made > 0:
            node = add(tree, self.new, node, length)
            far = nearest(other, self.new)
            while True:
                length = self.steer(other, far, self.new, self.sample, self.step_length)
                made = self.way(other, far, self.sample)
                total += made if made > 0 else -made
                if made < 0:
                    break
                far = add(other, self.sample, far, length)
                if apart(other, far, self.new) < LEAST:
                    reached = far
                    break
        self.since += total + 1
        if reached >= 0:
            if tree == &self.trees[0]:
                self.join(node, reached)
            else:
                self.join(reached, node)
        elif self.since > CONNECT_CHECKS and self.own:
            self.turn = True
            self.lead()
        return total

    cdef int join(self, int head, int tail) except -1 nogil:
        """Look closely at the path through a node of each tree, which are at one place.

        Begin again when no value can hold it.
        """
        cdef int count = 0, node = head, row
        while node >= 0:
            count += 1
            node = self.trees[0].parent[node]
        row = count
        node = self.trees[1].parent[tail]
        while node >= 0:
            count += 1
            node = self.trees[1].parent[node]
        if count > POINTS:
            self.begin()
            return 0
        self.walk_back(&self.trees[0], head, row - 1, -1)
        self.walk_back(&self.trees[1], self.trees[1].parent[tail], row, 1)
        self.phase, self.found_count, self.looked, self.from_star = LOOK, count, 0, False
        return 0

    cdef int look(self) except -1 nogil:
        """Look at the next edge of the path that was found, at all coarsely before any closely; return the checks.

        When all are free it is the path to polish; else begin again. Edge by edge, because a long path takes thousands
        of checks, and who is to hear of others' paths must not wait for that.
        """
        cdef int edges = self.found_count - 1, made = 0
        cdef bint closely = self.looked >= edges
        cdef int edge = self.looked - edges if closely else self.looked
        if not self.polisher.look(self.polisher.spare, edge, edge + 1, closely, &made):
            self.turn = self.turn and not self.from_star
            self.begin()
            return made
        self.looked += 1
        if self.looked == 2 * edges:
            self.polisher.load(self.polisher.spare, self.found_count)
            self.own = True
            self.turn = self.turn or self.from_star
            self.phase, self.leading = POLISH, self.from_star and self.polisher.cost <= self.limit() + LEAST
            self.since, self.mark = 0, self.polisher.cost
            self.record()
        return made

    cdef void walk_back(self, Tree *tree, int node, int row, int way) noexcept nogil:
        """Write the nodes from one to the root into the polisher's spare rows, from `row` up or down."""
        while node >= 0:
            read(tree, node, self.polisher.spare + row * self.joints)
            row += way
            node = tree.parent[node]

    # 2. Polish

    cdef int polish(self) except -1 nogil:
        """Try one change of the path; when it stagnates, take the next turn."""
        cdef int made = self.polisher.step()
        self.since += made + 1
        if self.polisher.cost < self.mark * (1 - GAIN):
            self.mark, self.since = self.polisher.cost, 0
        self.record()
        if self.phase == POLISH and self.since > PATIENCE:
            self.next_turn()
        return made

    cdef int next_turn(self) except -1 nogil:
        """Begin again, or help the leader, in turns."""
        if self.turn and self.mine and not self.leading and self.polisher.cost > self.cost + LEAST:
            self.lead()
        elif self.turn:
            self.turn = False
            self.plant()
        else:
            self.turn = True
            self.begin()
        return 0

    # 3. RRT* around the leader

    cdef int plant(self) except -1 nogil:
        """Begin a tree at the start that holds the best path."""
        self.trees[0].count = 0
        self.trees[1].count = 0
        add(&self.trees[0], &self.root[0], -1, 0)
        self.phase, self.since = STAR, 0
        self.graft()
        return 0

    cdef int graft(self) except -1 nogil:
        """Add the best path to the tree; its end is the tree's goal from now on."""
        cdef int row, node = 0
        cdef double *at
        for row in range(1, self.best_count):
            at = self.best + row * self.joints
            node = add(&self.trees[0], at, node, apart(&self.trees[0], node, at))
        self.goal_node = node
        return 0

    cdef int choose(self, double most) noexcept nogil:
        """List the nodes that lie near `new` (by `away`) and give it a way below `most`, cheapest first."""
        cdef Tree *tree = &self.trees[0]
        cdef int node, count = 0, place
        cdef double value
        for node in range(tree.count):
            if tree.away[node] > 2 * self.step_length:
                continue
            value = tree.so_far[node] + tree.away[node]
            if value >= most or (count == NEAR_MAX and value >= self.value_of(self.candidates[count - 1])):
                continue
            place = count if count < NEAR_MAX else NEAR_MAX - 1
            while place > 0 and self.value_of(self.candidates[place - 1]) > value:
                self.candidates[place] = self.candidates[place - 1]
                place -= 1
            self.candidates[place] = node
            if count < NEAR_MAX:
                count += 1
        return count

    cdef double value_of(self, int node) noexcept nogil:
        """Return the cost of the way to `new` through a node."""
        return self.trees[0].so_far[node] + self.trees[0].away[node]

    cdef int star(self) except -1 nogil:
        """Add one node by its cheapest free way, and lead others through it where that is cheaper."""
        cdef Tree *tree = &self.trees[0]
        cdef int node, made, total = 0, index, count, chosen = -1, tried = 0
        cdef double ahead = 0, so_far, length
        self.sampler.informed(self.sample, self.limit())
        node = nearest(tree, self.sample)
        self.steer(tree, node, self.sample, self.new, self.step_length)
        for index in range(self.joints):
            ahead += fabs(self.target[index] - self.new[index])
        nearest(tree, self.new)
        count = self.choose(self.limit() - ahead)
        for index in range(count):
            made = self.way(tree, self.candidates[index], self.new)
            total += made if made > 0 else -made
            if made > 0:
                chosen = self.candidates[index]
                break
        self.since += total + 1
        if chosen >= 0:
            node = add(tree, self.new, chosen, tree.away[chosen])
            so_far = tree.so_far[node]
            for index in range(1, node):
                length = tree.away[index]
                if tried == NEAR_MAX:
                    break
                if length < 2 * self.step_length and so_far + length < tree.so_far[index] - LEAST:
                    tried += 1
                    read(tree, index, self.sample)
                    made = self.way(tree, node, self.sample)
                    total += made if made > 0 else -made
                    if made > 0:
                        move(tree, index, node, length)
            if self.goal_node < 0 or so_far + ahead < tree.so_far[self.goal_node] - LEAST:
                made = self.way(tree, node, &self.target[0])
                total += made if made > 0 else -made
                if made > 0 and self.goal_node < 0:
                    self.goal_node = add(tree, &self.target[0], node, ahead)
                elif made > 0:
                    move(tree, self.goal_node, node, ahead)
            if self.goal_node >= 0 and tree.so_far[self.goal_node] < self.cost - LEAST:
                self.harvest()
                return total
        if tree.count > STAR_NODES_MAX:
            self.plant()
        if self.since > STAR_CHECKS:
            self.turn = False
            self.begin()
        return total

    cdef int harvest(self) except -1 nogil:
        """Look closely at the tree's path, which is cheaper than the best; begin again when no value can hold it."""
        cdef Tree *tree = &self.trees[0]
        cdef int count = 0, node = self.goal_node
        while node >= 0:
            count += 1
            node = tree.parent[node]
        if count > POINTS:
            self.turn = False
            self.begin()
            return 0
        self.walk_back(tree, self.goal_node, count - 1, -1)
        self.phase, self.found_count, self.looked, self.from_star = LOOK, count, 0, True
        return 0

    def prune(self):
        """Drop the nodes that no path below the bound can pass (1), or can have as their way (3)."""
        cdef Tree *tree
        cdef int which
        cdef int node, joint
        cdef double most = self.limit() + LEAST
        cdef double ahead
        if self.phase != CONNECT and self.phase != STAR:
            return
        for which in range(2):
            tree = &self.trees[which]
            for node in range(tree.count):
                tree.moved[node] = 0
                read(tree, node, self.sample)
                if self.phase == CONNECT:
                    ahead = self.sampler.through(self.sample)
                else:
                    ahead = tree.so_far[node]
                    for joint in range(self.joints):
                        ahead += fabs(self.target[joint] - self.sample[joint])
                if node and ahead > most:
                    tree.moved[node] = -1
            keep(tree)
        if self.phase == STAR:
            self.goal_node = self.trees[0].moved[self.goal_node] if self.goal_node >= 0 else -1
