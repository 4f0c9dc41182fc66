"""The demo as a whole, in miniature, and the experiment in virtual time, which is the same on every machine."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import anna
from anna import local
from demos.motion import __main__ as demo
from demos.motion import experiment, report
from demos.motion.experiment import Cell, Outcome


def test_the_quick_demo_plans_prints_and_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--quick", "--json", "--out", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "result.json").read_text())
    for row in ("sharing", "each for itself"):
        costs = [cost for _, cost in result[row]["steps"]]
        assert costs == sorted(costs, reverse=True)
        assert result[row]["end"] == pytest.approx(costs[-1])
    assert (tmp_path / "motion.html").stat().st_size > 500_000


def test_an_unknown_problem_is_said_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--problem", "panda/maze/1", "--out", str(tmp_path)]) == 1
    assert "panda/maze" in capsys.readouterr().err


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("a", numbered=True)
    with local.ensure(home / "s") as lease, anna.connect(lease.address) as client:
        yield client


def test_a_cell_comes_to_the_same_on_every_run(store: anna.Client) -> None:
    cell = Cell("panda/cage/1", 3, True, 1, 0.05)
    first, second = (experiment.perform(cell, store) for _ in range(2))
    assert first.costs == second.costs
    assert (first.first_s, first.offers) == (second.first_s, second.offers)
    assert first.offers > 0
    assert len(first.costs) == 4
    assert first.costs == sorted(first.costs, reverse=True)


def test_planners_that_do_not_share_are_as_good_as_the_best_of_them(store: anna.Client) -> None:
    one, *_ = (experiment.perform(Cell("panda/cage/1", 1, False, 2, 0.05), store),)
    many = experiment.perform(Cell("panda/cage/1", 4, False, 2, 0.05), store)
    assert many.offers == 0
    assert all(cheaper <= cost for cheaper, cost in zip(many.costs, one.costs, strict=True))


def test_a_run_goes_on_where_the_last_one_ended_even_within_a_line(tmp_path: Path) -> None:
    wanted = [Cell("panda/box/1", 1, False, seed, 0.02) for seed in range(3)]
    path = tmp_path / "cells.jsonl"
    said: list[str] = []
    assert experiment.go_on(wanted[:2], path, math.inf, said.append) == 2
    path.write_text(path.read_text()[:-20])
    assert experiment.go_on(wanted, path, math.inf, said.append) == 2
    assert experiment.go_on(wanted, path, math.inf, said.append) == 0
    assert len(experiment.read([path])) == 3
    assert len(said) == 4


def outcome(functions: int, sharing: bool, costs: list[float], seed: int = 0, seconds: float = 10.0) -> Outcome:
    return Outcome(Cell("panda/cage/1", functions, sharing, seed, seconds), costs, 0.01, 1, 0.1)


def test_a_line_is_read_as_it_was_written() -> None:
    one = outcome(10, True, [math.inf, 9.5])
    again = Outcome.of_line(one.to_line())
    assert (again.cell, again.costs, again.first_s) == (one.cell, one.costs, one.first_s)
    assert again.at(0.02) == 9.5
    assert again.at(0.03) is None


def test_verdicts_and_claims_compare_the_same_seeds_and_say_who_was_worse() -> None:
    slow, fast = [5.0] * 13, [4.0] * 13
    found = [outcome(1, False, slow), outcome(10, True, fast), outcome(10, False, [3.0] * 2)]
    assert [row[:4] for row in experiment.verdicts(found)] == [("panda/cage", 10, 0.01, 1), ("panda/cage", 10, 0.02, 1)]
    assert all(shared > alone for *_, shared, alone in experiment.verdicts(found))
    (said, rows, _), (_, nothing, _) = experiment.claims(found)
    assert said == "10 functions at 1 s ≤ 1 at 10 s"
    assert rows == [("panda/cage/1", 1, 4.0, 5.0)]
    assert nothing == []
    console = Console(record=True, width=160)
    experiment.tell(found, console)
    assert "worse in the median at 2 of 2 moments" in console.export_text()


def test_median_and_band_are_by_nearest_rank() -> None:
    assert experiment.band([5.0, 1.0, 3.0]) == (3.0, 1.0, 5.0)
    assert experiment.band(list(map(float, range(1, 21)))) == (10.0, 2.0, 18.0)


def test_a_lag_ends_when_the_last_planner_knows() -> None:
    traces = [
        {"begun_us": 0, "found": [(1_000, 9.0), (50_000, 5.0)], "pruned": [], "ahead": [(52_000, 4.0)]},
        {"begun_us": 0, "found": [], "pruned": [(4_000, 9.0), (80_000, 5.0)], "ahead": []},
        {"begun_us": 500, "found": [(9_000, 8.0)], "pruned": [(70_000, 5.0)], "ahead": [(2_000, 8.5)]},
    ]
    assert report.lags_ms(traces) == [3.0, 71.0, 30.0]
    assert report.steps(traces) == [(0.001, 9.0), (0.009, 8.0), (0.05, 5.0)]
    assert report.costs_at(report.steps(traces), 0.5) == [5.0, 5.0, None, None]


def test_what_an_improvement_takes_is_counted_and_at_most_a_push_to_each_planner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--measure", "--quick", "--seconds", "0.6", "--json", "--out", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["planners"] for row in rows] == [4, 8]
    for row in rows:
        assert 0 < row["passed_on"] <= (row["improvements"] + 2) * row["planners"]  # two: each watch's first values
        assert row["pushed"] > 0
        assert row["lags"] > 0
        assert 0 < row["coordinator_sent"] <= row["coordinator_offers"] * (row["planners"] - 1)  # some left
        assert row["coordinator_bytes"] > row["coordinator_sent"] * 8 * 2 * 7
