"""More spheres, for what the published ones leave out: the robot's outline against obstacles.

The published spheres of a link leave up to 6 cm of its mesh uncovered, and a cheapest path goes where the spheres
let it: it scrapes along an obstacle with exactly those parts. So each moving frame gets further spheres until
its exact solids (URDF meshes, cylinders, boxes) are covered, each centred in the solid's convex hull and reaching
`OVER` beyond the points that were drawn of its surface. They are checked against obstacles only; whether the robot
touches itself stays the published question.

    python -m demos.motion.derive_cover panda             # needs the extra robot-judge and the fetched models
    python -m demos.motion.derive_cover panda panda_joint7    # only what this joint moves

Only maintainers run this; the planner reads `data/NAME-cover.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from demos.motion import judge, problems
from demos.motion.problems import Numbers

DATA = Path(__file__).with_name("data")
# How far a sphere may reach beyond the surface, in metres: least at the hand, whose tasks are tight.
OVER = 0.006
OVER_AT_HAND = 0.004
# No point of the surface lies further outside all spheres than this. Planners keep spheres 1 mm fatter than they are.
LEFT_OUT_MAX = 0.0004
# Points are drawn anew, and more spheres added, until those of so many draws in a row keep to this, which is coarser.
DRAWN_LEFT_OUT_MAX = 0.0008
DRAWS_IN_A_ROW = 8
DEPTHS = (0.0015, 0.0025, 0.0034, 0.005, 0.008, 0.014, 0.022, 0.032, 0.045, 0.06, 0.08)
POINTS = 4_000
ON_EDGES = 3
"""One in so many points is on an edge of a face."""
CANDIDATES = 40
# Where faces meet, a centre lies inwards of all faces that pass within this of the point.
EDGE = 0.003
SPHERES_MAX = 400
DIRECTIONS = np.random.default_rng(0).normal(size=(500, 3))


def surface(solid: Any, random: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Return points on a solid's surface, and the outward normals there; some on the edges, which stick out."""
    import coal

    if isinstance(solid, coal.Sphere):
        normals = random.normal(size=(POINTS, 3))
        normals /= np.linalg.norm(normals, axis=1)[:, None]
        return normals * solid.radius, normals
    if isinstance(solid, coal.Box):
        half = np.array(solid.halfSide).ravel()
        corners, faces = box(half)
    elif isinstance(solid, coal.Cylinder):
        corners, faces = cylinder(solid.radius, solid.halfLength)
    else:
        corners = np.array(solid.vertices())
        triangles = (solid.tri_indices(face) for face in range(solid.num_tris))
        faces = np.array([[triangle[corner] for corner in range(3)] for triangle in triangles])
    a, b, c = (corners[faces[:, corner]] for corner in range(3))
    normals = np.cross(b - a, c - a)
    areas = np.linalg.norm(normals, axis=1)
    # Solids are convex or nearly, and a mesh's faces may be wound either way, or leave gaps.
    normals *= np.where(((a - corners.mean(axis=0)) * normals).sum(axis=1) < 0, -1, 1)[:, None]
    chosen = random.choice(len(faces), POINTS, p=areas / areas.sum())
    shares = random.exponential(size=(3, POINTS))
    alone = np.arange(POINTS // ON_EDGES)
    shares[random.integers(3, size=len(alone)), alone] = 0
    shares /= shares.sum(axis=0)
    points = sum(share[:, None] * corner[chosen] for share, corner in zip(shares, (a, b, c), strict=True))
    return points, normals[chosen] / areas[chosen, None]


def box(half: Numbers) -> tuple[Numbers, Any]:
    """Return a box's corners and faces, wound outwards."""
    corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    return corners, np.array([(q[0], q[i], q[i + 1]) for q in quads for i in (1, 2)])


def cylinder(radius: float, half: float) -> tuple[Numbers, Any]:
    """Return a cylinder's corners and faces, wound outwards, 48 around."""
    count = 48
    angles = np.arange(count) * 2 * np.pi / count
    ring = np.column_stack((np.cos(angles) * radius, np.sin(angles) * radius))
    corners = np.concatenate((
        np.column_stack((ring, np.full(count, -half))),
        np.column_stack((ring, np.full(count, half))),
        [(0, 0, -half), (0, 0, half)],
    ))
    faces = []
    for at in range(count):
        to = (at + 1) % count
        faces += [(at, to, count + at), (to, count + to, count + at)]
        faces += [(to, at, 2 * count), (count + at, count + to, 2 * count + 1)]
    return corners, np.array(faces)


def left_out(points: Numbers, spheres: Numbers) -> Numbers:
    """Return how far each point lies outside all spheres; below 0 where one holds it."""
    away = np.full(len(points), np.inf)
    for sphere in spheres:
        away = np.minimum(away, np.linalg.norm(points - sphere[:3], axis=1) - sphere[3])
    return away


def candidates(points: Numbers, normals: Numbers, at: Any) -> tuple[Numbers, Numbers]:
    """Return centres inside a solid, below points `at` of its surface, and how far each is from the surface.

    The points themselves are among them, so that every point can be covered.
    """
    blended = np.array([normals[np.linalg.norm(points - points[one], axis=1) < EDGE].sum(axis=0) for one in at])
    blended /= np.maximum(np.linalg.norm(blended, axis=1), 1e-9)[:, None]
    centres = np.concatenate([points[at] - depth * way for depth in DEPTHS for way in (normals[at], blended)])
    depths = np.repeat(DEPTHS, 2 * len(at))
    room = np.array([np.linalg.norm(points - centre, axis=1).min() for centre in centres])
    inside = (centres @ DIRECTIONS.T <= (points @ DIRECTIONS.T).max(axis=0)).all(axis=1)  # of the convex hull
    chosen = inside & (room > 0.4 * depths)
    return np.concatenate((centres[chosen], points[at])), np.append(room[chosen], np.zeros(len(at)))


def cover(points: Numbers, normals: Numbers, spheres: Numbers, over: float, random: np.random.Generator) -> Numbers:
    """Return further spheres that together with `spheres` leave out no point by more than LEFT_OUT_MAX.

    Greedy: of the spheres below some points that are left out, those that hold the most of what is left.
    """
    found: list[Numbers] = []
    away = left_out(points, spheres)
    while (away > LEFT_OUT_MAX).any() and len(found) < SPHERES_MAX:
        left = np.flatnonzero(away > LEFT_OUT_MAX)
        centres, room = candidates(points, normals, random.choice(left, min(CANDIDATES, len(left)), replace=False))
        radii, first = room + over, 0
        while len(centres):
            rest = points[away > LEFT_OUT_MAX]
            gains = [(np.linalg.norm(rest - c, axis=1) < r).sum() for c, r in zip(centres, radii)]
            best = int(np.argmax(gains))
            if not gains[best] or gains[best] < first / 2:
                break
            first = max(first, gains[best])
            found.append(np.append(centres[best], radii[best]))
            away = np.minimum(away, left_out(points, found[-1][None]))
    return np.array(found).reshape(-1, 4)


def surfaces(joints: Any, solids: Any, joint: str, random: np.random.Generator) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield points and outward normals of each solid that a joint moves, in its frame."""
    for solid in solids.geometryObjects:
        if joints.names[solid.parentJoint] == joint:
            points, normals = surface(solid.geometry, random)
            rotation, centre = np.array(solid.placement.rotation), np.array(solid.placement.translation)
            yield points @ rotation.T + centre, normals @ rotation.T


def derive(name: str, wanted: list[str]) -> dict[str, Any]:
    """Return the robot's further spheres by the name of the joint that moves them; all joints, or those wanted."""
    robot = problems.robot(name)
    joints, solids, _ = judge.model(name)
    result: dict[str, Any] = {}
    for frame in range(1, robot.frames):
        joint, random = robot.joint_names[robot.turning[frame]], np.random.default_rng(frame)
        if wanted and joint not in wanted:
            continue
        spheres = robot.local[robot.frame_of == frame]
        published, over = len(spheres), OVER_AT_HAND if frame not in robot.parents else OVER
        kept = 0
        while kept < DRAWS_IN_A_ROW:
            drawn = list(surfaces(joints, solids, joint, random))
            most = max(left_out(points, spheres).max() for points, _ in drawn)
            kept = kept + 1 if most < DRAWN_LEFT_OUT_MAX else 0
            for points, normals in drawn if not kept else ():
                spheres = np.concatenate((spheres, np.round(cover(points, normals, spheres, over, random), 4)))
        result[joint] = spheres[published:].tolist()
        print(f"{name} {joint}: {len(result[joint])} spheres, at most {most * 1e3:.1f} mm are left out", flush=True)
    return result


def main(arguments: list[str]) -> int:
    """Derive a robot's further spheres (ROBOT [JOINT …]) and write them; exit 0, or 3 when something is missing."""
    name, wanted = arguments[0], arguments[1:]
    if missing := judge.unavailable(name):
        print(f"derive_cover: {missing}", file=sys.stderr)
        return 3
    path = DATA / f"{name}-cover.json"
    found = (json.loads(path.read_text("ascii")) if wanted else {}) | derive(name, wanted)
    text = ",\n".join(f'"{joint}": {json.dumps(spheres)}' for joint, spheres in found.items())
    path.write_text("{\n" + text + "\n}\n", encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
