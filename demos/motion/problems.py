"""Planning problems of MotionBenchMaker: a robot, where it starts, where it must get, and what is in the way.

Rule: a problem is named by (family, number) as its authors numbered it, and which problems are used is decided by
`valid` alone: all of a range whose start and goal are free in the planner's model. A dozen are in the tree, so
that the demo runs offline; the others are in a pinned archive (`python -m demos.fetch panda`, `baxter`).

Source: Chamzas et al., MotionBenchMaker (RA-L 2022), as shipped with vamp-planner 0.6.4 (Apache-2.0).

    python -m demos.motion.problems                 # families, and how many of each are here and valid
    python -m demos.motion.problems --derive        # write the committed dozen again (maintainers)
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demos import fetch
from demos.motion.kernel import Checker, Obstacles, Robot
from demos.motion.yaml import parse

Numbers = NDArray[np.float64]

COMMITTED = Path(__file__).with_name("data") / "problems.json"
KINDS = ("spheres", "boxes", "cylinders", "capsules")

# Family → directory in the archive, and how many problems it has.
ARCHIVES = {
    **{
        f"panda/{name}": (f"{name}_panda", 100)
        for name in (
            "box",
            "cage",
            "table_pick",
            "table_under_pick",
            "bookshelf_small",
            "bookshelf_tall",
            "bookshelf_thin",
        )
    },
    **{f"baxter/{name}": (f"bookshelf_tall_both_arms_{name}_baxter", 600) for name in ("easy", "medium", "hard")},
}
HARDEST = "baxter/hard"


class UnknownProblem(LookupError):
    """No such problem, or it is neither in the tree nor fetched; the message says which."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One problem; angles in radians in the order of the robot's joints, obstacles in metres of its base."""

    robot: str
    family: str
    number: int
    start: Numbers
    goal: Numbers
    obstacles: Obstacles

    @property
    def name(self) -> str:
        """Its name, as in "panda/cage/1"."""
        return f"{self.family}/{self.number}"

    @property
    def valid(self) -> bool:
        """Whether start and goal are free in the planner's model."""
        checker = Checker(robot(self.robot), self.obstacles)
        return not (checker.collides(self.start) or checker.collides(self.goal))

    def encode(self) -> bytes:
        """Return the problem as bytes (JSON, 2 to 4 KB): equal problems give equal bytes, numbers stay exact."""
        value = {
            "robot": self.robot,
            "family": self.family,
            "number": self.number,
            "start": self.start.tolist(),
            "goal": self.goal.tolist(),
            **{kind: getattr(self.obstacles, kind).tolist() for kind in KINDS},
        }
        return json.dumps(value, separators=(",", ":")).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Problem:
        """Return the problem that `encode` made these bytes of."""
        value = json.loads(data)
        return cls(
            value["robot"],
            value["family"],
            value["number"],
            np.array(value["start"]),
            np.array(value["goal"]),
            Obstacles(**{kind: value[kind] for kind in KINDS}),
        )


@functools.cache
def robot(name: str) -> Robot:
    """Return the robot of this name, read once."""
    return Robot.named(name)


def families() -> tuple[str, ...]:
    """Return the names of all families: seven of the Panda, three of the Baxter with both arms."""
    return tuple(ARCHIVES)


def names(family: str) -> list[str]:
    """Return the problems of a family that are here, as "panda/cage/1", by number."""
    numbers = range(1, size(family) + 1) if fetched(family) else sorted(committed().get(family, {}))
    return [f"{family}/{number}" for number in numbers]


def load(family: str, number: int) -> Problem:
    """Return a problem from the tree or the fetched archive; raise `UnknownProblem`."""
    if found := committed().get(family, {}).get(number):
        return found
    if not 1 <= number <= size(family):
        raise UnknownProblem(f"{family} has problems 1 to {size(family)}, not {number}")
    archive = fetched(family)
    if archive is None:
        here = ", ".join(map(str, sorted(committed().get(family, {}))))
        wanted = family.partition("/")[0]
        raise UnknownProblem(
            f"{family}/{number} is not fetched (in the tree: {here}); python -m demos.fetch {wanted}"
        )
    directory = f"problems/{ARCHIVES[family][0]}"
    return read(
        family,
        number,
        archive[f"{directory}/request{number:04d}.yaml"],
        archive[f"{directory}/scene{number:04d}.yaml"],
    )


def named(name: str) -> Problem:
    """Return the problem of a name such as "panda/cage/1"; raise `UnknownProblem`."""
    family, _, number = name.rpartition("/")
    if not number.isdecimal():
        raise UnknownProblem(f"{name!r} names no problem; panda/cage/1 does")
    return load(family, int(number))


