"""Ways of different sections join to one path, whatever order they come in; and what is put together is free."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from anna.lattices import Map, Priority
from demos.motion import segments
from demos.motion.kernel import Checker, cost
from demos.motion.segments import Epoch, Helper, Numbers, Shared, joined, name_of, section_of, spliced
from tests.demos.motion import oracle

LEADER = np.array([[0, 0], [1, 3], [2, 0], [3, 3], [4, 0], [5, 3], [6, 0.0]])
"""Three teeth; each costs 8 and could cost 2."""
FLAT = [np.array([LEADER[at], LEADER[at + 2]]) for at in (0, 2, 4)]


def offered(*ways: Numbers) -> Map:
    state = Map()
    for way in ways:
        state.merge(Map({name_of(way): Priority(cost(way), way)}))
    return state


def ways_in(state: Map) -> list[Numbers]:
    return [state[name].value for name in state]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_improvements_of_different_sections_all_count_in_any_order_where_of_whole_paths_one_does(
    order: tuple[int, ...],
) -> None:
    state, best = Map(), Priority(cost(LEADER), LEADER)
    for number in (*order, *order):  # what comes twice changes nothing
        state = state.join(offered(FLAT[number]))
        whole = spliced(LEADER, FLAT[number])
        assert whole is not None
        best = best.join(Priority(cost(whole), whole))
    assert state.encode() == offered(*FLAT).encode()
    assert cost(joined(LEADER, ways_in(state))) == 6
    assert best.priority == cost(LEADER) - 6 == 18


def test_of_two_ways_for_one_section_the_cheaper_stays() -> None:
    dearer = np.array([[0, 0], [1, 1], [2, 0.0]])
    assert name_of(dearer) == name_of(FLAT[0])
    for state in (offered(dearer, FLAT[0]), offered(FLAT[0], dearer)):
        assert len(state) == 1
        assert cost(ways_in(state)[0]) == 2
    for other in (LEADER[:5], LEADER[1:3]):  # that begin, or end, at the same point
        assert len(offered(FLAT[0], other)) == 2


def test_what_is_joined_is_the_cheapest_of_all_that_any_of_the_ways_make() -> None:
    random = np.random.default_rng(1)
    for _ in range(15):
        leader = random.uniform(-1, 1, (6, 2))
        ways = []
        for _ in range(3):
            begin, end = sorted(random.uniform(0, cost(leader), 2))
            ends = segments.point_at(leader, begin), segments.point_at(leader, end)
            ways.append(np.array([ends[0], ends[0] + random.uniform(-0.3, 0.3, 2), ends[1]]))
        costs = [cost(leader)]
        for some in itertools.chain.from_iterable(itertools.combinations(ways, count) for count in range(1, 4)):
            for order in itertools.permutations(some):
                path: Numbers | None = leader
                for way in order:
                    path = None if path is None else spliced(path, way)
                costs += [] if path is None else [cost(path)]
        assert cost(joined(leader, ways)) == pytest.approx(min(costs))


def test_a_way_whose_ends_are_not_on_the_path_or_in_the_other_order_is_left_out() -> None:
    elsewhere = FLAT[0] + [0, 0.5]
    for way in (elsewhere, FLAT[0][::-1]):
        assert spliced(LEADER, way) is None
        assert joined(LEADER, [way]).tobytes() == LEADER.tobytes()


def test_a_section_may_begin_and_end_between_waypoints_and_the_path_around_it_stays() -> None:
    way = np.array([[0.5, 1.5], [1.5, 1.5]])
    whole = spliced(LEADER, way)
    assert whole is not None
    assert whole.tolist() == [[0, 0], [0.5, 1.5], [1.5, 1.5], *LEADER[2:].tolist()]


def test_an_epochs_sections_lead_from_start_to_goal_and_planners_go_where_waste_is() -> None:
    straight = np.array([[0, 0], [20, 0], [21, 3], [22, 0.0]])
    for number in range(1, 8):
        epoch = Epoch.of(number, straight)
        flat = [point.tolist() for ends in epoch.sections for point in ends]
        assert flat[0] == [0, 0]
        assert flat[-1] == [22, 0]
        assert flat[1:-1:2] == flat[2:-1:2]
        taken = [epoch.section(seed) for seed in range(10)]
        assert all(ends is not None and ends[1][0] > 20 for ends in taken)
    milestones = [Epoch.of(number, straight).sections[0][1].tobytes() for number in range(1, 8)]
    assert len(set(milestones)) == 7
    assert Epoch.of(1, straight[:2]).section(0) is None


@pytest.mark.parametrize("way", ["sections", "map"])
def test_a_path_of_sections_is_free_its_cost_never_rises_and_a_run_repeats(way: str) -> None:
    problem, ends = segments.task_of("panda/cage/1"), []
    for _ in range(2):
        shared, before, first = Shared(), float("inf"), 0.0
        planners = [Helper(problem, seed, way == "map") for seed in range(1, 5)]
        for tick in range(1, 9):
            for planner in planners:
                planner.run(8000)
            shared.exchange(planners, way == "map")
            if tick % 2 == 0 and way == "map":
                shared.turn(planners)
            if shared.best.priority is not None:
                assert shared.best.priority <= before
                before = shared.best.priority
                first = first or before
        path = shared.best.value
        assert cost(path) == before
        assert section_of(path, problem.start, problem.goal) is not None
        assert oracle.clearance(problem.robot, problem.obstacles, oracle.between(path, 0.003)).min() >= 0
        ends.append(path.tobytes())
    assert ends[0] == ends[1]
    assert before < first
    assert any(planner.way is not None for planner in planners)


def test_who_finds_a_milestone_in_an_obstacle_races_on() -> None:
    """What lies between the points of an edge that were looked at may be too near to something."""
    problem = segments.task_of("panda/cage/1")
    checker = Checker(problem.robot, problem.obstacles)
    turned = problem.start.copy()
    turned[0] += 2.0
    leader = np.array([problem.start, turned, problem.start, problem.goal])
    met = 0
    for number in range(1, 8):
        helper, epoch = Helper(problem, 1, True), Epoch.of(number, leader)
        ends = epoch.section(1)
        assert ends is not None
        helper.adopt(leader)
        helper.begin(epoch)
        helper.run(1000)
        blocked = any(checker.collides(end) for end in ends)
        met += blocked
        assert helper.way is None or not blocked
    assert met


def test_the_experiment_goes_on_where_it_ended_and_prints_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "segments.jsonl"
    wanted = ["--problems", "panda/cage/1", "--functions", "2", "--seconds", "0.05", "--out", str(out)]
    assert segments.main([*wanted, "--seeds", "1", "--ways", "path", "map"]) == 0
    assert segments.main([*wanted, "--seeds", "2", "--ways", "map"]) == 0
    assert segments.main([*wanted, "--seeds", "1", "--ways", "map", "--seconds", "0.1"]) == 0
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(run["way"], run["seed"], len(run["costs"])) for run in runs] == [
        ("path", 0, 1), ("map", 0, 1), ("map", 1, 1), ("map", 0, 2),
    ]  # fmt: skip
    assert runs[3]["costs"][0] == runs[1]["costs"][0]
    capsys.readouterr()
    assert segments.main(["--table", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("[1]") == 2  # the path's one seed, and the one that got to 0.1 s
    assert printed.count("[2]") == 1
