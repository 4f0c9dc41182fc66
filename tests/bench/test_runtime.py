"""The experiments of the function runtime: their arithmetic, and each of them once. Nothing here looks at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from bench import drill, driver, harness, work
from bench.burst import ideal_s, title
from bench.driver import Measured, Refused, Work, durations_us
from bench.harness import Sample, Settings, Watch, interleave
from bench.peers import our_runtime, process_pool
from bench.pictures import Picture, Timeline, draw, pictures_of
from bench.report import Report, Row
from bench.turns import Answers, Question, Taken, Turns, available, p50, processor, subject, tail
from tests.bench.test_smoke import bench, check_rows, needs_redis

OURS_AND_POOL = "ours,ProcessPoolExecutor"


def measured(*us: float, cpu_us: float = 1.0) -> Measured:
    return Measured(sorted(us), cpu_us)


def taken(**rounds: tuple[Measured, ...]) -> Taken:
    return Taken({name: tuple(Answers({"call": one}, 0.1) for one in found) for name, found in rounds.items()})


def test_a_samples_figure_and_percentiles_are_of_its_own_round() -> None:
    found = taken(ours=(measured(1, 2, 30), measured(4, 5, 60)))
    assert found.samples("call", p50, latencies=True) == {"ours": (Sample(2, 2, 30), Sample(5, 5, 60))}
    assert found.samples("call", tail) == {"ours": (Sample(15), Sample(12))}


def test_a_subject_that_did_not_answer_in_every_round_has_no_samples() -> None:
    once = Taken({"ours": (Answers({"call": measured(1)}, 0.1), Answers({}, 0.1))})
    assert once.samples("call", p50) == {}


def test_processor_time_that_was_too_little_to_measure_can_be_divided_by() -> None:
    assert processor(measured(1, cpu_us=0.0)) > 0


def test_no_more_runs_begin_when_the_time_is_up_but_one_always_does() -> None:
    done: list[int] = []
    assert len(durations_us(Work(lambda: done.append(1)), 5, 0.0)) == len(done) == 1
    assert len(durations_us(Work(lambda: done.append(1)), 5, 60.0)) == 5


def test_what_is_prepared_before_a_run_is_there_and_a_wrong_result_is_refused() -> None:
    made: list[int] = []
    first = Work(lambda: made[-1], lambda found: found == len(made) - 1, lambda: made.append(len(made)))
    assert len(durations_us(first, 3, 60.0)) == 3
    with pytest.raises(Refused, match="a wrong result: 2"):
        durations_us(replace(first, prepare=None, right=lambda found: found == 7), 1, 60.0)


def test_ideal_time_of_tasks_is_their_processor_time_over_the_executors() -> None:
    assert ideal_s(1_000, 1_000, 2) == 0.5
    assert (title(1_000, 1_000), title(10_000, 0)) == ("1,000 tasks of 1 ms", "10,000 no-ops")


def test_ten_arrays_add_up_to_what_is_expected_of_them() -> None:
    made = work.arrays(80_000, 3.0)
    assert (len(made), sum(array.nbytes for array in made)) == (10, 80_000)
    assert work.total(*made) == work.total_of(80_000, 3.0) == 1_000 * 75.0


def test_no_round_but_the_first_begins_that_would_not_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "taken_by_others", lambda _: 0.0)
    rounds: list[int] = []
    turn: dict[str, Callable[[], None]] = {"ours": lambda: rounds.append(1)}
    assert len(interleave(5, turn, until=0.0)["ours"]) == len(rounds) == 1
    assert len(interleave(5, turn)["ours"]) == 5


def test_a_round_is_taken_to_last_as_long_as_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "taken_by_others", lambda _: 0.0)
    now = [0.0]
    monkeypatch.setattr(harness, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def turn() -> None:
        now[0] += 10.0

    assert len(interleave(9, {"ours": turn}, until=35.0)["ours"]) == 3


def course(calls: int, seconds: float, ended: int, **more: int) -> drill.Course:
    counts = {"wrong": 0, "failed": 0, "attempts": 1, "again": 0} | more
    return drill.Course(calls, seconds, [seconds] * ended, [0.2, 0.4], errors=["Lost: x"], **counts)


def test_a_drill_meets_its_bars_by_its_worst_round() -> None:
    rows = list(drill.verdicts([course(100, 2.0, 100, attempts=3), course(100, 1.0, 100)], [course(100, 1.0, 100)] * 2))
    verdicts = [verdict for row in rows for verdict in row.verdicts()]
    assert [verdict.met for verdict in verdicts] == [True] * 5
    assert verdicts[0].reached == 0.75
    assert rows[0].note == "4 kills, 0 calls begun again"


@pytest.mark.parametrize(
    ("faulty", "missed"),
    [
        (course(100, 2.0, 100), "calls while executors are killed"),
        (course(100, 1.0, 99), "calls that did not end"),
        (course(100, 1.0, 100, failed=1), "calls that failed"),
        (course(100, 1.0, 100, wrong=1), "wrong answers"),
        (course(100, 1.0, 100, attempts=4), "attempts of a call, the most"),
    ],
)
def test_one_fault_in_a_drill_misses_its_bar(faulty: drill.Course, missed: str) -> None:
    rows = drill.verdicts([faulty], [course(100, 1.0, 100)])
    assert [verdict.row.name for row in rows for verdict in row.verdicts() if not verdict.met] == [missed]


@pytest.fixture
def report() -> Report:
    return Report(Console(quiet=True))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(rounds=1, seconds=0.01, latencies=5, quick=True, directory=tmp_path)


def test_a_peer_that_is_missing_is_skipped_and_named(report: Report, settings: Settings) -> None:
    absent = SimpleNamespace(NAME="absent", missing=lambda: "pip install absent", version=lambda: "")
    found = available([subject(absent), subject(process_pool)], settings, report)  # type: ignore[arg-type]
    assert [one.name for one in found] == ["ProcessPoolExecutor"]
    assert report.skipped == {"absent": "pip install absent"}


@pytest.fixture
def pool() -> Iterator[driver.Driver]:
    with driver.driving(process_pool, {}) as found:
        yield found


def test_what_a_runtime_refuses_is_reported_once_and_the_rest_is_measured(
    pool: driver.Driver, report: Report, settings: Settings
) -> None:
    one = Turns("shapes", subject(process_pool), settings, report)
    refused, fine = Question("no such", "chain", ("x",)), Question("chain of 2", "chain", (2,), 3, 60.0)
    assert [list(one.answers([refused, fine], pool)) for _ in range(2)] == [["chain of 2"]] * 2
    assert list(report.broken) == ["shapes, ProcessPoolExecutor, no such"]


def test_every_runtime_offers_what_it_is_asked_for() -> None:
    names = {"nothing", "burst", "composition", "chain", "fan", "hot"}
    assert {name for name in names if not subject(process_pool).answers(name)} == set()
    assert {name for name in (*names, "method", "cold", "gather", "gossip", "drill")
            if not subject(our_runtime).answers(name)} == set()  # fmt: skip
    assert not subject(process_pool, cold="none").answers("cold")


def test_pictures_are_made_of_rows_and_can_be_read(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image", reason="pictures need matplotlib (the extra [plots])")
    samples = {"ours": (Sample(1.0), Sample(2.0)), "Ray": (Sample(20.0), Sample(30.0))}
    curves = [Row("shapes", f"chain of {n}", "µs", samples, point=("chain", n)) for n in (1, 5)]
    dots = [Row("burst", "10 no-ops", "calls/s", samples), Row("burst", "10 tasks", "s", {"ours": samples["ours"]})]
    course = Picture("drill", Timeline("Calls that have ended", {"ours": [0.1, 0.2]}, [0.15]))
    wanted = [*pictures_of("shapes", curves), *pictures_of("burst", dots), course]
    assert [one.name for one in wanted] == ["shapes", "burst", "burst-s", "drill"]
    for path in draw(wanted, tmp_path):
        assert image.imread(path).shape[0] > 200, path
    assert pictures_of("store", dots) == []


def test_graphs_of_every_shape_answer_rightly(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "composition", "shapes", "--only", OURS_AND_POOL)
    check_rows(written, set(OURS_AND_POOL.split(",")))
    assert {row["name"] for row in written["rows"]} >= {"chain of 15, p50", "fan of 9, p50"}


def test_bursts_of_both_kinds_end(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "burst", "--only", OURS_AND_POOL)
    assert [set(row["subjects"]) for row in written["rows"]] == [set(OURS_AND_POOL.split(","))] * 6


@needs_redis
def test_means_are_right_both_ways(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "aggregation", "--only", "ours,Redis")
    assert [set(row["subjects"]) for row in written["rows"]] == [{"ours", "Redis"}, {"ours", "ours, gathering"}]


def test_shared_memory_that_was_mapped_by_hand_is_gone_afterwards(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    written, _ = bench(tmp_path, "locality", "--only", "mapped by hand,one process")
    assert len(written["rows"]) == 6
    assert {name for name in os.listdir("/dev/shm") if name.startswith("bench-")} <= before


def test_drill_kills_and_every_call_ends(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "drill")
    kills = int(written["rows"][0]["note"].split()[0])
    assert kills > 0
    assert {row["name"]: row["subjects"]["ours"][0]["figure"] for row in written["rows"][1:4]} == {
        "calls that did not end": 0, "calls that failed": 0, "wrong answers": 0,
    }  # fmt: skip
