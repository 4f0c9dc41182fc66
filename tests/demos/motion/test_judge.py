"""Final paths are judged by exact meshes, with another library; where that is missing, the judge says so."""

from __future__ import annotations

import tarfile
from typing import Any

import numpy as np
import pytest

from demos.motion import derive_cover, judge, problems
from demos.motion.kernel import Checker, Planner, Robot, cost

EASY = "panda/bookshelf_small/1"
MISSING = judge.unavailable("panda")
needs_meshes = pytest.mark.skipif(bool(MISSING), reason=f"paths are not judged by meshes: {MISSING}")


def planned(name: str, checks: int = 100_000, seed: int = 1) -> tuple[problems.Problem, judge.Numbers]:
    problem = problems.named(name)
    planner = Planner(problem, seed)
    planner.run(checks)
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


@pytest.mark.parametrize("name", [EASY, "panda/cage/1", "baxter/hard/2"])
def test_a_path_is_free_of_the_outline_between_the_points_that_were_looked_at_too(name: str) -> None:
    """With nearly the margin that planners keep, every 2 mm or so."""
    for seed in range(3):
        problem, path = planned(name, 60_000, seed)
        checker = Checker(Robot.named(problem.robot), problem.obstacles, cover=True)
        for end in (problem.start, problem.goal):
            checker.fit(end, 1e-3)
        assert len(path) >= 2
        assert checker.collisions(judge.densely(path), 8e-4) == 0


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
                assert covered.fit(q) > 0
                assert not covered.collides(q)
                assert covered.fit(q) == 0
    assert with_cover > 0


COMMITTED = [problem.name for family in problems.committed().values() for problem in family.values()]


@needs_meshes
@pytest.mark.parametrize("name", COMMITTED)
def test_every_path_of_every_committed_problem_is_free_by_exact_meshes(name: str) -> None:
    """The first path that a planner has, and one that it polished."""
    for seed in (1, 2):
        problem = problems.named(name)
        planner, asked = Planner(problem, seed), judge.Judge(problem)
        while not len(planner.path):
            assert planner.checks < 4_000_000, "a path was found before"
            planner.run(2_000)
        for checks in (0, 40_000):
            planner.run(checks)
            found = asked.judge(planner.path)
            assert found.free, f"{name}, seed {seed}, {planner.checks:,} checks: {found}"
    assert judge.verdict(problem, planner.path) == "free by exact meshes"


@needs_meshes
@pytest.mark.parametrize("name", ["panda", "baxter"])
def test_the_cover_leaves_nothing_of_a_robots_surface_out_and_reaches_little_beyond_it(name: str) -> None:
    robot, (joints, solids, _) = problems.robot(name), judge.model(name)
    random = np.random.default_rng(99)
    for frame in range(1, robot.frames):
        spheres = np.concatenate((robot.local[robot.frame_of == frame], robot.cover[robot.cover_frame == frame]))
        joint = robot.joint_names[robot.turning[frame]]
        surfaces = [points for points, _ in derive_cover.surfaces(joints, solids, joint, random)]
        for points in surfaces:
            assert derive_cover.left_out(points, spheres).max() < 1.3e-3, joint
        hulls = [(points @ derive_cover.DIRECTIONS.T).max(axis=0) + 5e-3 for points in surfaces]
        for x, y, z, radius in robot.cover[robot.cover_frame == frame]:
            around = derive_cover.DIRECTIONS @ (x, y, z)
            own = [points for points, hull in zip(surfaces, hulls, strict=True) if (around <= hull).all()]
            room = [np.linalg.norm(points - (x, y, z), axis=1).min() for points in own]
            assert radius - max(room, default=-1) < derive_cover.OVER + 8e-3, (joint, x, y, z, radius)


@needs_meshes
def test_the_judge_finds_what_a_path_through_an_obstacle_touches() -> None:
    problem = problems.named("panda/cage/1")
    found = judge.judge(problem, np.stack((problem.start, problem.goal)))
    assert found.obstacle_contacts
    assert "exact meshes touch obstacles: panda_" in str(found)
    assert judge.verdict(problem, np.stack((problem.start, problem.goal))).startswith("by exact meshes, touches")


@needs_meshes
def test_meshes_are_unpacked_by_a_python_that_has_no_filters_for_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11.2, which Debian 12 has, has none."""
    unpack = tarfile.TarFile.extractall

    def as_before(self: tarfile.TarFile, path: str = ".", members: Any = None, *, numeric_owner: bool = False) -> None:
        unpack(self, path, members, numeric_owner=numeric_owner)

    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(tarfile.TarFile, "extractall", as_before)
    assert "panda_hand" in judge.model("panda")[2]
