"""Problems are what their authors published, chosen by a rule and not by looks, and travel as bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from demos.motion import problems
from demos.motion.kernel import Robot
from demos.motion.yaml import parse


def here(family: str) -> bool:
    return problems.fetched(family) is not None


needs_archive = pytest.mark.skipif(
    not (here("panda/cage") and here("baxter/hard")),
    reason="the archives are not fetched: python -m demos.fetch panda",
)


def test_a_dozen_problems_are_in_the_tree_and_all_are_valid() -> None:
    committed = problems.committed()
    assert set(committed) == set(problems.families())
    assert sum(map(len, committed.values())) == 12
    for family, numbered in committed.items():
        for number, problem in numbered.items():
            assert problem.valid
            assert (problem.family, problem.number) == (family, number)
            assert len(problem.start) == len(problem.goal) == Robot.named(problem.robot).joints


@pytest.mark.parametrize("name", ["panda/cage/1", "baxter/hard/2"])
def test_a_problem_travels_as_bytes_to_the_last_bit(name: str) -> None:
    problem = problems.named(name)
    again = problems.Problem.decode(problem.encode())
    assert again.encode() == problem.encode()
    assert again.name == name
    assert (again.start == problem.start).all()
    assert (again.obstacles.boxes == problem.obstacles.boxes).all()
    assert len(problem.encode()) < 8_000


def test_start_and_goal_within_the_limits_of_the_robot() -> None:
    for numbered in problems.committed().values():
        for problem in numbered.values():
            limits = Robot.named(problem.robot).limits
            for q in (problem.start, problem.goal):
                assert (limits[:, 0] <= q).all()
                assert (q <= limits[:, 1]).all()


def test_an_unknown_problem_is_refused_with_the_reason() -> None:
    with pytest.raises(problems.UnknownProblem, match="no family 'panda/kitchen'; there are panda/box"):
        problems.load("panda/kitchen", 1)
    with pytest.raises(problems.UnknownProblem, match="panda/cage has problems 1 to 100, not 101"):
        problems.named("panda/cage/101")
    with pytest.raises(problems.UnknownProblem, match="'cage' names no problem"):
        problems.named("cage")


def test_a_problem_that_is_not_fetched_says_how_to_fetch_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "cached", lambda name: None)
    with pytest.raises(problems.UnknownProblem, match=r"in the tree: 1\); python -m demos.fetch panda"):
        problems.load("panda/cage", 2)
    assert problems.names("panda/cage") == ["panda/cage/1"]
    assert problems.valid("baxter/hard", 1, 6) == [1, 2, 6]


@needs_archive
def test_the_committed_problems_are_those_of_the_archive() -> None:
    archived = problems.fetched("panda/cage")
    assert archived is not None
    request, scene = (archived[f"problems/cage_panda/{part}0001.yaml"] for part in ("request", "scene"))
    assert problems.read("panda/cage", 1, request, scene).encode() == problems.load("panda/cage", 1).encode()


@needs_archive
def test_as_many_problems_are_valid_as_the_sphere_model_is_known_to_accept() -> None:
    counts = {family: len(problems.valid(family, 1, 100)) for family in problems.families()}
    assert sum(count for family, count in counts.items() if family.startswith("panda/")) == 699
    assert counts["baxter/hard"] == 75


@needs_archive
def test_the_first_valid_ones_are_in_the_tree() -> None:
    for family in problems.families():
        committed = sorted(problems.committed()[family])
        assert problems.valid(family, 1, committed[-1]) == committed


def test_yaml_reads_maps_and_lists_in_both_of_their_forms() -> None:
    text = """
    - id: Can1
      primitives:
        - type: box
          dimensions: [0.14, -3e-2]
      poses:
      - {at: [1, 2], of: ""}
      - - 7
        - true
    - empty:
      after: word and word
    """
    assert parse(text) == [
        {
            "id": "Can1",
            "primitives": [{"type": "box", "dimensions": [0.14, -0.03]}],
            "poses": [{"at": [1.0, 2.0], "of": ""}, [7.0, True]],
        },
        {"empty": None, "after": "word and word"},
    ]


@pytest.mark.parametrize("text", ["a: [1, 2", "a: {b 1}", "a: 1\n b: 2", "a: |\n  text"])
def test_yaml_that_is_not_of_these_forms_is_refused(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        parse(text)


@needs_archive
def test_yaml_reads_every_scene_of_a_family_as_json_would_hold_it() -> None:
    archived = problems.fetched("panda/box")
    assert archived is not None
    scenes = [data for name, data in archived.items() if name.startswith("problems/box_panda/scene")]
    assert len(scenes) == 100
    for data in scenes:
        world = parse(data.decode())["world"]["collision_objects"]
        assert json.loads(json.dumps(world)) == world
        assert all(np.isfinite(thing["primitive_poses"][0]["position"]).all() for thing in world)
