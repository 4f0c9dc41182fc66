"""Coroutine functions: many calls of them in one executor, each with its own deadline, output, context and end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

import cloudburst as cb
from tests.cloudburst.conftest import Post, every_executor_held, wait_until_gone
from tests.cloudburst.samples import tell


async def wait_for_ever(address: str) -> None:
    """Report, and then wait until this call is stopped."""
    try:
        tell(address, "begun", os.getpid())
        await asyncio.sleep(3600)
    except BaseException as error:
        tell(address, "stopped", type(error).__name__)
        raise


async def pause(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


async def say_twice(word: str) -> str:
    print(word)
    await asyncio.sleep(0.02)
    print(word)
    return cb.ctx().id


async def defy(address: str) -> None:
    """Go on, whoever asks to stop."""
    tell(address, "begun", os.getpid())
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


async def hold_up(address: str) -> None:
    """Block the loop."""
    tell(address, "begun", os.getpid())
    time.sleep(3600)


async def count_down(n: int) -> int:
    return 0 if n == 0 else 1 + int(await cb.spawn("count_down", n - 1))


async def count_down_blocking(n: int) -> int:
    return 0 if n == 0 else 1 + int(cb.call("count_down_blocking", n - 1))


async def leave() -> None:
    raise SystemExit(3)


async def double(x: Any) -> Any:
    await asyncio.sleep(0)
    return 2 * x


class Room:
    """Knows how many are in it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.inside = self.most = 0

    async def visit(self, seconds: float) -> tuple[int, bool]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(seconds)
        self.inside -= 1
        return self.most, self.loop is asyncio.get_running_loop()

    def people(self) -> tuple[int, bool]:
        return self.inside, self.loop is asyncio.get_running_loop()


async def talk(id: str) -> None:
    cb.ctx().progress(1, 2)
    cb.ctx().send(id, "hello")


ALL = [talk, wait_for_ever, pause, say_twice, defy, hold_up, double, Room]


@pytest.fixture(scope="module", autouse=True)
def registered(node: cb.Client) -> None:
    for function in ALL:
        node.register(function)
    for function in (count_down, count_down_blocking):
        node.register(function, concurrency=1)


def pids(client: cb.Client) -> set[int]:
    return {row["pid"] for row in client.status()["executors"]}


def test_many_calls_are_in_flight_in_each_executor(client: cb.Client, post: Post) -> None:
    before = pids(client)
    futures = [client.spawn("wait_for_ever", post.address) for _ in range(60)]
    begun = [post.wait() for _ in futures]
    assert {word for word, _ in begun} == {"begun"}
    assert {int(pid) for _, pid in begun} <= before
    assert [client.call("square", n) for n in range(20)] == [n * n for n in range(20)], "plain calls go on beside them"
    rows = [row for row in client.status()["executors"] if row["state"] == "running"]
    assert {row["function"] for row in rows} == {"wait_for_ever"}
    assert all(future.cancel() for future in futures)
    assert [post.wait() for _ in futures] == [["stopped", "CancelledError"]] * 60
    assert pids(client) == before


def test_results_of_thousands_come_back_each_to_its_own(client: cb.Client) -> None:
    assert list(client.map("double", range(3000))) == [2 * n for n in range(3000)]


def test_blocking_functions_do_not_hold_up_coroutines(client: cb.Client, post: Post) -> None:
    with every_executor_held(client, post):
        started = time.monotonic()
        assert [future.result(timeout=10) for future in [client.spawn("double", n) for n in range(10)]] == [
            2 * n for n in range(10)
        ]
        assert client.call("double", 4) == 8
        assert time.monotonic() - started < 5


def test_no_more_run_beside_each_other_than_was_asked_for(client: cb.Client) -> None:
    client.register(Room, name="SmallRoom", concurrency=3)
    futures = [client.spawn("SmallRoom.visit", 0.01) for _ in range(40)]
    most = {future.result(timeout=20) for future in futures}
    assert max(most) <= (3, True)
    assert (3, True) in most


def test_class_with_coroutines_lives_on_the_loop_as_a_whole(client: cb.Client) -> None:
    futures = [client.spawn("Room.visit", 0.05) for _ in range(20)]
    assert all(future.result(timeout=20)[1] for future in futures)
    assert max(future.result()[0] for future in futures) > 1
    assert client.call("Room.people") == (0, True)


def test_output_and_context_are_each_invocations_own(client: cb.Client) -> None:
    futures = [client.spawn("say_twice", f"word {n}") for n in range(30)]
    assert [future.result(timeout=20) for future in futures] == [future.id for future in futures]
    assert [future.logs() for future in futures] == [f"word {n}\nword {n}\n" for n in range(30)]


def test_deadline_stops_one_and_not_the_others(client: cb.Client) -> None:
    before = pids(client)
    other = client.spawn("pause", 0.6)
    with pytest.raises(cb.FunctionTimeout, match="'pause' was still running at its deadline") as caught:
        client.options(timeout=0.1).call("pause", 60)
    assert not caught.value.definite
    assert other.result(timeout=20) in before
    assert pids(client) == before


def test_coroutine_that_does_not_stop_is_ended_with_its_executor(client: cb.Client, post: Post) -> None:
    future = client.options(timeout=0.2, retries=0).spawn("defy", post.address)
    pid = int(post.wait()[1])
    with pytest.raises(cb.FunctionTimeout):
        future.result(timeout=20)
    wait_until_gone(pid)
    assert client.call("double", 3) == 6


