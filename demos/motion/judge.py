"""A second opinion on a path: the robot's own meshes, checked by another library than the one that planned.

Rule: planning uses spheres, judging uses what the robot's description (URDF) says it looks like, and nothing of
the kernel. Contacts with obstacles and contacts of the robot with itself are reported apart. The published spheres
leave parts of a link uncovered (up to 6 cm of the Panda's link 5), so a cheapest path would scrape with those;
planners keep further spheres clear, which cover the whole outline (`derive_cover.py`).

Needs the extra `robot-judge` (pinocchio and coal, about 380 MB) and the robots' models (`python -m demos.fetch
panda-model`); `unavailable()` says what is missing.

    python -m demos.motion.judge panda/cage/1          # plans for a while, then judges the path
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import math
import sys
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demos import fetch
from demos.motion import problems
from demos.motion.kernel import Checker, Planner
from demos.motion.problems import Numbers, Problem

# No joint turns further between two poses that are looked at (radians): about as closely as planners look at paths.
TURN_MAX = 0.0025
OBSTACLE = "obstacle "


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the meshes of a path touch: in how many of `poses` poses which two things did."""

    poses: int
    obstacle_contacts: tuple[tuple[str, str, int], ...]
    self_contacts: tuple[tuple[str, str, int], ...]

    @property
    def free(self) -> bool:
        """Whether nothing touches at all."""
        return not self.obstacle_contacts and not self.self_contacts

    def __str__(self) -> str:
        """One line: free, or what touches what and in how many poses."""
        if self.free:
            return f"free of collisions by exact meshes in all of {self.poses:,} poses"
        said = [
            f"{kind}: " + ", ".join(f"{a} and {b} in {count:,}" for a, b, count in contacts)
            for kind, contacts in (("obstacles", self.obstacle_contacts), ("itself", self.self_contacts))
            if contacts
        ]
        return f"of {self.poses:,} poses, exact meshes touch {'; '.join(said)}"


def unavailable(robot: str = "panda") -> str:
    """Return what is missing for judging this robot's paths; an empty string when nothing is."""
    try:
        import coal  # noqa: F401
        import pinocchio  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed; pip install '.[robot-judge]' where this library's sources are"
    if fetch.cached(f"{robot}-model") is None:
        return f"the meshes of {robot} are not fetched; python -m demos.fetch {robot}-model"
    return ""


def judge(problem: Problem, path: Numbers) -> Verdict:
    """Return what the robot's meshes touch on a path (rows of joint angles).

    About 0.1 ms a pose. Raises `RuntimeError` with what is missing when `unavailable`.
    """
    if missing := unavailable(problem.robot):
        raise RuntimeError(missing)
    return Judge(problem).judge(path)


def verdict(problem: Problem, path: Numbers) -> str:
    """Return the verdict in a few words, for a table; without the meshes, that of the planner's own spheres."""
    if missing := unavailable(problem.robot):
        checker = Checker(problems.robot(problem.robot), problem.obstacles)
        said = "collides" if checker.path_collides(densely(path)) else "free"
        return f"{said} by spheres, not judged: {missing.partition(';')[0]}"
    found = judge(problem, path)
    if found.free:
        return "free by exact meshes"
    counts = ((len(found.obstacle_contacts), "with obstacles"), (len(found.self_contacts), "with itself"))
    return "by exact meshes, touches " + " and ".join(f"{count} times {what}" for count, what in counts if count)


class Judge:
    """One problem's robot and obstacles as exact solids."""

    def __init__(self, problem: Problem) -> None:
        import pinocchio

        self.pinocchio: Any = pinocchio
        self.model, self.solids, names = model(problem.robot)
        self.order = [list(self.model.names).index(joint) - 1 for joint in problems.robot(problem.robot).joint_names]
        links = list(range(self.solids.ngeoms))
        for name, shape, rotation, centre in shapes(problem):
            placement = pinocchio.SE3(rotation, centre)
            index = self.solids.addGeometryObject(
                pinocchio.GeometryObject(f"{OBSTACLE}{name}", 0, placement, shape)
            )
            for link in links:
                if self.solids.geometryObjects[link].parentJoint:
                    self.solids.addCollisionPair(pinocchio.CollisionPair(link, index))
        self.names = names + [solid.name for solid in self.solids.geometryObjects][len(names) :]
        self.data, self.checks = self.model.createData(), self.solids.createData()

    def touching(self, q: Numbers) -> list[tuple[str, str]]:
        """Return the names of the things that touch at a configuration, two by two."""
        angles = np.empty(len(q))
        angles[self.order] = q
        compute = self.pinocchio.computeCollisions
        if not compute(self.model, self.data, self.solids, self.checks, angles, True):
            return []
        compute(self.model, self.data, self.solids, self.checks, angles, False)
        return [
            (self.names[pair.first], self.names[pair.second])
            for pair, result in zip(self.solids.collisionPairs, self.checks.collisionResults)
            if result.isCollision()
        ]

    def judge(self, path: Numbers) -> Verdict:
        """Return what touches on a path, looked at so closely that no joint turns more than TURN_MAX."""
        found: Counter[tuple[str, str]] = Counter()
        poses = densely(path)
        for q in poses:
            found.update(set(self.touching(q)))
        contacts = sorted((a, b, count) for (a, b), count in found.items())
        return Verdict(
            len(poses),
            tuple(contact for contact in contacts if contact[1].startswith(OBSTACLE)),
            tuple(contact for contact in contacts if not contact[1].startswith(OBSTACLE)),
        )


