"""The driver: what clients draw, what happens when one fails, and what a user is told."""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from demos.retwis import on_redis, report, workload
from demos.retwis.__main__ import main
from demos.retwis.people import Texts

TEXTS = Texts(("a", "b"), ("@x c",), "two texts")


def quiet() -> workload.Operations:
    """Operations that do nothing; every timeline has one post."""
    shown = [{"id": "p1", "parent": "", "text": "a", "reply_to": None}]
    answers: dict[str, Callable[..., Any]] = {name: lambda *_: "p1" for name in workload.OPERATIONS}
    return answers | {"timeline": lambda _user: shown}


def failing() -> workload.Operations:
    """Operations of which every post fails."""

    def post(*_: object) -> str:
        raise ValueError("no more posts")

    return {**quiet(), "post": post}


def dying() -> workload.Operations:
    """A backend whose client ends at once."""
    os._exit(3)


def test_a_person_keeps_to_the_mix_and_answers_what_is_on_the_screen() -> None:
    person = workload.Person(quiet(), 100, TEXTS, "seed")
    done = Counter(person.step()[0] for _ in range(20_000))
    shares = {name: round(count / 20_000, 2) for name, count in done.items()}
    assert shares == {"timeline": 0.9, "post": 0.05, "reply": 0.03, "like": 0.02}


def test_a_person_with_an_empty_screen_answers_nothing() -> None:
    person = workload.Person({**quiet(), "timeline": lambda _user: []}, 100, TEXTS, "seed")
    assert {person.step()[0] for _ in range(2_000)} == {"timeline", "post"}


def test_the_same_seed_draws_the_same() -> None:
    first, second, other = (workload.Person(quiet(), 100, TEXTS, seed) for seed in ("1", "1", "2"))
    steps = [[person.step()[0] for _ in range(500)] for person in (first, second, other)]
    assert steps[0] == steps[1] != steps[2]


def test_every_client_is_measured_and_the_warm_up_is_not() -> None:
    with workload.Crowd(2, {"quiet": quiet}, 100, TEXTS, seed=1) as crowd:
        measured = crowd.turn("quiet", 0.05, 0.1)
        assert measured.seconds > 0
        assert len(measured.times["timeline"]) == measured.counts["entries"] > 0
        warm_up_only = crowd.turn("quiet", 0.05, 0.0)
        assert warm_up_only.times == {}
    assert multiprocessing.active_children() == []


def test_a_turn_whose_time_is_over_before_a_call_ends_has_something_to_report() -> None:
    now = time.monotonic()
    person = workload.Person(quiet(), 100, TEXTS, "seed")
    measured = workload.run_turn(person, now - 2.0, now - 1.0)
    row = report.Row("slow", "slow", repeats=[report.summarise(measured)])
    assert row.repeats[0].operations_per_second > 0
    assert None not in [row.milliseconds(name, 99) for name in ("timeline", "post")]
    assert "–" not in report.cells(row)[:6]


@pytest.mark.parametrize(
    ("backend", "words"), [(failing, "a client stopped: ValueError: no more posts"), (dying, "a client process died")]
)
def test_a_client_that_fails_ends_the_run_with_its_reason(backend: workload.OpenBackend, words: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(words)), workload.Crowd(2, {"b": backend}, 9, TEXTS, 1) as crowd:
        crowd.turn("b", 0.0, 30.0)
    assert multiprocessing.active_children() == []


def test_a_missing_redis_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_redis.shutil, "which", lambda _name: None)
    assert "apt install redis-server" in (on_redis.missing() or "")


def test_a_redis_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    if why := on_redis.missing():
        pytest.skip(f"Redis is not compared: {why}")
    store = on_redis.RedisStore()
    monkeypatch.setattr(store, "path", "/nowhere/redis.sock")
    with pytest.raises(RuntimeError, match="redis-server is not up"), store:
        pass


@pytest.mark.parametrize("wrong", [["--seconds", "0"], ["--clients", "many"], ["--posts", "0"], ["--texts", "other"]])
def test_wrong_usage_is_told_with_exit_code_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "python -m demos.retwis --quick" in capsys.readouterr().out
