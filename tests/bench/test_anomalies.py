"""The experiments on consistency, with few transactions: what the judge counts is in the tables, at each level."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import anomalies, published
from bench.peers.redis_server import Redis
from bench.transactions import LINEAR, MIXED, V_SHAPED, Draw, Load, plans
from cloudburst.judge.history import History, Line, Operation, Transaction

ROOT = Path(__file__).parents[2]


def test_fractured_reads_are_seen_in_eventual_and_not_in_read_atomic(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bench.anomalies",
        "fractured",
        "--quick",
        "--share",
        "0.4",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "anomalies.json").read_text())["fractured"]
    assert found["broken"] == []
    torn = {(one["load"]["level"], one["counts"]["fractured_reads"] > 0) for one in found["figures"]}
    assert ("read-atomic", False) in torn
    assert ("eventual", True) in torn
    on_redis = [one["load"]["run"] for one in found["figures"] if one["load"]["redis"]]
    assert on_redis == ([] if Redis().missing() else ["aft-redis"])
    table = (tmp_path / "anomalies.md").read_text()
    assert "| AFT (published) | 0 | 0 |" in table


def test_a_function_that_reads_what_another_of_its_reads_depends_on_too_old_is_counted_once() -> None:
    def transaction(number: int, *lines: tuple[tuple[str, str, str | None], ...]) -> Transaction:
        made = [
            Line(number, f"s{number}", tuple(Operation(*one) for one in line), "ok", f"i{number}", at, commit=number)
            for at, line in enumerate(lines)
        ]
        return Transaction(made)

    first = transaction(1, (("write", "a", "a1"),))
    second = transaction(2, (("read", "a", "a1"), ("write", "b", "b2")))
    one_function = transaction(3, (("read", "a", None), ("read", "b", "b2")), (("read", "c", None),))
    two_functions = transaction(4, (("read", "a", None),), (("read", "b", "b2"),))
    history = History([first, second, one_function, two_functions])
    assert anomalies.functions_with_stale_reads(history) == 1


@pytest.mark.parametrize("shape", [LINEAR, V_SHAPED, *MIXED])
def test_every_function_of_a_graph_reads_as_planned_and_the_last_one_writes_what_was_read(shape: object) -> None:
    load = Load("run", "eventual", 1.0, 1, (shape.name,))  # type: ignore[attr-defined]
    found = plans(load, shape, Draw(1.0, 1000, 7, "run"), iter(f"v{n}" for n in range(9)).__next__)  # type: ignore[arg-type]
    reads = [key for plan in found for kind, key, *_ in plan if kind == "read"]
    assert [sum(kind == "read" for kind, *_ in plan) for plan in found] == list(shape.reads)  # type: ignore[attr-defined]
    assert len(set(reads)) == len(reads)
    assert [one[1] in reads for plan in found for one in plan if one[0] == "write"] == [True]


def test_functions_of_a_graph_may_read_what_others_of_it_read_so_that_it_could_differ() -> None:
    load = Load("run", "eventual", 1.0, 1, (LINEAR.name,), keys=10, again=True)
    found = plans(load, LINEAR, Draw(1.0, 10, 7, "run"), iter(f"v{n}" for n in range(9)).__next__)
    read = [{key for kind, key, *_ in plan if kind == "read"} for plan in found]
    assert [len(keys) for keys in read] == list(LINEAR.reads), "one function does not read a key twice"
    assert len(set().union(*read)) < sum(LINEAR.reads)


def test_keys_are_drawn_as_often_as_zipf_says() -> None:
    draw = Draw(1.0, 100, 3)
    drawn = [draw.key() for _ in range(20_000)]
    harmonic = sum(1 / rank for rank in range(1, 101))
    for rank in (1, 2, 10):
        assert drawn.count(f"/{rank - 1}") / 20_000 == pytest.approx(1 / rank / harmonic, rel=0.15)


def test_published_figures_are_of_the_same_points() -> None:
    assert all(len(found) == len(published.SKEWS) for found in published.HYDROCACHE_VIOLATIONS.values())
