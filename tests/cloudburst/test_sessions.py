"""Sessions on one node: what is read stays, what is written is the session's until it commits, in functions as well."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb
from anna.errors import KeyNotFound, LatticeTypeMismatch
from anna.lattices import Causal, Counter, Map, Max, ORSet, Set
from cloudburst import local
from cloudburst.client import Client
from cloudburst.consistency import levels, travel
from cloudburst.consistency.session import Session as State
from cloudburst.consistency.session import Snapshot
from cloudburst.keeping import keeper
from cloudburst.membership import Membership
from cloudburst.sessions import Session

THERE = [level.name for level in levels.LEVELS if level.at_epoch]


def add(key: str, number: int) -> int:
    import cloudburst

    cloudburst.put(key, cloudburst.get(key, 0) + number)
    return int(cloudburst.get(key))


def add_twice(key: str) -> tuple[int, int, int]:
    import cloudburst

    first = cloudburst.call("add", key, 1)
    second = cloudburst.spawn("add", key, 10).result()
    return first, second, cloudburst.get(key)


def fail_after(key: str, value: Any) -> None:
    import cloudburst

    cloudburst.put(key, value)
    raise ValueError("after all")


async def add_beside(key: str, number: int) -> int:
    import asyncio

    import cloudburst

    found = await asyncio.to_thread(cloudburst.get, key, 0)
    await asyncio.to_thread(cloudburst.put, key, found + number)
    return int(await asyncio.to_thread(cloudburst.get, key))


def count_down(key: str, number: int) -> Any:
    import cloudburst

    cloudburst.put(key, cloudburst.get(key, 0) + 1)
    return cloudburst.Continue("count_down", key, number - 1) if number else cloudburst.get(key)


def read_all(*keys: str) -> list[Any]:
    import cloudburst

    return cloudburst.mget(keys)


def given(value: Any) -> Any:
    return value


def mark(key: str, value: Any, *before: Any) -> Any:
    import cloudburst

    cloudburst.put(key, value)
    return value


def step(before: Any, key: str, value: Any) -> list[Any]:
    import cloudburst

    cloudburst.put(key, value)
    return [*before, value]


def gather_up(left: list[Any], right: list[Any], *keys: str) -> list[Any]:
    import cloudburst

    return [left, right, cloudburst.mget(keys)]


def outlive(key: str, seconds: float) -> tuple[Any, Any]:
    import time

    import cloudburst

    first = cloudburst.get(key)
    time.sleep(seconds)
    return first, cloudburst.get(key)


def open_inside() -> None:
    import cloudburst

    with cloudburst.session("repeatable"):
        pass


def count_and_die(key: str, died: str) -> int:
    """Count, and have the executor end when that is committed, the first time."""
    import os
    import time

    import cloudburst
    from anna.lattices import Counter
    from cloudburst.executor.sessions import Held

    def end_and_die(held: Held) -> None:
        end(held)
        os._exit(1)

    cloudburst.put(key, Counter(+5))
    if os.path.exists(died):
        time.sleep(0.05)  # until there is an epoch that has what the first attempt wrote
    else:
        with open(died, "w"):
            pass
        end, Held.end = Held.end, end_and_die  # type: ignore[method-assign]
    return int(cloudburst.get(key))


FUNCTIONS = (
    count_and_die, add, add_twice, fail_after, add_beside, count_down, read_all, given, mark, step, gather_up, outlive,
    open_inside,
)  # fmt: skip
_keys = iter(range(1_000_000))


@pytest.fixture(scope="module")
def node(home: object) -> Iterator[cb.Client]:
    client = Client(lambda: Membership(local.ensure(executors=2)))  # the default client stays what it was
    for function in FUNCTIONS:
        client.register(function)
    source = {"start": [], "left": ["start"], "right": ["start"], "end": ["left", "right"]}
    functions = {"start": "given", "left": "step", "right": "step", "end": "gather_up"}
    client.dag("diamond", source, functions=functions)
    client.dag("two sources", {"one": [], "two": [], "end": ["one", "two"]}, functions=functions_of("mark"))
    yield client
    client.close()


def functions_of(name: str) -> dict[str, str]:
    return {"one": name, "two": name, "end": "gather_up"}


def leave_with(session: Session, key: str) -> None:
    with session:
        session.put(key, 1)
        session.call("add", key, 1)
        raise ZeroDivisionError


@pytest.fixture
def key() -> str:
    return f"key {next(_keys)}"


at_every_level = pytest.mark.parametrize("level", THERE)


def after_a_while(client: cb.Client, level: str, read: Any, expected: Any) -> None:
    """Wait until a session's epoch has what was committed before, and compare."""
    end = time.monotonic() + 10
    while True:
        with client.session(level) as session:
            found = read(session)
        if found == expected or time.monotonic() > end:
            assert found == expected
            return
        time.sleep(0.005)


