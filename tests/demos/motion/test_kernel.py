"""The kernel answers what the plain definition answers, faster; a wrong configuration is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from demos.motion import kernel, problems
from demos.motion.kernel import Checker, Obstacles, Robot
from tests.demos.motion import oracle

ROBOTS = ("panda", "baxter")
POSES = 2_000


def poses(robot: Robot, count: int, seed: int) -> oracle.Numbers:
    """Return random configurations within the limits."""
    return np.random.default_rng(seed).uniform(robot.limits[:, 0], robot.limits[:, 1], (count, robot.joints))


def solids(seed: int) -> Obstacles:
    """Return two obstacles of each kind, turned at random, within reach of both robots and clear of their bases."""
    random = np.random.default_rng(seed)
    turns = [np.linalg.qr(random.normal(size=(3, 3)))[0] for _ in range(6)]
    places = random.uniform((0.45, -0.9, 0.0), (1.0, 0.9, 1.2), (8, 3))
    return Obstacles(
        spheres=[(*places[row], 0.1) for row in (0, 1)],
        boxes=[(*places[row], *turns[row - 2].ravel(), *random.uniform(0.02, 0.15, 3)) for row in (2, 3)],
        cylinders=[(*places[row], *turns[row - 2][:, 2], *random.uniform(0.03, 0.2, 2)) for row in (4, 5)],
        capsules=[(*places[row], *turns[row - 2][:, 2], *random.uniform(0.03, 0.2, 2)) for row in (6, 7)],
    )


@pytest.mark.parametrize("name", ROBOTS)
def test_spheres_are_where_the_plain_kinematics_puts_them(name: str) -> None:
    robot = Robot.named(name)
    rows = poses(robot, 50, 1)
    for q, points in zip(rows, oracle.spheres(robot, rows), strict=True):
        placed = kernel.spheres(robot, q)
        assert np.abs(placed[:, :3] - points).max() < 1e-12
        assert (placed[:, 3] == robot.local[:, 3]).all()


@pytest.mark.parametrize("name", ROBOTS)
def test_collisions_are_those_of_the_plain_definition_among_solids_of_every_kind(name: str) -> None:
    robot, answers = Robot.named(name), []
    for scene in range(4):
        obstacles = solids(scene)
        checker = Checker(robot, obstacles)
        rows = poses(robot, POSES // 4, scene)
        for q, clearance in zip(rows, oracle.clearance(robot, obstacles, rows), strict=True):
            answers.append(checker.collides(q))
            assert answers[-1] == (clearance < 0), (scene, q.tolist(), clearance)
    assert 0.1 < np.mean(answers) < 0.95, "the poses must collide often, and often not"


def beside(robot: Robot, q: oracle.Numbers, overlap: float, random: np.random.Generator) -> Obstacles:
    """Return a small ball that overlaps some further sphere of the robot at `q` by so much."""
    sphere, way = random.integers(len(robot.cover)), random.normal(size=3)
    away = (robot.cover[sphere, 3] + 0.005 - overlap) / np.linalg.norm(way)
    centre = oracle.spheres(robot, q[None], cover=True)[0, sphere] + way * away
    return Obstacles(spheres=[(*centre, 0.005)])


@pytest.mark.parametrize("name", ROBOTS)
def test_collisions_of_the_outline_are_those_of_the_plain_definition(name: str) -> None:
    robot, by_cover, random = Robot.named(name), 0, np.random.default_rng(8)
    alone = Checker(robot, Obstacles())
    for q in [q for q in poses(robot, 500, 20) if not alone.collides(q)][:60]:
        obstacles = beside(robot, q, random.normal(scale=0.002), random)
        plain, further = (oracle.clearance(robot, obstacles, q[None], cover)[0] for cover in (False, True))
        assert Checker(robot, obstacles, cover=True).collides(q) == (min(plain, further) < 0), q.tolist()
        by_cover += further < 0 <= plain
    assert by_cover > 5


@pytest.mark.parametrize("name", ROBOTS)
def test_further_spheres_that_do_not_fit_are_made_as_small_as_they_must_be(name: str) -> None:
    robot, smaller, random = Robot.named(name), 0, np.random.default_rng(9)
    for q in poses(robot, 60, 31):
        obstacles = beside(robot, q, random.uniform(0, 0.02), random)
        checker = Checker(robot, obstacles, cover=True)
        changed = checker.fit(q, 1e-3)
        distances = oracle.apart(obstacles, oracle.spheres(robot, q[None], cover=True)[0]) - 1e-3
        expected = np.minimum(distances, robot.cover[:, 3])
        assert np.maximum(checker.around[:, 3], 0) == pytest.approx(np.maximum(expected, 0), abs=1e-6)
        assert changed == (expected < robot.cover[:, 3]).sum()
        assert checker.collides(q) == Checker(robot, obstacles).collides(q)
        smaller += changed
    assert smaller > 60


@pytest.mark.parametrize("name", ["panda/cage/1", "panda/table_pick/1", "baxter/hard/1"])
def test_collisions_are_those_of_the_plain_definition_in_real_problems(name: str) -> None:
    problem = problems.named(name)
    robot, near = Robot.named(problem.robot), np.random.default_rng(3)
    checker, answers = Checker(robot, problem.obstacles), []
    # Near the goal things are close: random poses seldom meet a shelf.
    rows = problem.goal + near.normal(scale=0.15, size=(POSES // 4, robot.joints))
    for q, expected in zip(rows, oracle.collides(robot, problem.obstacles, rows), strict=True):
        answers.append(checker.collides(q))
        assert answers[-1] == expected, q.tolist()
    assert 0.1 < np.mean(answers) < 0.99


@pytest.mark.parametrize("name", ROBOTS)
def test_a_margin_makes_every_sphere_fatter_by_it(name: str) -> None:
    robot, obstacles = Robot.named(name), solids(9)
    checker = Checker(robot, Obstacles(boxes=obstacles.boxes, cylinders=obstacles.cylinders))
    rows = poses(robot, 400, 4)
    clearances = oracle.clearance(robot, checker.obstacles, rows)
    free = [(q, clearance) for q, clearance in zip(rows, clearances, strict=True) if clearance > 0]
    assert len(free) > 20
    for q, clearance in free:
        # Between two spheres of the robot a margin counts twice, so half of the clearance is free in any case.
        assert not checker.collides(q, clearance * 0.499)
        assert checker.collides(q, clearance * 1.001)


def test_a_robot_whose_base_is_blocked_always_collides() -> None:
    robot = Robot.named("panda")
    checker = Checker(robot, Obstacles(spheres=[(0.0, 0.0, 0.0, 0.1)]))
    assert checker.blocked
    assert all(checker.collides(q) for q in poses(robot, 20, 5))


@pytest.mark.parametrize("name", ROBOTS)
def test_no_sphere_moves_further_than_reach_allows(name: str) -> None:
    """The steps of an edge are cut by this bound; a joint that reached further would be looked at too coarsely."""
    robot = Robot.named(name)
    rows = poses(robot, 200, 6)
    for joint in range(robot.joints):
        turned = rows.copy()
        turned[:, joint] += 0.01
        moved = np.linalg.norm(oracle.spheres(robot, turned) - oracle.spheres(robot, rows), axis=2).max()
        assert 0.5 < moved / (0.01 * robot.reaches[joint]) <= 1


def test_a_path_collides_when_a_point_between_its_rows_does() -> None:
    problem = problems.named("panda/cage/1")
    robot = Robot.named("panda")
    straight = np.stack((problem.start, problem.goal))
    assert not kernel.collides(robot, problem.obstacles, problem.start)
    assert not kernel.collides(robot, problem.obstacles, problem.goal)
    assert oracle.collides(robot, problem.obstacles, oracle.between(straight, 0.05)).any()
    assert kernel.path_collides(robot, problem.obstacles, straight)
    assert not kernel.path_collides(robot, problem.obstacles, np.stack((problem.start, problem.start + 1e-3)))


def test_a_close_look_finds_what_passes_between_the_points_of_a_coarse_one_and_nothing_else() -> None:
    """The hand turns by three steps, and a small ball is where a sphere is in the middle of the second."""
    robot, random, missed, free = Robot.named("panda"), np.random.default_rng(3), 0, 0
    alone = Checker(robot, Obstacles(), cover=True)
    q = next(q for q in poses(robot, 400, 12) if not alone.collides(q))
    turn = np.eye(robot.joints)[-1] * 2.99 * kernel.EDGE_METRES / robot.reaches[-1] / 2
    edge, placed = np.stack((q - turn, q + turn)), oracle.spheres(robot, q[None], cover=True)[0]
    rows = oracle.between(edge, 2e-3)
    for sphere in np.flatnonzero(robot.cover_frame == robot.frames - 1)[::4]:
        axis = oracle.axis(robot, q, robot.frames - 1)
        out = np.cross(axis[1], np.cross(placed[sphere] - axis[0], axis[1]))
        away = robot.cover[sphere, 3] + 1e-3 - random.uniform(-2e-3, 2e-3)
        obstacles = Obstacles(spheres=[(*(placed[sphere] + out / np.linalg.norm(out) * away), 1e-3)])
        checker = Checker(robot, obstacles, cover=True)
        least = min(oracle.clearance(robot, obstacles, rows, cover).min() for cover in (False, True))
        if abs(least) < 3e-4:  # so deep may a sphere dip between the points of a close look
            continue
        assert checker.path_collides(edge, closely=True) == (least < 0), (sphere, least)
        missed += least < 0 and not checker.path_collides(edge)
        free += least > 0
    assert missed > 0
    assert free > 0


def test_a_count_over_many_configurations_is_the_sum_of_single_answers() -> None:
    robot, obstacles = Robot.named("panda"), solids(2)
    checker, rows = Checker(robot, obstacles), poses(Robot.named("panda"), 300, 7)
    assert checker.collisions(rows) == sum(checker.collides(q) for q in rows)


def test_a_configuration_of_another_robot_is_refused_with_both_numbers() -> None:
    checker = Checker(Robot.named("panda"), Obstacles())
    with pytest.raises(ValueError, match=r"panda has 7 joints; the configuration has shape \(14,\)"):
        checker.collides(np.zeros(14))
    with pytest.raises(ValueError, match="panda has 7 joints, not 14"):
        checker.path_collides(np.zeros((2, 14)))


@pytest.mark.parametrize(("name", "joints", "spheres", "pairs"), [("panda", 7, 59, 690), ("baxter", 14, 75, 1845)])
def test_robots_have_the_published_numbers_of_spheres_and_pairs(
    name: str, joints: int, spheres: int, pairs: int
) -> None:
    robot = Robot.named(name)
    counts = np.bincount(robot.body)
    assert (robot.joints, robot.spheres) == (joints, spheres)
    assert sum(counts[a] * counts[b] for a, b in robot.pairs) == pairs
