"""How sessions end that do not end well: their epoch is lost, they are stopped, their executor dies."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

import cloudburst as cb
from cloudburst import context, frames, local, pickling
from cloudburst.attempts import Task
from cloudburst.client import Client
from cloudburst.consistency.levels import CAUSAL
from cloudburst.consistency.session import Snapshot
from cloudburst.membership import Membership
from cloudburst.page import monotonic_us
from cloudburst.sessions import Alone
from tests.cloudburst.conftest import WAIT_S, Post
from tests.cloudburst.samples import hold, tell


def lose_epoch(key: str) -> None:
    """Have the session of this call find that what it reads at is not known any more; make nothing of it."""
    session = context.session()
    session.begin()
    session.shared = True
    session.state.snapshot = Snapshot(5, 5)
    try:
        session.get(key, None)
    except cb.SnapshotExpired:
        return
    raise AssertionError("an epoch that never was is readable")


def lose_and_hold(key: str, address: str) -> None:
    lose_epoch(key)
    hold(address)


def lose_and_hog(key: str) -> None:
    """Let no other thread of this process run until a signal comes."""
    lose_epoch(key)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        while True:
            pass
    finally:
        sys.setswitchinterval(before)


async def lose_and_wait(key: str, address: str) -> None:
    await asyncio.to_thread(lose_epoch, key)
    tell(address, "begun")
    try:
        await asyncio.sleep(3600)
    finally:
        tell(address, "stopped")


def lose_once(key: str, marker: str, how: str) -> Any:
    """Lose the epoch the first time, and end as if nothing had been."""
    path = Path(marker)
    if path.exists():
        return "at another"
    path.touch()
    lose_epoch(key)
    if how == "raise":
        raise ValueError("made of it")
    return cb.Continue("given_back", "made of it") if how == "continue" else "made of it"


def given_back(value: Any) -> Any:
    return value


def both(left: Any, right: Any) -> list[Any]:
    return [left, right]


FUNCTIONS = (lose_and_hold, lose_and_hog, lose_and_wait, lose_once, given_back, both)
_keys = iter(range(1_000_000))


@pytest.fixture(scope="module")
def node(home: object) -> Iterator[Client]:
    client = Client(lambda: Membership(local.ensure(executors=2)))  # the default client stays what it was
    for function in FUNCTIONS:
        client.register(function)
    functions = {"lost": "lose_once", "left": "given_back", "right": "given_back", "end": "both"}
    client.dag("lost and given", {"lost": [], "left": ["lost"], "right": ["lost"], "end": ["left", "right"]},
               functions=functions)  # fmt: skip
    yield client
    client.close()


@pytest.fixture
def key() -> str:
    return f"ending {next(_keys)}"


class Caller:
    """A client that speaks to one executor itself, and so hears what that answers to calls that nobody waits for."""

    def __init__(self, client: Client, name: str, args: tuple[Any, ...], timeout_s: float) -> None:
        membership = client._joined()
        session = Alone(membership, CAUSAL, apart=False).context()
        self._task = Task(
            membership.client, next(membership.numbers), name, name.encode(), pickling.dumps((args, {})), 0,
            msgpack.packb({"session": session}), monotonic_us() + int(timeout_s * 1e6), None,
        )  # fmt: skip
        self._lane = membership.lane(0)
        self._lane._socket.settimeout(WAIT_S)
        self._lane._socket.sendall(self._task.frame(monotonic_us()))

    def cancel(self) -> None:
        self._lane._socket.sendall(frames.cancel(self._task.request))

    def fault(self) -> cb.CloudburstError:
        """Return the error that the executor answers with."""
        reply = self._lane._socket.recv(1 << 16)
        _, status, _, _, _, _, output_bytes = frames.REPLY_HEADER.unpack_from(reply)
        assert status == frames.ERROR
        self._lane.close()
        return frames.fault_of(memoryview(reply)[frames.REPLY_HEADER_BYTES + output_bytes :])


@pytest.mark.parametrize("name", ["lose_and_hold", "lose_and_wait"])
def test_a_call_that_is_cancelled_after_its_epoch_was_lost_is_answered_as_cancelled(
    node: Client, key: str, post: Post, name: str
) -> None:
    """The interrupt was taken for what the function makes of the loss: its caller was told to begin it again."""
    caller = Caller(node, name, (key, post.address), 60)
    assert post.wait()[0] == "begun"
    caller.cancel()
    assert post.wait()[0] == "stopped"
    assert isinstance(caller.fault(), cb.Cancelled)


def test_a_call_that_is_late_after_its_epoch_was_lost_is_answered_as_late(node: Client, key: str) -> None:
    """As above; its executor's other threads, which answer for it at its deadline, cannot while it holds the GIL."""
    assert isinstance(Caller(node, "lose_and_hog", (key,), 0.3).fault(), cb.FunctionTimeout)


@pytest.mark.parametrize("how", ["return", "raise", "continue"])
def test_what_a_function_makes_of_a_lost_epoch_is_never_answered(
    node: Client, key: str, tmp_path: Path, how: str
) -> None:
    assert node.options(session="causal").call("lose_once", key, str(tmp_path / "lost"), how) == "at another"


@pytest.mark.parametrize("how", ["return", "raise"])
def test_what_a_step_makes_of_a_lost_epoch_is_not_handed_on(
    node: Client, key: str, tmp_path: Path, how: str
) -> None:
    graph = node.options(session="causal").spawn("lost and given", {"lost": (key, str(tmp_path / "lost"), how)})
    assert graph.result() == ["at another", "at another"]
    assert graph.attempts == 2