def soon(client: cb.Client, keys: list[str], expected: list[Any]) -> None:
    """Wait until plain reads, which are of what the node's cache has, show what was committed; compare."""
    end = time.monotonic() + 10
    while (found := client.mget(keys)) != expected and time.monotonic() < end:
        time.sleep(0.002)
    assert found == expected


# -- in a with block


@at_every_level
def test_a_key_that_is_read_again_is_the_same_whoever_writes_meanwhile(node: cb.Client, key: str, level: str) -> None:
    node.put(key, "first")
    after_a_while(node, level, lambda session: session.get(key, None), "first")
    with node.session(level) as session:
        assert session.get(key) == "first"
        assert session.get(f"{key} absent", "none") == "none"
        node.put(key, "second")
        node.put(f"{key} absent", "there")
        time.sleep(0.05)
        assert session.get(key) == "first"
        assert session.mget([key, f"{key} absent"], "none") == ["first", "none"]
        assert session.call("read_all", key, f"{key} absent") == ["first", None]
        with pytest.raises(KeyNotFound):
            session.get(f"{key} absent")
        assert node.get(key) == "second"


@at_every_level
def test_what_a_session_writes_is_its_own_until_it_ends(node: cb.Client, key: str, level: str) -> None:
    with node.session(level) as session:
        session.put(key, 1)
        session.mput({f"{key} set": Set({"a"}), f"{key} other": 1})
        assert session.mget([key, f"{key} set", f"{key} other"]) == [1, {"a"}, 1]
        assert session.get_lattice(f"{key} set") == Set({"a"})
        assert node.mget([key, f"{key} set"]) == [None, None]
    soon(node, [key, f"{key} set", f"{key} other"], [1, {"a"}, 1])


def test_a_key_is_deleted_where_writes_go_out_one_by_one(node: cb.Client, key: str) -> None:
    node.put(key, "before")
    after_a_while(node, "repeatable", lambda session: session.get(key, None), "before")
    with node.session("repeatable") as session:
        assert session.delete(key)
        assert not session.delete(f"{key} never")
        session.put(f"{key} short", 1)
        assert session.delete(f"{key} short")
        assert session.mget([key, f"{key} short"]) == [None, None]
        assert session.call("read_all", key) == [None]
        assert node.get(key) == "before"
    assert node.mget([key, f"{key} short"]) == [None, None]
    with node.session("causal") as session, pytest.raises(cb.NotSupported, match="no part of transactions"):
        session.delete(key)


@at_every_level
def test_every_type_is_read_and_written_in_a_session(node: cb.Client, key: str, level: str) -> None:
    node.put(f"{key} or", ORSet({"old", "kept"}))
    node.put(f"{key} count", Counter(+10))
    after_a_while(node, level, lambda session: session.get(f"{key} count", None), 10)
    with node.session(level) as session:
        session.put(f"{key} or", ORSet({"new", "short"}, remove={"old"}))
        session.put(f"{key} or", ORSet(remove={"short"}))
        session.put(f"{key} count", Counter(+3))
        session.put(f"{key} count", Counter(-1))
        session.put(f"{key} siblings", Causal("first"))
        session.put(f"{key} siblings", session.get_lattice(f"{key} siblings").set("second"))
        session.put(f"{key} map", Map({"most": Max(3), "tags": ORSet({"a"})}))
        names = [f"{key} {kind}" for kind in ("or", "count", "siblings", "map")]
        seen = session.mget(names)
        assert seen == [{"new", "kept"}, 12, ("second",), {"most": 3, "tags": {"a"}}]
        with pytest.raises(LatticeTypeMismatch):
            session.put(f"{key} count", "a register")
    soon(node, names, seen)


