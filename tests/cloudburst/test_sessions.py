"""Sessions on one node: what is read stays, what is written is the session's until it commits, in functions as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

import cloudburst as cb
from anna.errors import KeyNotFound, LatticeTypeMismatch
from anna.lattices import Causal, Counter, Map, Max, ORSet, Set
from cloudburst import local
from cloudburst.client import Client
from cloudburst.consistency import travel
from cloudburst.keeping import keeper
from cloudburst.membership import Membership
from cloudburst.sessions import Session
from tests.cloudburst.session_samples import (
    add_twice,
    after_a_while,
    at_every_level,
    branches,
    node_with_functions,
    read_all,
    soon,
)

_keys = iter(range(1_000_000))


@pytest.fixture(scope="module")
def node(home: object) -> Iterator[cb.Client]:
    with node_with_functions() as client:
        yield client


def leave_with(session: Session, key: str) -> None:
    with session:
        session.put(key, 1)
        session.call("add", key, 1)
        raise ZeroDivisionError


@pytest.fixture
def key() -> str:
    return f"key {next(_keys)}"


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
        after_a_while(node, level, lambda later: later.mget([key, f"{key} absent"]), ["second", "there"])
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


@at_every_level
def test_a_key_that_a_session_deletes_is_absent_in_it_and_after_it(node: cb.Client, key: str, level: str) -> None:
    node.put(key, "before")
    after_a_while(node, level, lambda session: session.get(key, None), "before")
    with node.session(level) as session:
        assert session.delete(key)
        assert not session.delete(f"{key} never")
        session.put(f"{key} short", 1)
        assert session.delete(f"{key} short")
        session.put(f"{key} instead", 1)
        assert session.mget([key, f"{key} short", f"{key} instead"]) == [None, None, 1]
        assert session.call("read_all", key) == [None]
        assert node.get(key) == "before"
    if level == "causal":
        with node.session(level) as session:
            assert session.mget([key, f"{key} instead"]) == [None, 1]
    soon(node, [key, f"{key} short", f"{key} instead"], [None, None, 1])


@at_every_level
def test_what_is_deleted_and_written_again_in_a_session_may_be_of_another_type(
    node: cb.Client, key: str, level: str
) -> None:
    node.put(key, Set({"old"}))
    after_a_while(node, level, lambda session: session.get(key, None), {"old"})
    with node.session(level) as session:
        session.delete(key)
        session.put(key, "a register")
        assert session.get(key) == "a register"
    soon(node, [key], ["a register"])


@at_every_level
def test_what_a_session_writes_can_live_for_a_while(node: cb.Client, key: str, level: str) -> None:
    with node.session(level) as session:
        session.put(key, "short", ttl=0.3)
        session.mput({f"{key} tags": Set({"short"})}, ttl=0.3)
        session.put(f"{key} long", "long", ttl=30)
        assert session.mget([key, f"{key} tags", f"{key} long"]) == ["short", {"short"}, "long"]
        with pytest.raises(ValueError, match="ttl is 0"):
            session.put(key, 1, ttl=0)
    soon(node, [key, f"{key} tags", f"{key} long"], [None, None, "long"])


@at_every_level
def test_a_put_in_a_session_does_not_compare(node: cb.Client, key: str, level: str) -> None:
    with node.session(level) as session, pytest.raises(cb.NotSupported, match="does not compare"):
        session._now().put(key, 1, if_stamp=0)


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


# -- stamps


@at_every_level
def test_who_has_committed_is_told_at_which_stamp(node: cb.Client, key: str, level: str) -> None:
    calls = node.options(session=level)
    stamps = []
    for _ in range(3):
        future = calls.spawn("add", key, 1)
        future.result()
        stamps.append(future.stamp)
    assert 0 < stamps[0] < stamps[1] < stamps[2]
    reading = calls.spawn("read_all", key)
    assert (reading.result()[0] in (1, 2, 3, None), reading.stamp) == (True, 0)
    graph = calls.spawn("diamond", branches(key))
    graph.result()
    assert graph.stamp > stamps[2] or (level, graph.stamp) == ("repeatable", 0)  # where each key has its own
    with node.session(level) as session:
        session.put(f"{key} left", "later")
        inside = session.spawn("add", f"{key} left too", 1)
        assert (inside.result(), inside.stamp, session.stamp) == (1, 0, 0)
    assert session.stamp > max(*stamps, graph.stamp) or (level, session.stamp) == ("repeatable", 0)


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
        with pytest.raises(cb.RequestError, match="has no ack"):
            session._now().put(key, 1, ack=1)
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
