"""Hedged calls: a second attempt when the first takes long, one answer, and nothing left running."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import cloudburst as cb
from cloudburst import frames
from cloudburst.dispatch import Dispatcher
from cloudburst.errors import ExecutorLost, Overloaded
from cloudburst.hedging import LATENCIES_MIN, LOOK_US, Hedge, HedgedTask, Latencies
from cloudburst.outcomes import Outcome
from tests.cloudburst.conftest import Post
from tests.cloudburst.samples import hold

SECOND = 1_000_000


def hedged(after_us: int | None = SECOND, latencies: Latencies | None = None) -> tuple[Hedge, HedgedTask]:
    task = HedgedTask(9, 1, "f", b"f", b"", 0, b"", 100 * SECOND, None)
    return Hedge(task, after_us, latencies or Latencies(), b"second"), task


def answer(task: HedgedTask) -> Outcome:
    task.attempts += 1
    return Outcome(task, frames.OK, frames.EMPTY, b"", "")


def test_second_attempt_comes_when_the_first_was_sent_that_long_ago() -> None:
    hedge, task = hedged()
    assert hedge.look(0) == (None, LOOK_US), "it waits here, and a second one would, too"
    task.slot = 3
    task.frame(500_000)
    assert hedge.look(1_000_000) == (None, 1_500_000)
    twin, again = hedge.look(1_500_000)
    assert twin is not None
    assert (again, twin.id, twin.avoids, twin.extras) == (None, task.id, 3, b"second")
    assert hedge.look(2_000_000) == (None, None), "there are two attempts, and no more"


def test_percentile_is_believed_when_enough_was_measured() -> None:
    latencies = Latencies()
    for n in range(LATENCIES_MIN - 1):
        latencies.add(n * 1000)
    assert latencies.p95_us is None
    latencies.add(100_000)
    assert latencies.p95_us == 100_000
    hedge, task = hedged(None, latencies)
    task.slot = 0
    task.frame(7)
    assert hedge.look(10) == (None, 100_007)


def test_first_answer_counts_and_the_other_attempt_is_cancelled() -> None:
    for quick in (0, 1):
        hedge, task = hedged(1)
        task.slot = 0
        task.frame(1)
        twin, _ = hedge.look(5)
        assert twin is not None
        twin.frame(5)
        first, other = (task, twin) if quick == 0 else (twin, task)
        outcome = answer(first)
        verdict = hedge.heard(first, outcome, 10)
        assert (verdict.outcome, verdict.cancelled, hedge.attempts) == (outcome, (other,), 2)
        assert hedge.heard(other, answer(other), 11).outcome is None


def test_what_befell_one_attempt_counts_when_the_other_has_ended_too() -> None:
    hedge, task = hedged(1)
    task.slot = 0
    task.frame(1)
    twin, _ = hedge.look(5)
    assert twin is not None
    lost = task.failed(ExecutorLost("gone"))
    assert hedge.heard(task, lost, 6).outcome is None
    assert hedge.heard(twin, twin.failed(Overloaded("full")), 7).outcome is lost


def test_second_attempt_is_not_sent_to_the_same_executor() -> None:
    core = Dispatcher()
    core.open(0, 1)
    core.open(1, 1)
    hedge, task = hedged(1)
    core.submit(task)
    [(slot, _)] = core.next_sends({0: 0, 1: 5})
    task.frame(1)
    twin, _ = hedge.look(5)
    assert twin is not None
    core.submit(twin)
    assert core.next_sends({slot: 0}) == [], "better no executor than the same"
    assert core.next_sends({0: 0, 1: 5}) == [(1 - slot, twin)]
    core.check()


def hold_at_first(address: str, marker: str) -> str:
    """Hold in the first attempt; answer at once in the second."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "second"
    hold(address)
    return "never"


def count_slowly(path: str) -> int:
    with open(path, "a") as file:
        file.write("x")
    time.sleep(0.3)
    return Path(path).stat().st_size


def test_straggler_loses_and_is_stopped(client: cb.Client, post: Post, directory: Path) -> None:
    client.register(hold_at_first)
    future = client.options(hedge=0.1).spawn("hold_at_first", post.address, str(directory / "marker"))
    assert future.result(timeout=20) == "second"
    assert post.wait()[0] == "begun"
    assert post.wait()[0] == "stopped"
    assert future.attempts == 2


def test_call_goes_on_though_an_executor_stands_still(client: cb.Client) -> None:
    victim = client.call("pid")
    os.kill(victim, signal.SIGSTOP)
    try:
        calls = client.options(hedge=0.1)
        assert victim not in {calls.call("pid") for _ in range(3)}
        assert list(calls.map("square", range(30))) == [n * n for n in range(30)]
    finally:
        os.kill(victim, signal.SIGCONT)


def test_hedged_call_with_an_id_has_its_effect_once(client: cb.Client, directory: Path) -> None:
    client.register(count_slowly)
    path = str(directory / "count")
    assert client.options(hedge=0.05, id="hedged-once").call("count_slowly", path) == 1
    assert Path(path).stat().st_size == 1


def test_users_exception_is_an_answer(client: cb.Client) -> None:
    with pytest.raises(ValueError, match="bad"):
        client.options(hedge=5).call("fail", "ValueError")


def test_cancelled_hedged_call_stops_in_both_executors(client: cb.Client, post: Post) -> None:
    future = client.options(hedge=0.05).spawn("hold", post.address)
    assert [post.wait()[0] for _ in range(2)] == ["begun", "begun"]
    assert future.cancel()
    assert [post.wait()[0] for _ in range(2)] == ["stopped", "stopped"]


def answer_or_hold(address: str, n: int, marker: str) -> str | int:
    return n if n < 40 else hold_at_first(address, marker)


def test_percentile_is_learned_from_hedged_calls(client: cb.Client, post: Post, directory: Path) -> None:
    client.register(answer_or_hold)
    calls, marker = client.options(hedge="p95"), str(directory / "marker")
    found = list(calls.map("answer_or_hold", [post.address] * 41, range(41), [marker] * 41))
    assert found == [*range(40), "second"]
    assert [post.wait()[0] for _ in range(2)] == ["begun", "stopped"]


def return_at_second(marker: str, data: bytes) -> bytes:
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return data
    time.sleep(3600)
    return b""


def test_large_values_reach_the_second_attempt_and_come_back(client: cb.Client, directory: Path) -> None:
    client.register(return_at_second)
    data = os.urandom(3_000_000)
    assert client.options(hedge=0.1).call("return_at_second", str(directory / "marker"), data) == data


def test_hedge_is_checked(client: cb.Client) -> None:
    for wrong in (0, -1, "p99", True):
        with pytest.raises(cb.RequestError, match="it is seconds, more than 0, or 'p95'"):
            client.options(hedge=wrong)
    client.dag("hedged_dag", {"a": [], "b": [], "c": ["a", "b"]}, functions=dict.fromkeys("abc", "echo"))
    with pytest.raises(cb.RequestError, match="'hedged_dag' is a dag; a hedge is for a function"):
        client.options(hedge=1).call("hedged_dag", {})