@at_every_level
def test_an_exception_or_an_abort_leaves_nothing(node: cb.Client, key: str, level: str) -> None:
    session = node.session(level)
    with pytest.raises(ZeroDivisionError):
        leave_with(session, key)
    with node.session(level) as session:
        session.put(key, 2)
        session.abort()
    with pytest.raises(cb.RequestError, match="before it has ended"):
        session.get(key)
    assert node.get(key, None) is None


def test_an_eventual_session_is_the_store_itself(node: cb.Client, key: str) -> None:
    with node.session("eventual") as session:
        session.put(key, 1)
        assert node.get(key) == 1
        assert session.call("add", key, 1) == 2
        assert (session.get(key), session.mget([key]), session.delete(key)) == (2, [2], True)
    assert node.get(key, None) is None


# -- calls


@at_every_level
def test_functions_read_and_write_in_the_session_that_they_are_called_in(
    node: cb.Client, key: str, level: str
) -> None:
    with node.session(level) as session:
        session.put(key, 1)
        assert session.call("add", key, 5) == 6
        assert session.call("add_twice", key) == (7, 17, 17)
        assert session.call("add_beside", key, 100) == session.get(key) == 117
        assert session.call("count_down", f"{key} down", 4) == 5
        assert session.call("given", cb.Ref(key)) == 117
        assert session.options(key=f"{key} result").call("given", 3) == session.get(f"{key} result") == 3
        assert node.mget([key, f"{key} down", f"{key} result"]) == [None, None, None]
    soon(node, [key, f"{key} down", f"{key} result"], [117, 5, 3])


@at_every_level
def test_spawned_calls_are_a_part_of_the_session_which_waits_for_them(node: cb.Client, key: str, level: str) -> None:
    with node.session(level) as session:
        for number in range(5):
            session.spawn("add", f"{key} {number}", number)
        assert list(session.map("add", [f"{key} map", f"{key} map too"], [1, 2])) == [1, 2]
    soon(node, [f"{key} {number}" for number in range(5)], list(range(5)))


@at_every_level
def test_a_function_that_raises_has_written_nothing_and_the_session_goes_on(
    node: cb.Client, key: str, level: str
) -> None:
    with node.session(level) as session:
        session.put(key, 1)
        with pytest.raises(ValueError, match="after all"):
            session.call("fail_after", key, 2)
        assert session.get(key) == 1
    soon(node, [key], [1])
    with pytest.raises(ValueError, match="after all"):
        node.options(session=level).call("fail_after", key, 3)
    assert node.get(key) == 1
    session = node.session(level)
    session.__enter__()
    session.put(key, 4)
    session.spawn("fail_after", key, 5)
    with pytest.raises(ValueError, match="after all"):
        session.__exit__(None, None, None)
    assert node.get(key) == 1, "a call failed, and nobody asked how it ended"


@at_every_level
def test_a_call_with_a_session_of_its_own_commits_before_it_answers(node: cb.Client, key: str, level: str) -> None:
    assert node.options(session=level).call("add_twice", key) == (1, 11, 11)
    soon(node, [key], [11])
    assert node.options(session=level).spawn("add_beside", f"{key} beside", 1).result() == 1
    assert node.options(session=level, key=f"{key} out").call("count_down", f"{key} down", 3) == 4
    soon(node, [f"{key} beside", f"{key} down", f"{key} out"], [1, 4, 4])


@at_every_level
def test_a_function_can_be_registered_with_a_level(node: cb.Client, key: str, level: str) -> None:
    node.register(add_twice, name="add_twice_in_session", session=level)
    assert node.call("add_twice_in_session", key) == (1, 11, 11)
    with node.session(level) as session:
        session.call("add_twice_in_session", f"{key} inside")
        assert node.get(f"{key} inside", None) is None
    soon(node, [f"{key} inside"], [11])
    with node.session("eventual") as session, pytest.raises(cb.RequestError, match="it is called in one at 'eventual'"):
        session.call("add_twice_in_session", key)


