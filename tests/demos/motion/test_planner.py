"""What a planner promises: its cost never rises, its path is free, and equal calls give equal paths."""

from __future__ import annotations

import numpy as np
import pytest

from demos.motion import problems
from demos.motion.kernel import Planner, Robot, cost
from tests.demos.motion import oracle

EASY = "panda/bookshelf_small/1"
NAMES = ["panda/cage/1", EASY, "panda/table_pick/1", "baxter/hard/2"]


def planned(name: str, seed: int, checks: int = 60_000) -> Planner:
    planner = Planner(problems.named(name), seed)
    planner.run(checks)
    return planner


@pytest.mark.parametrize("name", NAMES)
def test_cost_never_rises_and_is_that_of_the_path_from_start_to_goal(name: str) -> None:
    problem = problems.named(name)
    planner, before = Planner(problem, 7), float("inf")
    assert planner.path.shape == (0, len(problem.start))
    for _ in range(300):
        cheaper = planner.run(200)
        assert cheaper == (planner.cost < before)
        before = planner.cost
        if before < float("inf"):
            assert cost(planner.path) == pytest.approx(before, abs=1e-9)
            assert (planner.path[0] == problem.start).all()
            assert (planner.path[-1] == problem.goal).all()
    assert planner.direct - 1e-9 <= before < float("inf")
    assert planner.direct == pytest.approx(np.abs(problem.goal - problem.start).sum())


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_free_by_the_plain_definition_looked_at_far_more_closely(name: str) -> None:
    problem = problems.named(name)
    robot = Robot.named(problem.robot)
    for seed in range(3):
        path = planned(name, seed, 40_000).path
        assert len(path) >= 2
        rows = oracle.between(path, 0.003)
        assert oracle.clearance(robot, problem.obstacles, rows).min() >= 0
        assert (robot.limits[:, 0] <= path).all()
        assert (path <= robot.limits[:, 1]).all()
