"""More spheres, for what the published ones leave out: the robot's outline against obstacles.

The published spheres of a link leave up to 6 cm of its mesh uncovered, and a cheapest path goes where the spheres
let it: it scrapes along an obstacle with exactly those parts. So each moving frame gets further spheres until
its exact solids (URDF meshes, cylinders, boxes) are covered, each centred inside the solid and reaching at most
`OVER` beyond its surface. They are checked against obstacles only; whether the robot touches itself stays the
published question.

    python -m demos.motion.derive_cover panda             # needs the extra robot-judge and the fetched models
    python -m demos.motion.derive_cover panda panda_joint7    # only what this joint moves

Only maintainers run this; the planner reads `data/NAME-cover.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from demos.motion import judge, problems
from demos.motion.problems import Numbers

DATA = Path(__file__).with_name("data")
# How far a sphere may reach beyond the surface, in metres: least at the hand, whose tasks are tight.
OVER = 0.006
OVER_AT_HAND = 0.004
DEPTHS = (0.004, 0.008, 0.014, 0.022, 0.032, 0.045, 0.06, 0.08)
POINTS = 3_000
CANDIDATES = 40
UNCOVERED_SHARE_MAX = 0.002
SPHERES_MAX = 80


def surface(solid: Any, random: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Return points on a solid's surface, and the outward normals there."""
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
    if (a * normals).sum() < 0:  # six times the volume: the faces are wound inside out
        normals = -normals
    chosen = random.choice(len(faces), POINTS, p=areas / areas.sum())
    u, v = np.sqrt(random.random((POINTS, 1))), random.random((POINTS, 1))
    points = (1 - u) * a[chosen] + u * (1 - v) * b[chosen] + u * v * c[chosen]
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


def outside(points: Numbers, spheres: Numbers) -> Any:
    """Return for each point whether no sphere holds it."""
    if not len(spheres):
        return np.ones(len(points), dtype=bool)
    away = np.linalg.norm(points[:, None] - spheres[None, :, :3], axis=2) - spheres[:, 3]
    return away.min(axis=1) > 0


def cover(points: Numbers, normals: Numbers, spheres: Numbers, over: float, random: np.random.Generator) -> Numbers:
    """Return further spheres that together with `spheres` hold all points but a few."""
    found: list[Numbers] = []
    left = outside(points, spheres)
    total = len(points)
    while left.sum() > UNCOVERED_SHARE_MAX * total and len(found) < SPHERES_MAX:
        at = random.choice(np.flatnonzero(left), CANDIDATES)
        centres = np.concatenate([points[at] - depth * normals[at] for depth in DEPTHS])
        depths = np.repeat(DEPTHS, CANDIDATES)
        room = np.array([np.linalg.norm(points - centre, axis=1).min() for centre in centres])
        # Nothing of the surface nearer than where the centre came from: it has not gone through a thin wall.
        inside = room > 0.95 * depths
        if not inside.any():
            continue
        centres, radii = centres[inside], room[inside] + over
        rest = points[left]
        gains = np.array([(np.linalg.norm(rest - c, axis=1) < r).sum() for c, r in zip(centres, radii)])
        best = int(gains.argmax())
        found.append(np.append(centres[best], radii[best]))
        left &= outside(points, found[-1][None])
    return np.array(found).reshape(-1, 4)


def derive(name: str, wanted: list[str]) -> dict[str, Any]:
    """Return the robot's further spheres by the name of the joint that moves them; all joints, or those wanted."""
    robot = problems.robot(name)
    joints, solids, _ = judge.model(name)
    result: dict[str, Any] = {}
    for frame in range(1, robot.frames):
        joint, random = robot.joint_names[robot.turning[frame]], np.random.default_rng(frame)
        if wanted and joint not in wanted:
            continue
        parts = []
        for solid in solids.geometryObjects:
            if joints.names[solid.parentJoint] == joint:
                points, normals = surface(solid.geometry, random)
                rotation, centre = np.array(solid.placement.rotation), np.array(solid.placement.translation)
                parts.append((points @ rotation.T + centre, normals @ rotation.T))
        points, normals = (np.concatenate(part) for part in zip(*parts))
        if len(points) > 3 * POINTS:
            chosen = random.choice(len(points), 3 * POINTS, replace=False)
            points, normals = points[chosen], normals[chosen]
        over = OVER_AT_HAND if frame not in robot.parents else OVER
        further = cover(points, normals, robot.local[robot.frame_of == frame], over, random)
        result[joint] = np.round(further, 4).tolist()
        left = outside(points, np.concatenate((robot.local[robot.frame_of == frame], further))).mean()
        print(f"{name} {joint}: {len(further)} spheres, {left:.1%} of the surface left out", flush=True)
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
