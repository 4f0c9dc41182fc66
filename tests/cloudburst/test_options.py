"""What a function asks for when it is registered: batches, few executors, a time for each step, a session level."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb
from cloudburst.executor.batch import Batch, columns, results_of
from cloudburst.executor.queue import Call, Queue
from cloudburst.frames import BATCH
from tests.cloudburst.conftest import Post, every_executor_held, wait_until_gone
from tests.cloudburst.samples import tell


def call(request: int, name: bytes = b"f", deadline_us: int = 1000, lane: int = 1) -> Call:
    return Call(lane, request, name, 0, 9, request, deadline_us, BATCH, b"", b"")


# -- batches: the core


def test_calls_of_one_function_are_taken_together_oldest_first() -> None:
    queue = Queue()
    for n, name in enumerate((b"f", b"g", b"f", b"f")):
        queue.offer(call(n, name))
    assert queue.take_alike(call(9), 2) == [call(0), call(2)]
    queue.check()
    assert [queue.take(), queue.take(), queue.take()] == [call(1, b"g"), call(3), None]


def test_each_call_of_a_batch_has_its_own_deadline() -> None:
    batch = Batch([call(1, deadline_us=300), call(2, deadline_us=100), call(3, deadline_us=200, lane=2)])
    assert (batch.deadline_us, batch.next_deadline_us) == (300, 100)
    assert batch.expire(150) == [call(2, deadline_us=100)]
    assert batch.cancel(1, 2) is None, "it has had its answer"
    assert batch.cancel(1, 1) == call(1, deadline_us=300)
    batch.leave(2)
    assert batch.open == {}


def test_arguments_become_columns_and_results_are_as_many_as_calls() -> None:
    assert columns([(1, "a"), (2, "b")]) == [[1, 2], ["a", "b"]]
    assert results_of((1, 2), 2, "f") == [1, 2]
    for wrong in ([1], None, 7, "ab", {1, 2}):
        with pytest.raises(cb.RequestError, match="a list of 2 was due"):
            results_of(wrong, 2, "f")


# -- batches: the whole


def add_all(xs: list[int], ys: list[int]) -> list[Any]:
    print(f"batch of {len(xs)}")
    return [ValueError(f"{x} is odd") if x % 2 else (x + y, len(xs)) for x, y in zip(xs, ys, strict=True)]


def fail_all(xs: list[int]) -> list[int]:
    raise LookupError(len(xs))


def too_few(xs: list[int]) -> list[int]:
    return xs[1:]


def hold_all(addresses: list[str]) -> list[str]:
    if not addresses[0]:
        return addresses
    try:
        tell(addresses[0], "begun", len(addresses))
        while True:
            time.sleep(0.01)
    except BaseException as error:
        tell(addresses[0], "stopped", type(error).__name__)
        raise


async def double_all(xs: list[int]) -> list[int]:
    await asyncio.sleep(0)
    return [2 * x for x in xs]


@pytest.fixture(scope="module", autouse=True)
def registered(node: cb.Client) -> None:
    for function in (add_all, fail_all, too_few, hold_all, double_all):
        node.register(function, batch=8)


def test_calls_that_wait_are_run_together(client: cb.Client, post: Post) -> None:
    assert client.call("add_all", 2, 1) == (3, 1), "one alone is a batch of one"
    with every_executor_held(client, post) as held:
        count = 20 * len(held)
        futures = [client.spawn("add_all", 2 * n, n) for n in range(count)]
    found = [future.result(timeout=20) for future in futures]
    assert [value for value, _ in found] == [3 * n for n in range(count)]
    assert max(size for _, size in found) == 8
    assert futures[0].logs().startswith("batch of ")


def test_exception_in_the_list_fails_one_and_an_exception_all(client: cb.Client, post: Post) -> None:
    with every_executor_held(client, post):
        some = [client.spawn("add_all", n, 0) for n in range(4)]
        none = [client.spawn("fail_all", n) for n in range(4)]
        short = client.spawn("too_few", 1)
        unlike = client.spawn("add_all", 2)
    assert some[2].result(timeout=20)[0] == 2
    with pytest.raises(ValueError, match="3 is odd"):
        some[3].result(timeout=20)
    for future in none:
        with pytest.raises(LookupError):
            future.result(timeout=20)
    with pytest.raises(cb.RequestError, match="'too_few' takes batches and returned a list of 0 for 1 calls"):
        short.result(timeout=20)
    with pytest.raises((cb.RequestError, TypeError)):
        unlike.result(timeout=20)
    with pytest.raises(cb.RequestError, match="without names; this has 1 arguments and 1 by name"):
        client.call("add_all", 2, ys=3)


def test_large_values_go_through_a_batch(client: cb.Client) -> None:
    client.register(lambda values: [value[::-1] for value in values], name="reverse_all", batch=4)
    values = [os.urandom(1_000_000) for _ in range(10)]
    assert list(client.map("reverse_all", values)) == [value[::-1] for value in values]


def test_batch_of_coroutines_and_in_a_dag(client: cb.Client) -> None:
    assert list(client.map("double_all", range(30))) == [2 * n for n in range(30)]
    client.dag("batched", {"a": [], "b": ["a"]}, functions={"a": "double_all", "b": "double_all"})
    assert client.call("batched", {"a": (3,)}) == 12


@pytest.fixture
def other_post(directory: Path) -> Iterator[Post]:
    (directory / "other").mkdir()
    opened = Post(directory / "other")
    yield opened
    opened.close()


def test_one_of_a_batch_is_given_up_and_the_last_stops_it(client: cb.Client, post: Post, other_post: Post) -> None:
    assert list(client.map("hold_all", [""] * 100)) == [""] * 100, "executors know that it takes batches"
    with every_executor_held(client, post):
        futures = [client.options(retries=0).spawn("hold_all", other_post.address) for _ in range(32)]
    begun = [other_post.wait() for _ in client.status()["executors"]]
    assert max(int(size) for _, size in begun) > 1
    for future in reversed(futures):
        future.cancel()
    running = len(begun)
    while running:  # one that waited may have begun before its turn to be cancelled came
        running += 1 if other_post.wait()[0] == "begun" else -1
    assert client.call("square", 3) == 9


def test_deadline_of_one_call_is_kept_in_a_batch(client: cb.Client, post: Post) -> None:
    future = client.options(timeout=0.3).spawn("hold_all", post.address)
    assert post.wait() == ["begun", "1"]
    with pytest.raises(cb.FunctionTimeout, match="'hold_all' was still running at its deadline"):
        future.result(timeout=20)
    assert post.wait() == ["stopped", "Interrupted"]


def test_death_in_a_batch_costs_each_of_its_calls_an_attempt(client: cb.Client, post: Post) -> None:
    pids = {row["pid"] for row in client.status()["executors"]}
    future = client.spawn("hold_all", post.address)
    assert post.wait() == ["begun", "1"]
    [pid] = [row["pid"] for row in client.status()["executors"] if row["state"] == "running"]
    os.kill(pid, signal.SIGKILL)
    assert post.wait() == ["begun", "1"]
    assert (future.attempts, pid in pids) == (1, True)
    future.cancel()
    assert post.wait()[0] == "stopped"


# -- few executors


class Ledger:
    """Keeps what it is told, in the executor that it lives in."""

    def __init__(self) -> None:
        self.lines: list[int] = []

    def add(self, line: int) -> tuple[int, int]:
        self.lines.append(line)
        return os.getpid(), len(self.lines)


def test_class_for_one_executor_has_all_its_state_there(client: cb.Client) -> None:
    client.register(Ledger, replicas=1)
    futures = [client.spawn("Ledger.add", n) for n in range(50)]
    found = [future.result(timeout=20) for future in futures] + [client.call("Ledger.add", n) for n in range(10)]
    assert len({pid for pid, _ in found}) == 1
    assert sorted(count for _, count in found) == list(range(1, 61))


def test_function_for_one_executor_waits_for_that_one_and_moves_when_it_dies(client: cb.Client) -> None:
    client.register(os.getpid, name="home", replicas=1)
    home = client.call("home")
    busy = [client.spawn("snooze", 0.01) for _ in range(40)]
    assert {client.spawn("home").result(timeout=20) for _ in range(10)} == {home}
    cb.gather(*busy)
    os.kill(home, signal.SIGKILL)
    wait_until_gone(home)
    assert client.call("home") != home


def test_two_functions_for_one_executor_each_share_the_node(client: cb.Client) -> None:
    for name in ("lone_a", "lone_b"):
        client.register(os.getpid, name=name, replicas=1)
    assert client.call("lone_a") != client.call("lone_b")


def test_only_executor_cannot_wait_for_itself(client: cb.Client) -> None:
    client.register(lambda n: 0 if n == 0 else cb.call("recurse_alone", n - 1), name="recurse_alone", replicas=1)
    assert client.call("recurse_alone", 0) == 0
    with pytest.raises(cb.FunctionError, match="only this executor may run 'recurse_alone'"):
        client.call("recurse_alone", 1)


def test_function_for_few_executors_is_no_step_of_a_dag(client: cb.Client) -> None:
    client.register(os.getpid, name="lonely", replicas=1)
    client.dag("lonely_dag", {"lonely": []})
    with pytest.raises(cb.InvalidDag, match=r"'lonely' is for a few executors \(replicas\)"):
        client.call("lonely_dag")


# -- steps, sessions, and what is shown


def test_functions_timeout_holds_for_its_step(client: cb.Client) -> None:
    client.register(time.sleep, name="quick_sleep", timeout=0.2)
    client.register(lambda *_: time.sleep(0.5), name="slow_sleep")
    client.dag("timed", {"a": [], "b": ["a"]}, functions={"a": "slow_sleep", "b": "slow_sleep"})
    assert client.call("timed", {}) is None, "steps without a time of their own have the DAG's"
    client.dag("timed_step", {"a": [], "b": ["a"]}, functions={"a": "slow_sleep", "b": "quick_sleep"})
    with pytest.raises((cb.FunctionTimeout, TypeError)):
        client.call("timed_step", {})
    client.dag("timed_first", {"a": []}, functions={"a": "quick_sleep"})
    started = time.monotonic()
    with pytest.raises(cb.FunctionTimeout, match="'quick_sleep' was still running at its deadline"):
        client.call("timed_first", {"a": (30,)})
    assert time.monotonic() - started < 10


def test_session_levels_that_do_not_exist_are_refused(client: cb.Client) -> None:
    client.register(len, name="causal_len", session="causal")
    assert client.options(session="eventual").call("causal_len", "abc") == 3
    for ask in (lambda: client.register(len, name="l", session="strong"), lambda: client.options(session="strong")):
        with pytest.raises(cb.RequestError, match="session is 'strong'; the levels are 'eventual', 'repeatable'"):
            ask()


def test_options_are_shown(client: cb.Client) -> None:
    client.register(add_all, name="shown", batch=4, replicas=2, timeout=3, session="eventual")
    [shown] = [one["options"] for one in client.functions() if one["name"] == "shown"]
    assert shown == {
        "timeout_s": 3, "retries": None, "memory_bytes": None, "concurrency": None, "batch": 4, "replicas": 2,
        "session": "eventual",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 1}, r"batch is 1; it must be 2 to 50 \(concurrent_calls_max\)"),
        ({"replicas": 0}, "replicas is 0; it must be 1 or more"),
        ({"batch": 2, "concurrency": 2}, "batch is 2, concurrency 2; a function has one of the two"),
    ],
)
def test_impossible_options_are_refused(client: cb.Client, options: dict[str, Any], words: str) -> None:
    with pytest.raises(cb.RequestError, match=words):
        client.register(double_all, name="impossible", **options)
