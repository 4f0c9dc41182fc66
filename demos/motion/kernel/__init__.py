"""The compiled half of the planner: where a robot is, what it touches, and how it gets from start to goal.

Rule: nothing here knows of time, functions or the store. Work is counted in collision checks, so that equal
seeds and equal calls give equal paths; a clock, where one is wanted, is in the driver.

Read in this order: geometry (robot, obstacles, checks), sampling (random configurations that can still help),
tree (flat trees), polish (shorter paths of the same class), planner.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from demos.motion.kernel.geometry import EDGE_METRES, Checker, Obstacles, Robot
from demos.motion.kernel.planner import Planner, cost
from demos.motion.kernel.polish import WAYPOINTS_MAX

Numbers = NDArray[np.float64]

__all__ = [
    "EDGE_METRES",
    "WAYPOINTS_MAX",
    "Checker",
    "Obstacles",
    "Planner",
    "Robot",
    "collides",
    "cost",
    "path_collides",
    "spheres",
]


def spheres(robot: Robot, q: ArrayLike) -> Numbers:
    """Return the spheres of the robot at `q` as rows x, y, z, radius in metres of the world: what a page draws."""
    return Checker(robot, Obstacles()).placed(q)


def collides(robot: Robot, obstacles: Obstacles, q: ArrayLike) -> bool:
    """Return whether the robot at `q` overlaps an obstacle or itself. Keep a `Checker` to ask often."""
    return Checker(robot, obstacles).collides(q)


def path_collides(robot: Robot, obstacles: Obstacles, path: ArrayLike) -> bool:
    """Return whether a path (rows of joint angles) collides, looked at as closely as planners look."""
    return Checker(robot, obstacles).path_collides(path)
