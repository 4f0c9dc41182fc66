"""The plain definition of what the kernel computes, in NumPy: every sphere against every solid and every pair.

Nothing is skipped and nothing is shared with the kernel but the robot's numbers.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from demos.motion.kernel import Obstacles, Robot

Numbers = NDArray[np.float64]


def spheres(robot: Robot, configurations: Numbers) -> Numbers:
    """Return the centres of all spheres at each configuration: an array [configuration, sphere, xyz]."""
    frames = [np.broadcast_to(np.eye(4), (len(configurations), 4, 4))]
    for frame in range(1, robot.frames):
        fixed = np.eye(4)
        fixed[:3] = robot.poses[frame]
        turn = np.zeros((len(configurations), 4, 4))
        angle = configurations[:, robot.turning[frame]]
        turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
        turn[:, 1, 0], turn[:, 0, 1] = np.sin(angle), -np.sin(angle)
        turn[:, 2, 2] = turn[:, 3, 3] = 1
        frames.append(frames[robot.parents[frame]] @ fixed @ turn)
    points = [
        frames[frame][:, :3, :3] @ sphere[:3] + frames[frame][:, :3, 3]
        for sphere, frame in zip(robot.local, robot.frame_of, strict=True)
    ]
    return np.stack(points, axis=1)


def clearance(robot: Robot, obstacles: Obstacles, configurations: Numbers) -> Numbers:
    """Return for each configuration the least distance between two things that must not touch; below 0 they overlap."""
    points, radii = spheres(robot, configurations), robot.local[:, 3]
    found = [np.full(len(points), np.inf)]

    def apart(distances: Numbers) -> None:
        found.append((distances - radii).min(axis=1))

    for row in obstacles.boxes:
        outside = np.abs((points - row[:3]) @ row[3:12].reshape(3, 3)) - row[12:15]
        apart(np.linalg.norm(np.maximum(outside, 0), axis=2))
    for row in obstacles.cylinders:
        along = (points - row[:3]) @ row[3:6]
        across = np.linalg.norm(points - row[:3] - along[..., None] * row[3:6], axis=2)
        apart(np.hypot(np.maximum(np.abs(along) - row[6], 0), np.maximum(across - row[7], 0)))
    for row in obstacles.spheres:
        apart(np.linalg.norm(points - row[:3], axis=2) - row[3])
    for row in obstacles.capsules:
        along = np.clip((points - row[:3]) @ row[3:6], -row[6], row[6])
        apart(np.linalg.norm(points - row[:3] - along[..., None] * row[3:6], axis=2) - row[7])
    for a, b in robot.pairs:
        for s, t in itertools.product(np.flatnonzero(robot.body == a), np.flatnonzero(robot.body == b)):
            found.append(np.linalg.norm(points[:, s] - points[:, t], axis=1) - radii[s] - radii[t])
    least: Numbers = np.min(found, axis=0)
    return least


def collides(robot: Robot, obstacles: Obstacles, configurations: Numbers) -> NDArray[np.bool_]:
    """Return for each configuration whether the robot overlaps anything."""
    return clearance(robot, obstacles, configurations) < 0


def between(path: Numbers, step: float) -> Numbers:
    """Return the configurations of a path, so close that no joint turns more than `step` radians between two."""
    rows = [path[:1]]
    for a, b in itertools.pairwise(path):
        count = max(1, int(np.ceil(np.abs(b - a).max() / step)))
        rows.append(a + np.linspace(0, 1, count + 1)[1:, None] * (b - a))
    return np.concatenate(rows)