@at_every_level
def test_what_goes_along_with_a_call_is_25_bytes_and_what_the_session_has_written(
    node: cb.Client, key: str, level: str
) -> None:
    before = replace(travel.sent)
    with node.session(level) as session:
        for _ in range(5):
            session.call("read_all", key)
    assert travel.sent.contexts - before.contexts == 5
    assert travel.sent.metadata_bytes - before.metadata_bytes == 5 * 25
    written = travel.sent.written_bytes - before.written_bytes
    assert written == 0 or level == "causal"  # which has its client's last commits with it


# -- graphs


def branches(key: str) -> dict[str, tuple[Any, ...]]:
    return {
        "start": (["start"],), "left": (f"{key} left", "L"), "right": (f"{key} right", "R"),
        "end": (key, f"{key} left", f"{key} right"),
    }  # fmt: skip


@at_every_level
def test_a_graph_runs_in_one_session_whose_branches_come_together(node: cb.Client, key: str, level: str) -> None:
    expected = [["start", "L"], ["start", "R"], ["before", "L", "R"]]
    with node.session(level) as session:
        session.put(key, "before")
        assert session.call("diamond", branches(key)) == expected
        assert session.mget([f"{key} left", f"{key} right"]) == ["L", "R"]
        assert node.get(f"{key} left", None) is None
    soon(node, [f"{key} left", f"{key} right"], ["L", "R"])
    alone = node.options(session=level).call("diamond", branches(f"{key} alone"))
    assert alone == [["start", "L"], ["start", "R"], [None, "L", "R"]]
    soon(node, [f"{key} alone left", f"{key} alone right"], ["L", "R"])


@at_every_level
def test_a_graph_with_several_beginnings_reads_at_one_epoch(node: cb.Client, key: str, level: str) -> None:
    args = {"one": (f"{key} 1", "one"), "two": (f"{key} 2", "two"), "end": (f"{key} 1", f"{key} 2")}
    assert node.options(session=level).call("two sources", args) == ["one", "two", ["one", "two"]]
    soon(node, [f"{key} 1", f"{key} 2"], ["one", "two"])


# -- long ones, and those that lose their epoch


@at_every_level
def test_a_session_that_is_open_for_long_keeps_its_epoch(node: cb.Client, key: str, level: str) -> None:
    """A store tells epochs apart for 0.3 s unless they are pinned: the runtime pins those of open sessions."""
    node.put(key, "first")
    after_a_while(node, level, lambda session: session.get(key, None), "first")
    with node.session(level) as session:
        assert session.get(key) == "first"
        running = session.spawn("outlive", key, 0.6)
        for number in range(30):
            node.put(key, number)
            time.sleep(0.02)
        assert session.get(key) == "first"
        assert running.result() == ("first", "first")


