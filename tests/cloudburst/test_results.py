"""Results that others can have: futures as arguments, in values, in other programs; and calls that are run once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb
from cloudburst import config, frames
from cloudburst.publishing import RemoteFuture
from cloudburst.results import Kept, result_key
from tests.anna.local.processes import eventually
from tests.cloudburst.conftest import Post, release
from tests.cloudburst.samples import append_to


def test_a_future_among_the_arguments_is_its_result(client: cb.Client) -> None:
    nine = client.spawn("square", 3)
    assert client.spawn("square", nine).result(timeout=20) == 81
    assert client.call("square", nine) == 81
    found = client.call("echo", [nine, {"again": nine}], other=client.spawn("square", 2))
    assert found == (([9, {"again": 9}],), {"other": 4})


def test_a_long_chain_of_futures_keeps_no_executor_waiting(client: cb.Client) -> None:
    client.register(lambda x: x + 1, name="plus")
    future = client.spawn("plus", 0)
    for _ in range(50):
        future = client.spawn("plus", future)
    assert future.result(timeout=60) == 51


def test_a_failure_becomes_the_dependent_calls_own_and_that_is_not_begun(client: cb.Client, directory: Path) -> None:
    client.register(append_to, name="append_to")
    failed = client.spawn("fail", "ValueError")
    dependent = client.spawn("append_to", str(directory / "ran"), failed)
    with pytest.raises(ValueError, match="bad") as caught:
        dependent.result(timeout=20)
    assert isinstance(caught.value, cb.FunctionError)
    assert not (directory / "ran").exists()


def test_what_waits_for_a_result_ends_by_its_own_deadline(client: cb.Client, post: Post) -> None:
    held = client.spawn("hold", post.address)
    assert post.wait()[0] == "begun"
    with pytest.raises(cb.FunctionTimeout, match="it waits for a result") as caught:
        client.options(timeout=0.1).spawn("square", held).result(timeout=20)
    assert caught.value.definite
    held.cancel()
    assert post.wait()[0] == "stopped"


def test_what_waits_for_a_result_can_be_cancelled(client: cb.Client, post: Post) -> None:
    held = client.spawn("hold", post.address)
    assert post.wait()[0] == "begun"
    waiting = client.spawn("square", held)
    assert waiting.cancel()
    assert not held.done()
    held.cancel()
    assert post.wait()[0] == "stopped"
    assert client.spawn("square", held).exception(timeout=20) is not None


def test_futures_are_arguments_of_dags_too(client: cb.Client) -> None:
    client.register(lambda x: x, name="same")
    client.register(lambda a, b: a + b, name="both")
    client.dag("adds", {"a": [], "b": [], "both": ["a", "b"]}, functions={"a": "same", "b": "same"})
    nine = client.spawn("square", 3)
    assert client.call("adds", {"a": (nine,), "b": (client.spawn("square", 4),)}) == 25
    client.dag("line", {"same": []})
    assert client.call("line", {"same": (nine,)}) == 9


def test_a_function_may_return_futures(client: cb.Client) -> None:
    client.register(lambda n: [cb.spawn("square", x) for x in range(n)], name="spawning")
    found = client.call("spawning", 5)
    assert all(isinstance(one, RemoteFuture) for one in found)
    assert [one.result(timeout=20) for one in found] == [0, 1, 4, 9, 16]
    assert client.call("echo", found)[0][0] == [0, 1, 4, 9, 16]


def test_a_future_in_the_store_is_waited_for_by_another_program(client: cb.Client, post: Post, directory: Path) -> None:
    own = str(directory / "own")
    future = client.spawn("hold_until_told", post.address, own)
    assert post.wait()[0] == "begun"
    client.put("a-future", future)
    program = "import cloudburst as cb; f = cb.get('a-future'); print(f.done(), flush=True); print(f.result(30))"
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    assert other.stdout is not None
    assert other.stdout.readline() == "False\n"
    release(own, "told")
    assert other.communicate(timeout=60)[0] == "told\n"


def test_a_remote_future_raises_what_the_call_raised(client: cb.Client) -> None:
    client.register(lambda: cb.spawn("fail", "ValueError"), name="spawning-failure")
    future = client.call("spawning-failure")
    with pytest.raises(ValueError, match="bad"):
        future.result(timeout=20)
    assert isinstance(future.exception(timeout=20), cb.FunctionError)
    assert future.done()


def test_a_call_with_an_id_is_run_once_and_all_who_ask_get_its_result(client: cb.Client, directory: Path) -> None:
    """P21: the same id within ten minutes returns the first result without running."""
    client.register(append_to, name="append_to")
    path = str(directory / "ran")
    once = client.options(id="order-17")
    assert [once.call("append_to", path, "x") for _ in range(3)] == [1, 1, 1]
    futures = [client.options(id="order-18").spawn("append_to", path, "y") for _ in range(20)]
    assert {future.result(timeout=60) for future in futures} == {2}
    assert client.options(id="order-19").call("append_to", path, "z") == 3
    assert client.options(id="order-17").call("square", 5) == 25


def test_none_is_remembered_and_an_exception_is_not(client: cb.Client, directory: Path) -> None:
    def fail_first(path: str) -> None:
        if append_to(path, "x") == 1:
            raise ValueError("first")

    client.register(fail_first, name="fail_first")
    path = str(directory / "ran")
    once = client.options(id="order-20")
    with pytest.raises(ValueError, match="first"):
        once.call("fail_first", path)
    assert once.call("fail_first", path) is None
    assert once.call("fail_first", path) is None
    assert append_to(path, "") == 3


def test_an_attempt_whose_executor_dies_is_repeated_by_its_own_caller(client: cb.Client, directory: Path) -> None:
    def die_first(path: str) -> int:
        count = append_to(path, "x")
        if count == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    client.register(die_first, name="die_first")
    assert client.options(id="order-21").call("die_first", str(directory / "ran")) == 2


def test_whoever_comes_while_it_runs_waits_by_its_own_deadline(client: cb.Client, post: Post, directory: Path) -> None:
    own = str(directory / "own")
    first = client.options(id="order-22").spawn("hold_until_told", post.address, own)
    assert post.wait()[0] == "begun"
    with pytest.raises(cb.FunctionTimeout):
        client.options(id="order-22", timeout=0.1).call("hold_until_told", post.address, own)
    second = client.options(id="order-22").spawn("hold_until_told", post.address, own)
    release(own, "told")
    assert (first.result(timeout=20), second.result(timeout=20)) == ("told", "told")


def test_kept_results_and_claims_end_by_themselves(client: cb.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "RESULT_KEEP_S", 0.05)
    monkeypatch.setattr(config, "KILL_GRACE_US", 0)
    results = client.results()
    results.keep(result_key("kept"), Kept(frames.OK, 0, b"x"))
    assert results.claim(result_key("claimed"), b"me", lambda: 0.05) is None
    for key in ("kept", "claimed"):
        eventually(lambda key=key: results.find(result_key(key)) is None, f"what is {key} ends")


def test_a_claim_is_its_claimants_and_nobody_elses(client: cb.Client) -> None:
    results, key = client.results(), result_key("contested")
    assert results.claim(key, b"one", lambda: 5.0) is None
    assert results.claim(key, b"one", lambda: 5.0) is None
    with pytest.raises(TimeoutError):
        results.claim(key, b"two", iter([0.01, 0.0]).__next__)
    results.release(key)
    assert results.claim(key, b"two", lambda: 5.0) is None
    results.keep(key, Kept(frames.OK, 0, b"x"))
    assert results.claim(key, b"one", lambda: 5.0) == Kept(frames.OK, 0, b"x")


def test_an_id_is_for_functions(client: cb.Client) -> None:
    client.dag("single", {"square": []})
    with pytest.raises(cb.RequestError, match="'single' is a dag; an id is for a function"):
        client.options(id="x").call("single", {"square": (1,)})


def test_asyncio_futures_are_arguments_as_well(client: cb.Client) -> None:
    async def work() -> Any:
        loop_client = cb.aio.AsyncClient(client)
        return await loop_client.call("square", await loop_client.spawn("square", 3))

    assert asyncio.run(work()) == 81


def test_many_calls_share_one_future(client: cb.Client) -> None:
    nine = client.spawn("square", 3)
    assert {client.spawn("square", nine).result(timeout=30) for _ in range(30)} == {81}
