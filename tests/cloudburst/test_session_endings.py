"""How sessions end that do not end well: their epoch is lost, they are stopped, their executor dies."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

import cloudburst as cb
from anna.errors import LatticeTypeMismatch
from anna.errors import SnapshotExpired as Expired
from anna.errors import UnavailableError as Unavailable
from anna.lattices import Counter, Set
from cloudburst import context, frames, pickling
from cloudburst.attempts import Task
from cloudburst.client import Client
from cloudburst.consistency import travel
from cloudburst.consistency.levels import CAUSAL, READ_ATOMIC, Level
from cloudburst.consistency.session import Session as State
from cloudburst.consistency.session import Snapshot
from cloudburst.page import monotonic_us
from cloudburst.sessions import Alone
from tests.cloudburst.conftest import WAIT_S, Post, release
from tests.cloudburst.samples import hold, tell
from tests.cloudburst.session_samples import after_a_while, at_every_level, branches, node_with_functions, soon


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
    with node_with_functions() as client:
        for function in FUNCTIONS:
            client.register(function)
        functions = {"lost": "lose_once", "left": "given_back", "right": "given_back", "end": "both"}
        graph = {"lost": [], "left": ["lost"], "right": ["lost"], "end": ["left", "right"]}
        client.dag("lost and given", graph, functions=functions)
        yield client


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


@pytest.mark.parametrize("level", [CAUSAL, READ_ATOMIC], ids=lambda level: level.name)
def test_what_was_lost_at_an_epoch_is_begun_again_at_a_later_one(node: Client, level: Level) -> None:
    """It was given the same one while no other was stable, and failed when its attempts were used up, in no time."""
    membership = node._joined()
    session = Alone(membership, level, apart=False)
    now = membership.store().pin().epoch
    again = travel.unpack(session.renewed((now + 1, 0)) or b"", 0)
    assert (again.snapshot.epoch, again.begun) == (now + 1, False)
    chosen = travel.unpack(Alone(membership, level, apart=True).renewed((now + 3, 0)) or b"", 0)
    assert (chosen.snapshot.epoch >= now + 3, chosen.begun) == (True, True)
    named = travel.unpack(session.renewed((now, 7)) or b"", 0)
    assert (named.snapshot, named.begun) == (Snapshot(now, 7), True)


def test_a_session_that_has_lost_its_epoch_says_where_it_can_be_begun_again(node: Client, key: str) -> None:
    session = node.session("causal")
    session.__enter__()
    session.get(key, None)
    now = session._now()
    now.state.snapshot = Snapshot(5, 5)
    with pytest.raises(cb.SnapshotExpired) as lost:
        session.get(f"{key} other", None)
    assert (lost.value.epoch, lost.value.view) == (6, 0)
    session.abort()


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


# -- long ones, and those that lose their epoch


def write_until_forgotten(client: Client, key: str, snapshot: Snapshot) -> None:
    """Write a key until the epoch after this one, which nobody has pinned, is not kept any more."""
    store, after = client._joined().store(), Snapshot(snapshot.epoch + 1, snapshot.view)
    for number in range(100_000):
        client.put(key, number)
        try:
            store.get_at(f"{key} {number}", after, None)  # another one each time: what a cache knows, it knows for long
        except Expired:
            return
        except Unavailable:
            time.sleep(0.005)  # it is not stable yet
    raise AssertionError("an epoch is kept though nobody reads at it")


@at_every_level
def test_a_session_that_is_open_for_long_keeps_its_epoch(
    node: Client, key: str, post: Post, directory: Path, level: str
) -> None:
    """The runtime pins it: what is beside it, and is not pinned, is not told apart any more."""
    node.put(key, "first")
    after_a_while(node, level, lambda session: session.get(key, None), "first")
    with node.session(level) as session:
        assert session.get(key) == "first"
        running = session.spawn("outlive", key, post.address, str(directory / "own"))
        assert post.wait()[0] == "begun"
        write_until_forgotten(node, key, session._now().state.snapshot)
        assert session.get(key) == "first"
        release(str(directory / "own"), "go")
        assert running.result() == ("first", "first")


@at_every_level
def test_a_call_whose_session_has_lost_its_epoch_is_begun_again_where_it_can_be(
    node: Client, key: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt is lost, and not the call, unless its session has been read elsewhere already."""
    begun: list[int] = []
    pack = travel.pack

    def lose_first(state: State) -> bytes:
        begun.append(state.snapshot.epoch)
        if len(begun) == 1:
            state.snapshot, state.begun = Snapshot(5, 5), True
        return pack(state)

    monkeypatch.setattr(travel, "pack", lose_first)
    assert node.options(session=level).call("add", key, 1) == 1
    assert len(begun) == 2
    begun.clear()
    graph = node.options(session=level).spawn("diamond", branches(f"{key} graph"))
    assert graph.result()[2] == [None, "L", "R"]
    assert graph.attempts == 2
    monkeypatch.undo()
    session = node.session(level)
    session.__enter__()
    assert session.get(key, None) in (None, 1)
    now = session._now()
    now.state.snapshot = Snapshot(now.state.snapshot.epoch - 10_000, now.state.snapshot.view)
    session.put(f"{key} lost", 1)
    for wrong in (lambda: session.call("read_all", key), lambda: session.__exit__(None, None, None)):
        with pytest.raises(cb.SnapshotExpired):
            wrong()
    assert node.get(f"{key} lost", None) is None


@at_every_level
def test_a_session_that_has_read_nothing_yet_begins_again_by_itself(node: Client, key: str, level: str) -> None:
    with node.session(level) as session:
        session.put(key, 1)
        now = session._now()
        at = now.begin()
        now.state.snapshot = Snapshot(at.epoch - 10_000, at.view)
        assert session.mget([key, f"{key} none"]) == [1, None]


# -- commits


def test_a_commit_that_is_asked_for_again_has_one_effect(node: Client, key: str) -> None:
    with node.session("read-atomic") as session:
        session.put(key, Counter(+5))
        now = session._now()
        request = now.state.buffered[key.encode()].requests()[1]
    for _ in range(3):
        node._joined().store(system=True).commit({key: request}, id=now.identity)
    soon(node, [key], [5])


def test_a_call_whose_executor_dies_after_its_commit_has_one_effect(
    node: Client, key: str, tmp_path: Path
) -> None:
    """The second attempt commits under the same id; it answers as if it had been the first, whatever it has read."""
    assert node.options(session="causal").call("count_and_die", key, str(tmp_path / "died")) == 5
    assert (tmp_path / "died").exists()
    soon(node, [key], [5])


def test_a_session_whose_commit_is_refused_has_written_nothing(node: Client, key: str) -> None:
    session = node.session("read-atomic")
    session.__enter__()
    session.mput({key: 1, f"{key} set": 2})
    node.put(f"{key} set", Set({"another type"}))
    with pytest.raises(LatticeTypeMismatch):
        session.__exit__(None, None, None)
    assert node.mget([key, f"{key} set"]) == [None, {"another type"}]
