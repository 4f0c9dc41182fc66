"""The plain definition of what the kernel computes, in NumPy: every sphere against every solid and every pair.

Nothing is skipped and nothing is shared with the kernel but the robot's numbers.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from demos.motion.kernel import Obstacles, Robot

Numbers = NDArray[np.float64]


def frames_of(robot: Robot, configurations: Numbers) -> list[Numbers]:
    """Return where each frame is at each configuration: arrays [configuration, 4, 4]."""
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
    return frames


def axis(robot: Robot, q: Numbers, frame: int) -> tuple[Numbers, Numbers]:
    """Return a point and the direction of the axis that a frame turns about."""
    placed = frames_of(robot, q[None])[frame][0]
    return placed[:3, 3], placed[:3, 2]


def spheres(robot: Robot, configurations: Numbers, cover: bool = False) -> Numbers:
    """Return the centres of all spheres at each configuration, or of all further ones: [configuration, sphere, xyz]."""
    frames = frames_of(robot, configurations)
    points = [
        frames[frame][:, :3, :3] @ sphere[:3] + frames[frame][:, :3, 3]
        for sphere, frame in zip(*own(robot, cover), strict=True)
    ]
    return np.stack(points, axis=1)


def own(robot: Robot, cover: bool) -> tuple[Numbers, NDArray[np.int32]]:
    """Return a robot's published or further spheres, and their frames."""
    return (robot.cover, robot.cover_frame) if cover else (robot.local, robot.frame_of)


def clearance(robot: Robot, obstacles: Obstacles, configurations: Numbers, cover: bool = False) -> Numbers:
    """Return for each configuration the least distance between two things that must not touch; below 0 they overlap.

    With `cover`, of the further spheres, which may touch the robot.
    """
    points, radii = spheres(robot, configurations, cover), own(robot, cover)[0][:, 3]
    found = [(apart(obstacles, points) - radii).min(axis=1)]
    for a, b in () if cover else robot.pairs:
        for s, t in itertools.product(np.flatnonzero(robot.body == a), np.flatnonzero(robot.body == b)):
            found.append(np.linalg.norm(points[:, s] - points[:, t], axis=1) - radii[s] - radii[t])
    least: Numbers = np.min(found, axis=0)
    return least


def apart(obstacles: Obstacles, points: Numbers) -> Numbers:
    """Return how far each point [..., xyz] is from the nearest obstacle, 0 or less within one; infinity without any."""
    found = [np.full(points.shape[:-1], np.inf)]
    for row in obstacles.boxes:
        outside = np.abs((points - row[:3]) @ row[3:12].reshape(3, 3)) - row[12:15]
        found.append(np.linalg.norm(np.maximum(outside, 0), axis=-1))
    for row in obstacles.cylinders:
        along = (points - row[:3]) @ row[3:6]
        across = np.linalg.norm(points - row[:3] - along[..., None] * row[3:6], axis=-1)
        found.append(np.hypot(np.maximum(np.abs(along) - row[6], 0), np.maximum(across - row[7], 0)))
    for row in obstacles.spheres:
        found.append(np.linalg.norm(points - row[:3], axis=-1) - row[3])
    for row in obstacles.capsules:
        along = np.clip((points - row[:3]) @ row[3:6], -row[6], row[6])
        found.append(np.linalg.norm(points - row[:3] - along[..., None] * row[3:6], axis=-1) - row[7])
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
