"""Final paths are judged by exact meshes, with another library; where that is missing, the judge says so."""

from __future__ import annotations

import numpy as np
import pytest

from demos.motion import judge, problems
from demos.motion.kernel import Checker, Planner, Robot, cost

EASY = "panda/bookshelf_small/1"
MISSING = judge.unavailable("panda")
needs_meshes = pytest.mark.skipif(bool(MISSING), reason=f"paths are not judged by meshes: {MISSING}")


def planned(name: str, outline: bool = False) -> tuple[problems.Problem, judge.Numbers]:
    problem = problems.named(name)
    planner = Planner(problem, 1, outline)
    planner.run(100_000)
    return problem, planner.path


def test_without_the_meshes_the_verdict_is_that_of_the_spheres_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "unavailable", lambda robot: "pinocchio is not installed; pip install it")
    problem, path = planned(EASY)
    assert judge.verdict(problem, path) == "free by spheres, not judged: pinocchio is not installed"
    straight = np.stack((problem.start, problem.goal))
    assert judge.verdict(problem, straight).startswith("collides by spheres")
    with pytest.raises(RuntimeError, match="pinocchio is not installed"):
        judge.judge(problem, path)


def test_a_path_is_looked_at_so_closely_that_no_joint_turns_far_and_stays_the_same_path() -> None:
    _, path = planned(EASY)
    poses = judge.densely(path)
    assert np.abs(np.diff(poses, axis=0)).max() <= judge.TURN_MAX + 1e-12
    assert cost(poses) == pytest.approx(cost(path))
    assert (poses[0] == path[0]).all()
    assert (poses[-1] == path[-1]).all()


@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (0.6, 0.0, -0.8), (0.0, -1.0, 0.0)])
def test_a_solid_is_turned_upright_without_being_mirrored(axis: tuple[float, float, float]) -> None:
    turned = judge.upright(np.array(axis))
    assert turned[:, 2] == pytest.approx(axis)
    assert turned @ turned.T == pytest.approx(np.eye(3))
    assert np.linalg.det(turned) == pytest.approx(1)


def test_a_planner_that_keeps_the_outline_clear_finds_paths_whose_further_spheres_are_free() -> None:
    problem, path = planned(EASY, outline=True)
    checker = Checker(Robot.named("panda"), problem.obstacles, cover=True)
    for end in (problem.start, problem.goal):
        checker.leave_out(end, 1e-3)
    assert len(path) >= 2
    assert checker.collisions(judge.densely(path)) == 0


def test_a_sphere_of_the_cover_collides_with_obstacles_only_where_the_cover_is_asked_for() -> None:
    robot = Robot.named("panda")
    q = problems.named(EASY).start
    with_cover = 0
    for sphere in Checker(robot, problems.Obstacles()).placed(q)[5:40:5]:
        for away in np.linspace(-0.2, 0.2, 21):
            ball = problems.Obstacles(spheres=[(sphere[0], sphere[1] + away, sphere[2], 0.01)])
            plain, covered = Checker(robot, ball), Checker(robot, ball, cover=True)
            assert covered.collides(q) >= plain.collides(q)
            if covered.collides(q) and not plain.collides(q):
                with_cover += 1
                assert covered.leave_out(q) > 0
                assert not covered.collides(q)
    assert with_cover > 0


@needs_meshes
@pytest.mark.parametrize("name", [EASY, "panda/box/1", "panda/table_pick/1"])
def test_a_path_of_the_outline_is_free_by_exact_meshes(name: str) -> None:
    problem, path = planned(name, outline=True)
    found = judge.judge(problem, path)
    assert found.free, str(found)
    assert judge.verdict(problem, path) == "free by exact meshes"


@needs_meshes
def test_the_judge_finds_what_a_path_through_an_obstacle_touches() -> None:
    problem = problems.named("panda/cage/1")
    found = judge.judge(problem, np.stack((problem.start, problem.goal)))
    assert found.obstacle_contacts
    assert "exact meshes touch obstacles: panda_" in str(found)
    assert judge.verdict(problem, np.stack((problem.start, problem.goal))).startswith("by exact meshes, touches")