def model(robot: str) -> tuple[Any, Any, list[str]]:
    """Return the robot's joints, its solids with the pairs that the SRDF leaves in, and the solids' links."""
    import pinocchio

    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(fileobj=io.BytesIO(archive(robot))) as packed:
            # Python 3.11.2 and 3.11.3 have no filters; the archive is the one whose digest is pinned either way.
            packed.extractall(scratch, filter="data") if hasattr(tarfile, "data_filter") else packed.extractall(scratch)
        urdf = str(Path(scratch) / f"{robot}.urdf")
        joints = pinocchio.buildModelFromUrdf(urdf)
        kind = pinocchio.GeometryType.COLLISION
        solids = pinocchio.buildGeomFromUrdf(joints, urdf, kind, package_dirs=[scratch])
        solids.addAllCollisionPairs()
        pinocchio.removeCollisionPairs(joints, solids, str(Path(scratch) / f"{robot}.srdf"))
    return joints, solids, [solid.name.rpartition("_")[0] for solid in solids.geometryObjects]


@functools.cache
def archive(robot: str) -> bytes:
    """Return the fetched model; `unavailable` has said that it is there."""
    path = fetch.cached(f"{robot}-model")
    assert path is not None
    return path.read_bytes()


def shapes(problem: Problem) -> list[tuple[str, Any, Numbers, Numbers]]:
    """Return each obstacle's name, exact shape, rotation and centre."""
    import coal

    found: list[tuple[str, Any, Numbers, Numbers]] = []
    for number, row in enumerate(problem.obstacles.boxes, 1):
        found.append((f"box {number}", coal.Box(*(2 * row[12:15])), row[3:12].reshape(3, 3), row[:3]))
    for number, row in enumerate(problem.obstacles.cylinders, 1):
        found.append((f"cylinder {number}", coal.Cylinder(row[7], 2 * row[6]), upright(row[3:6]), row[:3]))
    for number, row in enumerate(problem.obstacles.capsules, 1):
        found.append((f"capsule {number}", coal.Capsule(row[7], 2 * row[6]), upright(row[3:6]), row[:3]))
    for number, row in enumerate(problem.obstacles.spheres, 1):
        found.append((f"sphere {number}", coal.Sphere(row[3]), np.eye(3), row[:3]))
    return found


def upright(axis: Numbers) -> Numbers:
    """Return a rotation that turns z into `axis`."""
    aside = np.eye(3)[int(np.abs(axis).argmin())]
    x = np.cross(aside, axis)
    x /= np.linalg.norm(x)
    return np.column_stack((x, np.cross(axis, x), axis))


def densely(path: Numbers) -> Numbers:
    """Return the configurations of a path with no joint turning more than TURN_MAX between two."""
    rows = [path[:1]]
    for a, b in itertools.pairwise(path):
        count = max(1, math.ceil(np.abs(b - a).max() / TURN_MAX))
        rows.append(a + np.linspace(0, 1, count + 1)[1:, None] * (b - a))
    return np.concatenate(rows)


def main(argv: list[str] | None = None) -> int:
    """Plan and judge; exit 0 when the path is free, 1 when it is not, 3 when it cannot be judged."""
    parser = argparse.ArgumentParser(prog="python -m demos.motion.judge", description=__doc__.partition("\n")[0])
    parser.add_argument("problems", nargs="+", help="as in panda/cage/1")
    parser.add_argument("--checks", type=int, default=1_000_000, help="the planner's work (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--published", action="store_true", help="plan with the published spheres, not the outline")
    options = parser.parse_args(argv)
    worst = 0
    for name in options.problems:
        try:
            problem = problems.named(name)
        except problems.UnknownProblem as error:
            print(f"judge: {error}", file=sys.stderr)
            return 3
        if missing := unavailable(problem.robot):
            print(f"judge: {missing}", file=sys.stderr)
            return 3
        planner = Planner(problem, options.seed, not options.published)
        planner.run(options.checks)
        if not len(planner.path):
            print(f"{name}: no path within {options.checks:,} checks")
            continue
        verdict = judge(problem, planner.path)
        print(f"{name}: cost {planner.cost:.2f}; {verdict}", flush=True)
        worst = worst if verdict.free else 1
    return worst


if __name__ == "__main__":
    sys.exit(main())