def valid(family: str, first: int, count: int) -> list[int]:
    """Return the numbers of the valid problems among `first` … `first + count - 1` that are here."""
    here = {int(name.rpartition("/")[2]) for name in names(family)}
    return [number for number in range(first, first + count) if number in here and load(family, number).valid]


def size(family: str) -> int:
    """Return how many problems a family has; raise `UnknownProblem` when there is no such family."""
    try:
        return ARCHIVES[family][1]
    except KeyError:
        raise UnknownProblem(f"no family {family!r}; there are {', '.join(ARCHIVES)}") from None


@functools.cache
def committed() -> dict[str, dict[int, Problem]]:
    """Return the problems in the tree, by family and number."""
    found: dict[str, dict[int, Problem]] = {}
    for line in COMMITTED.read_text("ascii").splitlines():
        problem = Problem.decode(line.encode("ascii"))
        found.setdefault(problem.family, {})[problem.number] = problem
    return found


@functools.lru_cache(maxsize=4)
def members(path: Path) -> dict[str, bytes]:
    """Return the files of an archive of problems; the Baxter's 3,600 are 30 MB."""
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]


def fetched(family: str) -> dict[str, bytes] | None:
    """Return the fetched archive's files for a family; None when it is not fetched."""
    size(family)
    path = cached(family.partition("/")[0])
    return members(path) if path else None


@functools.cache
def cached(name: str) -> Path | None:
    """Return the fetched archive's path, its hash compared once."""
    return fetch.cached(name)


def read(family: str, number: int, request: bytes, scene: bytes) -> Problem:
    """Return the problem that a planning request and its scene describe (MoveIt's YAML)."""
    name = family.partition("/")[0]
    joints = robot(name).joint_names
    asked = parse(request.decode("utf-8"))
    state = asked["start_state"]["joint_state"]
    start = dict(zip(state["name"], state["position"]))
    goal = {
        joint["joint_name"]: joint["position"] for joint in asked["goal_constraints"][0]["joint_constraints"]
    }
    solids: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for thing in parse(scene.decode("utf-8"))["world"]["collision_objects"]:
        for primitive, pose in zip(thing["primitives"], thing["primitive_poses"], strict=True):
            kind, row = solid(primitive, pose)
            solids[kind].append(row)
    return Problem(
        name,
        family,
        number,
        np.array([start[joint] for joint in joints]),
        np.array([goal[joint] for joint in joints]),
        Obstacles(**solids),
    )


def solid(primitive: dict[str, Any], pose: dict[str, Any]) -> tuple[str, list[float]]:
    """Return the kind and the row of an obstacle; raise `ValueError` for a shape that these problems do not have."""
    centre, (x, y, z, w) = pose["position"], pose["orientation"]
    length = math.sqrt(x * x + y * y + z * z + w * w)
    x, y, z, w = x / length, y / length, z / length, w / length
    rotation = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    sizes = primitive["dimensions"]
    if primitive["type"] == "box":
        return "boxes", [*centre, *rotation, *(size / 2 for size in sizes)]
    if primitive["type"] == "cylinder":
        height, radius = sizes
        return "cylinders", [*centre, rotation[2], rotation[5], rotation[8], height / 2, radius]
    if primitive["type"] == "sphere":
        return "spheres", [*centre, *sizes]
    raise ValueError(f"no obstacle of type {primitive['type']!r} is known")


def derive(progress: Callable[[str], None] = print) -> None:
    """Write the committed problems: the first valid one of each family, and the first three of the hardest."""
    lines = []
    for family in families():
        free = (number for number in range(1, size(family) + 1) if load(family, number).valid)
        for number in itertools.islice(free, 3 if family == HARDEST else 1):
            lines.append(load(family, number).encode().decode("ascii"))
            progress(f"{family}/{number}")
    COMMITTED.write_text("\n".join(lines) + "\n", encoding="ascii")


def main(argv: list[str] | None = None) -> int:
    """Say what is here, or derive the committed problems; exit 0, or 1 with the reason."""
    parser = argparse.ArgumentParser(prog="python -m demos.motion.problems", description=__doc__.partition("\n")[0])
    parser.add_argument("--derive", action="store_true", help="write the committed problems again")
    options = parser.parse_args(argv)
    try:
        if options.derive:
            COMMITTED.write_text("", encoding="ascii")
            for name in ("panda", "baxter"):
                fetch.fetch(name)
            derive()
            return 0
        for family in families():
            here = len(names(family))
            print(f"{family}: {here} of {size(family)} here, {len(valid(family, 1, size(family)))} valid")
    except (fetch.FetchError, UnknownProblem) as error:
        print(f"problems: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
