"""Calls that end with another call: no executor waits, and the first caller gets the last result."""

from __future__ import annotations

import os
from typing import Any

import pytest

import cloudburst as cb
from cloudburst import config, frames
from cloudburst.attempts import Task
from cloudburst.errors import RequestError
from tests.cloudburst.conftest import Post, every_executor_held


def descend_by_continuing(n: int, seen: int = 0) -> Any:
    return seen if n == 0 else cb.Continue("descend_by_continuing", n - 1, seen=seen + 1)


async def descend_on_the_loop(n: int, seen: int = 0) -> Any:
    return seen if n == 0 else cb.Continue("descend_on_the_loop", n - 1, seen + 1)


def then(name: str, *args: Any) -> cb.Continue:
    print(f"then {name}")
    return cb.Continue(name, *args)


def pass_future(x: int) -> cb.Continue:
    return cb.Continue("square", cb.spawn("square", x))


def continue_in_list(xs: list[int]) -> list[Any]:
    return [cb.Continue("square", x) for x in xs]


@pytest.fixture(scope="module", autouse=True)
def registered(node: cb.Client) -> None:
    for function in (descend_by_continuing, descend_on_the_loop, then, pass_future):
        node.register(function)
    node.register(continue_in_list, batch=4)


def test_task_becomes_the_call_that_its_function_has_ended_with() -> None:
    task = Task(9, 1, "f", b"f", b"old", frames.STAGE, b"", 1000, 2, 7)
    following = frames.pack_continuation("g", frames.ASYNC, 5, [1, 2], ["k"], b"new")
    assert task.answered(frames.reply(frames.CONTINUED, 1, following), 0) is None
    assert (task.name, task.name_bytes, task.payload, task.flags, task.version) == ("g", b"g", b"new", frames.ASYNC, 0)
    assert (task.beside, task.homes, frames.unpack(task.extras)) == (5, {1, 2}, {"refs": ["k"]})
    assert (task.attempts, task.attempts_max, task.user_attempts_max) == (1, 4, 4), "it has all of its attempts again"


def test_continuations_of_one_call_are_bounded() -> None:
    task = Task(9, 1, "f", b"f", b"", 0, b"", 1000, None)
    reply = frames.reply(frames.CONTINUED, 1, frames.pack_continuation("f", 0, 0, None, [], b""))
    for _ in range(config.CONTINUATIONS_MAX):
        assert task.answered(reply, 0) is None
    outcome = task.answered(reply, 0)
    assert outcome is not None
    error = outcome.error()
    assert isinstance(error, RequestError)
    assert "1,000th continuation" in str(error)
    assert not error.definite


@pytest.mark.parametrize("name", ["descend_by_continuing", "descend_on_the_loop"])
def test_chain_is_as_long_as_it_likes_and_forks_nobody(client: cb.Client, name: str) -> None:
    executors = len(client.status()["executors"])
    assert client.call(name, 200) == 200
    assert client.spawn(name, 200).result(timeout=30) == 200
    assert list(client.map(name, [3] * 20)) == [3] * 20
    assert len(client.status()["executors"]) <= executors


def test_result_key_output_and_references_are_the_whole_calls(client: cb.Client) -> None:
    client.put("test/continued", 6)
    future = client.options(key="test/continued/out").spawn("then", "then", "square", cb.Ref("test/continued"))
    assert future.result(timeout=20) == 36
    assert client.get("test/continued/out") == 36
    assert future.logs() == "then then\nthen square\n"
    assert future.attempts == 3
    assert client.call("pass_future", 3) == 81
    data = os.urandom(2_000_000)
    assert client.call("then", "echo", data) == ((data,), {})


def test_call_is_continued_with_every_kind_of_function(client: cb.Client) -> None:
    client.register(os.getpid, name="continued_home", replicas=1)
    home = client.call("continued_home")
    assert {client.call("then", "continued_home") for _ in range(4)} == {home}
    assert {client.spawn("then", "continued_home").result(timeout=20) for _ in range(4)} == {home}
    assert client.call("then", "later", 4) == 5
    assert client.call("then", "continue_in_list", 5) == 25
    assert client.call("then", "Tally") >= 0
    assert list(client.map("continue_in_list", range(9))) == [n * n for n in range(9)]


def test_last_step_of_a_dag_may_continue_and_no_other(client: cb.Client) -> None:
    functions = {"a": "echo", "b": "echo", "c": "then_square"}
    client.register(lambda *_: cb.Continue("square", 7), name="then_square")
    client.dag("continued_dag", {"a": [], "b": [], "c": ["a", "b"]}, functions=functions)
    assert client.options(key="test/continued/dag").call("continued_dag", {}) == 49
    assert client.get("test/continued/dag") == 49
    client.dag("continued_chain", {"a": [], "c": ["a"]}, functions={"a": "echo", "c": "then_square"})
    assert client.call("continued_chain", {}) == 49
    wrong = {"a": "then_square", "b": "echo", "c": "echo"}
    client.dag("continued_early", {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}, functions=wrong | {"d": "echo"})
    with pytest.raises(cb.RequestError, match="only the last step of a dag can"):
        client.call("continued_early", {})


def test_cancelled_call_stops_in_the_function_that_it_has_come_to(client: cb.Client, post: Post) -> None:
    future = client.spawn("then", "then", "hold", post.address)
    assert post.wait()[0] == "begun"
    assert future.cancel()
    assert post.wait()[0] == "stopped"


def test_deadline_is_the_first_calls(client: cb.Client, post: Post) -> None:
    with pytest.raises(cb.FunctionTimeout):
        client.options(timeout=0.3).call("then", "hold", post.address)
    assert [post.wait()[0], post.wait()[0]] == ["begun", "stopped"]


def test_continuation_of_a_waiting_call_does_not_hold_an_executor(client: cb.Client, post: Post) -> None:
    with every_executor_held(client, post):
        future = client.spawn("then", "square", 5)
    assert future.result(timeout=20) == 25


def test_what_cannot_follow_is_said(client: cb.Client) -> None:
    with pytest.raises(cb.FunctionNotFound, match="no function is registered as 'nowhere'") as caught:
        client.call("then", "nowhere")
    assert not caught.value.definite
    with pytest.raises(cb.RequestError, match="a call with an id has its result at once"):
        client.options(id="continued-once").call("then", "square", 2)
    client.dag("continued_with", {"a": []}, functions={"a": "square"})
    with pytest.raises(cb.RequestError, match="'continued_with' is a dag; a call is continued with a function"):
        client.call("then", "continued_with", {})


def test_continuation_reads_as_the_call_that_it_is() -> None:
    assert repr(cb.Continue("f", 1, x="a")) == "Continue('f', 1, x='a')"