@at_every_level
def test_a_call_whose_session_has_lost_its_epoch_is_begun_again_where_it_can_be(
    node: cb.Client, key: str, level: str, monkeypatch: pytest.MonkeyPatch
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
def test_a_session_that_has_read_nothing_yet_begins_again_by_itself(node: cb.Client, key: str, level: str) -> None:
    with node.session(level) as session:
        session.put(key, 1)
        now = session._now()
        at = now.begin()
        now.state.snapshot = Snapshot(at.epoch - 10_000, at.view)
        assert session.mget([key, f"{key} none"]) == [1, None]


# -- what is refused


def test_what_cannot_be_in_a_session_is_said_at_once(node: cb.Client, key: str) -> None:
    with pytest.raises(cb.RequestError, match="the levels are"):
        node.session("serializable")
    with pytest.raises(cb.RequestError, match="is for a session at 'causal'"):
        node.session("repeatable", token="0" * 56)
    with pytest.raises(cb.RequestError, match="runs once"):
        node.options(session="repeatable", hedge=1)
    with pytest.raises(cb.RequestError, match="a batch runs in no session"):
        node.register(read_all, name="batched", batch=4, session="repeatable")
    with pytest.raises(cb.FunctionError, match="runs in a session already"):
        node.options(session="repeatable").call("open_inside")
    with node.session("repeatable") as session:
        with pytest.raises(cb.RequestError, match="has no ttl"):
            session._now().put(key, 1, ttl=5)
        with pytest.raises(cb.RequestError, match="are in that session"):
            session.options(session="causal")
        with pytest.raises(cb.RequestError, match="an effect of its own"):
            session.options(id="once").call("add", key, 1)
        with pytest.raises(cb.RequestError, match="has no token"):
            assert session.token
    with pytest.raises(cb.RequestError, match="entered once"), session:
        pass
    assert isinstance(session, Session)


# -- from session to session


@pytest.mark.parametrize("again", range(5))
def test_the_next_causal_session_sees_what_the_last_one_wrote_without_waiting(
    node: cb.Client, key: str, again: int
) -> None:
    sets, count = f"{key} set", f"{key} count"
    with node.session("causal") as session:
        session.mput({key: "first", sets: ORSet({"a", "b"}), count: Counter(+2)})
    with node.session("causal") as session:
        assert session.mget([key, sets, count]) == ["first", {"a", "b"}, 2]
        session.mput({sets: ORSet({"c"}, remove={"a"}), count: Counter(+3)})
    assert node.options(session="causal").call("read_all", key, sets, count) == ["first", {"b", "c"}, 5]
    assert node.options(session="causal").call("add", count + " register", 1) == 1
    assert node.options(session="causal").call("add_twice", count + " register") == (2, 12, 12)
    with node.session("causal") as session:
        assert session.mget([key, sets, count, count + " register"]) == ["first", {"b", "c"}, 5, 12]
    soon(node, [sets, count], [{"b", "c"}, 5])


def test_a_causal_session_sees_what_its_client_wrote_outside_of_sessions(node: cb.Client, key: str) -> None:
    for number in range(3):
        node.put(key, number)
        node.mput({f"{key} {number}": number})
        assert node.options(session="causal").call("read_all", key, f"{key} {number}") == [number, number]
        with node.session("causal") as session:
            assert session.mget([key, f"{key} {number}"]) == [number, number]


def test_a_token_lets_another_client_see_all_that_a_session_saw_and_wrote(node: cb.Client, key: str) -> None:
    with cb.Client(node._join) as other:
        for number in range(3):
            with node.session("causal") as session:
                session.mput({key: number, f"{key} too": number})
            with other.session("causal", token=session.token) as theirs:
                assert theirs.mget([key, f"{key} too"]) == [number, number]
                theirs.put(f"{key} back", number)
            with node.session("causal", token=theirs.token) as session:
                assert session.get(f"{key} back") == number
        with pytest.raises(cb.RequestError, match="is no token of a session"):
            other.session("causal", token=session.token[:-1] + "x")
        with pytest.raises(cb.RequestError, match="is no token of a session"):
            other.session("causal", token="abc")


def test_a_commit_that_is_asked_for_again_has_one_effect(node: cb.Client, key: str) -> None:
    with node.session("read-atomic") as session:
        session.put(key, Counter(+5))
        now = session._now()
        request = now.state.buffered[key.encode()].requests()[1]
    for _ in range(3):
        node._joined().store(system=True).commit({key: request}, id=now.identity)
    soon(node, [key], [5])


def test_a_call_whose_executor_dies_after_its_commit_has_one_effect(
    node: cb.Client, key: str, tmp_path: Path
) -> None:
    """The second attempt commits under the same id; it answers as if it had been the first, whatever it has read."""
    assert node.options(session="causal").call("count_and_die", key, str(tmp_path / "died")) == 5
    assert (tmp_path / "died").exists()
    soon(node, [key], [5])


def test_a_session_whose_commit_is_refused_has_written_nothing(node: cb.Client, key: str) -> None:
    session = node.session("read-atomic")
    session.__enter__()
    session.mput({key: 1, f"{key} set": 2})
    node.put(f"{key} set", Set({"another type"}))
    with pytest.raises(LatticeTypeMismatch):
        session.__exit__(None, None, None)
    assert node.mget([key, f"{key} set"]) == [None, {"another type"}]


def test_a_session_whose_client_is_closed_does_not_end_what_keeps_the_others(node: cb.Client, key: str) -> None:
    """The thread that pins the epochs of this process's sessions ended with the error that the client is closed."""
    client = Client(lambda: Membership(local.ensure(executors=2)))
    before = set(keeper._due)
    session = client.session("repeatable")
    session.__enter__()
    assert session.get(key, None) is None
    (kept,) = set(keeper._due) - before
    client.close()
    kept.renew()
    keeper.release(kept)
