"""A real node whose executors come when calls wait and go when they are idle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloudburst as cb
from cloudburst import local
from cloudburst.client import Client
from cloudburst.membership import Membership
from cloudburst.shape import Shape
from tests.cloudburst import samples
from tests.cloudburst.conftest import WAIT_S, Post, release
from tests.cloudburst.test_lifecycle import all_gone


@pytest.fixture
def scaled(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of a node with from none to four executors, whose idleness is a second."""
    monkeypatch.setenv("CLOUDBURST_DIR", str(directory / "node"))
    monkeypatch.setenv("ANNA_DIR", str(directory / "store"))
    client = Client(lambda: Membership(local.ensure(least=0, most=4, idle_s=1.0)))
    yield client
    client.close()
    all_gone(directory)


def wait_for(client: Client, count: int) -> None:
    end = time.monotonic() + WAIT_S
    while len(client.status()["executors"]) != count:
        assert time.monotonic() < end, client.status()["executors"]
        time.sleep(0.02)


def test_executors_come_for_calls_and_go_with_them_down_to_none(scaled: Client, directory: Path, post: Post) -> None:
    assert scaled.status()["executors"] == []
    for function in (samples.square, samples.hold_until_told):
        scaled.register(function)
    assert scaled.status()["executors"] == [], "to register takes none"
    assert scaled.call("square", 3) == 9
    owns = [str(directory / f"own-{n}") for n in range(12)]
    futures = [scaled.options(retries=0).spawn("hold_until_told", post.address, own) for own in owns]
    pids = {post.wait()[1] for _ in range(4)}
    assert len(pids) == 4, "calls that wait have brought four executors"
    wait_for(scaled, 4)
    while owns:
        begun = [own for own in owns if Path(own).exists()]
        for own in begun:
            release(own, "done")
            owns.remove(own)
        if not begun:
            post.wait()
    assert [future.result(timeout=WAIT_S) for future in futures] == ["done"] * 12
    wait_for(scaled, 0)
    assert scaled.call("square", 4) == 16
    assert scaled.spawn("square", 5).result(timeout=WAIT_S) == 25


def test_a_dag_brings_the_first_executor_too(scaled: Client) -> None:
    scaled.register(samples.square)
    scaled.register(lambda a, b: a + b, name="sum of both")
    steps = {"left": [], "right": [], "sum of both": ["left", "right"]}
    scaled.dag("squares", steps, functions={"left": "square", "right": "square"})
    assert scaled.call("squares", {"left": (3,), "right": (4,)}) == 25
    assert scaled.spawn("square", 5).result(timeout=WAIT_S) == 25


def test_an_executor_that_is_to_go_finishes_what_it_runs(scaled: Client, directory: Path, post: Post) -> None:
    """The load ends but for one long call: others go, perhaps the one that runs it; it is not stopped or repeated."""
    for function in (samples.snooze, samples.hold_until_told):
        scaled.register(function)
    own = str(directory / "own")
    short = [scaled.spawn("snooze", 0.3) for _ in range(40)]
    wait_for(scaled, 4)
    long = scaled.options(retries=0).spawn("hold_until_told", post.address, own)
    post.wait()
    for future in short:
        assert future.result(timeout=WAIT_S) == 0.3
    end = time.monotonic() + WAIT_S
    while len(scaled.status()["executors"]) == 4:
        assert time.monotonic() < end
        time.sleep(0.02)
    release(own, "done")
    assert long.result(timeout=WAIT_S) == "done"
    assert long.attempts == 1


@pytest.mark.parametrize(
    ("asked", "begins", "least", "most"),
    [
        ({"least": 0, "most": 8}, 0, 0, 8), ({"least": 2}, 2, 2, None), ({"most": 8}, 1, 1, 8),
        ({"executors": 3, "least": 1, "most": 8}, 3, 1, 8), ({"executors": 30, "least": 1, "most": 8}, 8, 1, 8),
    ],
)  # fmt: skip
def test_one_bound_is_enough(asked: dict[str, int], begins: int, least: int, most: int | None) -> None:
    shape = Shape.of(asked.pop("executors", None), **asked)
    assert (shape.executors, shape.least) == (begins, least)
    assert shape.most == most or most is None
    assert Shape.unpack(shape.pack()) == shape


@pytest.mark.parametrize("asked", [{"least": 3, "most": 2}, {"least": -1}, {"most": 0}, {"most": 1000}])
def test_bounds_that_make_no_sense_are_refused(asked: dict[str, int]) -> None:
    with pytest.raises(cb.RequestError, match="executors"):
        Shape.of(None, **asked)
