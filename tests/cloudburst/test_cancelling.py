"""Cancelling stops the work, wherever it has got to: children of a call, maps, graphs, interrupted programs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import cloudburst as cb
from cloudburst.attempts import Task
from cloudburst.dispatch import Dispatcher
from tests.cloudburst.conftest import Post, release
from tests.cloudburst.samples import hold, tell


def hold_with_children(address: str, count: int) -> None:
    """Spawn calls that do not end, and do not wait for them."""
    children = [cb.spawn("hold", address) for _ in range(count)]
    hold(address)
    del children


async def wait_with_children(address: str) -> None:
    children = [cb.spawn("hold", address)]
    tell(address, "begun")
    try:
        await asyncio.sleep(3600)
    finally:
        tell(address, "stopped")
        del children


async def await_child(address: str) -> None:
    await cb.spawn("hold", address)


def hold_in_a_dag(address: str) -> None:
    cb.call("held_dag", {"a": (address,), "b": (address,)})


def leave_a_child(address: str, own: str) -> str:
    return cb.spawn("hold_until_told", address, own).id


def hold_but_the_first(n: int, address: str) -> int:
    if n:
        hold(address)
    return n


@pytest.fixture(scope="module", autouse=True)
def registered(node: cb.Client) -> None:
    for one in (hold_with_children, wait_with_children, await_child, hold_in_a_dag, leave_a_child, hold_but_the_first):
        node.register(one)
    node.dag("held_dag", {"a": [], "b": [], "c": ["a", "b"]}, functions={"a": "hold", "b": "hold", "c": "echo"})


def words(post: Post, count: int) -> list[str]:
    return [post.wait()[0] for _ in range(count)]


@pytest.mark.parametrize("name", ["hold_with_children", "wait_with_children"])
def test_children_of_a_cancelled_call_stop_though_nobody_waits_for_them(
    client: cb.Client, post: Post, name: str
) -> None:
    future = client.spawn(name, post.address, *((1,) if name == "hold_with_children" else ()))
    assert words(post, 2) == ["begun"] * 2
    assert future.cancel()
    assert words(post, 2) == ["stopped"] * 2


def test_children_stop_when_the_calls_deadline_has_passed(client: cb.Client, post: Post) -> None:
    future = client.options(timeout=1.0).spawn("hold_with_children", post.address, 1)
    assert words(post, 2) == ["begun"] * 2
    with pytest.raises(cb.FunctionTimeout):
        future.result(timeout=20)
    assert words(post, 2) == ["stopped"] * 2


def test_children_of_children_stop(client: cb.Client, post: Post) -> None:
    client.register(lambda address: cb.call("hold_with_children", address, 1), name="grandparent")
    future = client.spawn("grandparent", post.address)
    assert words(post, 2) == ["begun"] * 2
    assert future.cancel()
    assert words(post, 2) == ["stopped"] * 2


def test_child_of_a_call_that_has_returned_goes_on(client: cb.Client, post: Post, directory: Path) -> None:
    own = str(directory / "own")
    assert len(client.call("leave_a_child", post.address, own)) == 32
    assert post.wait()[0] == "begun"
    assert "hold_until_told" in {row.get("function") for row in client.status()["executors"]}
    release(own, "enough")


def test_call_that_a_coroutine_awaits_stops_with_it(client: cb.Client, post: Post) -> None:
    future = client.spawn("await_child", post.address)
    assert post.wait()[0] == "begun"
    assert future.cancel()
    assert post.wait()[0] == "stopped"


def test_dag_that_a_function_waits_for_stops_with_it(client: cb.Client, post: Post) -> None:
    future = client.spawn("hold_in_a_dag", post.address)
    assert words(post, 2) == ["begun"] * 2
    assert future.cancel()
    assert words(post, 2) == ["stopped"] * 2


def test_map_that_is_left_stops_what_is_under_way(client: cb.Client, post: Post) -> None:
    found = client.map("hold_but_the_first", range(3), [post.address] * 3)
    assert next(found) == 0
    assert words(post, 2) == ["begun"] * 2
    found.close()  # type: ignore[attr-defined]
    assert words(post, 2) == ["stopped"] * 2


CALLS = {
    "call": 'cb.call("hold", address)',
    "hedged": 'cb.options(hedge=60).call("hold", address)',
    "dag": 'cb.call("held_dag", {"a": (address,), "b": (address,)})',
    "map": 'list(cb.map("hold", [address]))',
    "deferred": 'cb.call("hold", cb.spawn("echo_one", address))',
    "gather": 'cb.call("await_child", address)',
}


SLOW = """
        import time
        def dwell(frame, event, argument):
            if event == "return" and frame.f_code.co_name == "_send_what_fits":
                time.sleep(1)
        sys.setprofile(dwell)
"""
"""The main thread stays in `submit` after a call has been sent, where it often is when executors are faster than it."""


@pytest.mark.parametrize("how", [*sorted(CALLS), "deferred, sending", "hedged, sending", "dag, sending"])
def test_interrupted_program_stops_what_it_waits_for_and_lives_on(
    client: cb.Client, post: Post, directory: Path, how: str
) -> None:
    how, _, sending = how.partition(", ")
    client.register(lambda x: x, name="echo_one")
    script = directory / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        import cloudburst as cb
        address = {post.address!r}
        cb.connect()
        {SLOW.strip() if sending else ""}
        try:
            {CALLS[how]}
        except KeyboardInterrupt:
            sys.setprofile(None)
            print("interrupted", flush=True)
        sys.stdin.read()
        """)
    )
    program = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        count = 2 if how == "dag" else 1
        assert words(post, count) == ["begun"] * count
        os.kill(program.pid, signal.SIGINT)
        assert program.stdout.readline() == "interrupted\n"
        assert words(post, count) == ["stopped"] * count
        assert program.poll() is None, "it was not its end that stopped them"
    finally:
        program.stdin.close()
        program.wait(20)
        program.stdout.close()


def test_call_that_is_cancelled_before_it_is_submitted_is_not_counted() -> None:
    core = Dispatcher()
    task = Task(9, 1, "f", b"f", b"", 0, b"", 1000, None)
    core.finished(task)
    core.submit(task)
    assert len(core) == 0
    assert core.waiting == 0


def threads_while_it_runs() -> list[str]:
    time.sleep(0.2)  # long enough that the attendant looks after the lanes meanwhile
    return [thread.name for thread in threading.enumerate()]


def test_the_attendant_survives_a_call_whose_deadline_is_in_a_month(client: cb.Client) -> None:
    """It ended with an OverflowError: poll() takes no more than 2**31 milliseconds."""
    client.register(threads_while_it_runs)
    for _ in range(3):
        assert "attendant" in client.options(timeout=30 * 86_400.0).call("threads_while_it_runs")