@pytest.mark.parametrize("busy", [False, True], ids=["main thread idle", "main thread busy"])
def test_coroutine_that_blocks_the_loop_is_ended_with_its_executor(client: cb.Client, post: Post, busy: bool) -> None:
    future = client.options(timeout=0.2, retries=0).spawn("hold_up", post.address)
    pid = int(post.wait()[1])
    if busy:
        calls = [client.options(timeout=30).spawn("snooze", 0.01) for _ in range(400)]
    with pytest.raises(cb.FunctionTimeout):
        future.result(timeout=20)
    wait_until_gone(pid)
    if busy:
        assert [one.result(timeout=30) for one in calls] == [0.01] * 400
    assert client.call("double", 3) == 6


def test_death_of_the_executor_costs_an_attempt_of_what_had_begun(client: cb.Client, post: Post) -> None:
    futures = [client.spawn("wait_for_ever", post.address) for _ in range(20)]
    begun = [int(post.wait()[1]) for _ in futures]
    victim = begun[0]
    os.kill(victim, signal.SIGKILL)
    again = [int(post.wait()[1]) for pid in begun if pid == victim]
    assert victim not in again
    assert sorted(future.attempts for future in futures) == [0] * (20 - len(again)) + [1] * len(again)
    for future in futures:
        future.cancel()
    assert [post.wait()[0] for _ in futures] == ["stopped"] * 20


def test_call_that_had_ended_is_not_begun_again(client: cb.Client, post: Post, tmp_path: Any) -> None:
    """Long ones keep the executor's list of begun calls full of gaps; what was answered is not in it."""
    held = [client.spawn("wait_for_ever", post.address) for _ in range(10)]
    begun = [int(post.wait()[1]) for _ in held]
    done = [client.spawn("pause", 0) for _ in range(500)]
    assert {future.result(timeout=20) for future in done} <= pids(client)
    for pid in set(begun):
        os.kill(pid, signal.SIGKILL)
    assert {post.wait()[0] for _ in held} == {"begun"}
    assert [future.attempts for future in done] == [1] * 500
    assert [future.attempts for future in held] == [1] * 10
    for future in held:
        future.cancel()
    assert [post.wait()[0] for _ in held] == ["stopped"] * 10


@pytest.mark.parametrize("name", ["count_down", "count_down_blocking"])
def test_coroutines_that_wait_for_coroutines_come_to_an_end(client: cb.Client, name: str) -> None:
    """One of each at a time in an executor, and a chain deeper than there are executors."""
    assert client.options(timeout=30).call(name, 6) == 6


def test_exit_of_a_coroutine_is_its_exception_and_the_loop_goes_on(client: cb.Client) -> None:
    client.register(leave)
    before = pids(client)
    with pytest.raises(cb.FunctionError) as caught:
        client.call("leave")
    assert type(caught.value.__cause__) is SystemExit
    assert "in leave" in caught.value.remote_traceback
    assert "executor/coroutines.py" not in caught.value.remote_traceback
    assert client.call("double", 2) == 4
    assert pids(client) == before


def test_references_keys_and_ids_are_the_same_for_coroutines(client: cb.Client) -> None:
    client.put("test/coroutine", [1])
    assert client.call("double", cb.Ref("test/coroutine")) == [1, 1]
    assert client.options(key="test/doubled").call("double", 4) == 8
    assert client.get("test/doubled") == 8
    assert [client.options(id="coroutine-1").call("double", n) for n in (5, 6)] == [10, 10]
    assert client.call("double", client.spawn("double", 2)) == 8


def test_coroutine_is_a_step_of_a_dag(client: cb.Client) -> None:
    client.dag("doubled_twice", {"a": [], "b": ["a"]}, functions={"a": "double", "b": "double"})
    assert client.call("doubled_twice", {"a": (3,)}) == 12


def test_client_that_leaves_stops_its_coroutines(node: cb.Client, post: Post) -> None:
    other = cb.Client(node._join)
    other.spawn("wait_for_ever", post.address)
    assert post.wait()[0] == "begun"
    other.close()
    assert post.wait() == ["stopped", "CancelledError"]


def test_concurrency_is_for_coroutine_functions_without_a_limit_of_memory(client: cb.Client) -> None:
    with pytest.raises(cb.RequestError, match="'plain' is no coroutine function: a plain function that runs in a th"):
        client.register(lambda: 1, name="plain", concurrency=2)
    with pytest.raises(cb.RequestError, match="concurrency is 2 and memory 1,000 bytes: calls that run beside each"):
        client.register(pause, concurrency=2, memory=1000)
    with pytest.raises(cb.RequestError, match=r"concurrency is 51; it must be 1 to 50 \(concurrent_calls_max\)"):
        client.register(pause, concurrency=51)


def test_messages_are_not_for_coroutines(client: cb.Client) -> None:
    with pytest.raises(cb.FunctionError, match="NotSupported: messages are between plain functions"):
        client.call("talk", "0" * 32)


def test_coroutine_with_a_limit_of_memory_runs_alone(client: cb.Client) -> None:
    client.register(double, name="double_little", memory=100_000_000)
    assert client.call("double_little", 2) == 4
    with pytest.raises(cb.OutOfMemory):
        client.call("double_little", bytes(80_000_000))


def test_function_that_is_no_coroutine_any_more_is_run(client: cb.Client) -> None:
    client.register(double, name="changing")
    assert client.call("changing", 2) == 4
    client.register(lambda x: 3 * x, name="changing")
    assert client.call("changing", 2) == 6
    client.register(double, name="changing")
    assert client.call("changing", 2) == 4
