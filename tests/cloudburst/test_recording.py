"""Histories of sessions as their client writes them: every part where it was done, after what it came after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb
from anna.lattices import LWW, Causal, Counter, ORSet, Set
from cloudburst import local
from cloudburst.client import Client
from cloudburst.consistency import naming
from cloudburst.errors import ProtocolError
from cloudburst.judge.reading import read
from cloudburst.judge.verdict import judge
from cloudburst.membership import Membership
from cloudburst.recording import chain_of, unpack_told
from tests.cloudburst.session_samples import FUNCTIONS, branches


@pytest.fixture
def history(home: object, tmp_path: Path) -> Iterator[tuple[cb.Client, Path]]:
    path = tmp_path / "history.jsonl"
    client = Client(lambda: Membership(local.ensure(executors=2)), path)  # the default client stays what it was
    for function in FUNCTIONS:
        client.register(function)
    source = {"start": [], "left": ["start"], "right": ["start"], "end": ["left", "right"]}
    functions = {"start": "given", "left": "step", "right": "step", "end": "gather_up"}
    client.dag("diamond", source, functions=functions)
    yield client, path
    client.close()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()][1:]


@pytest.mark.parametrize("level", ["eventual", "repeatable", "causal"])
def test_a_session_is_written_with_what_its_functions_did(history: tuple[cb.Client, Path], level: str) -> None:
    client, path = history
    key = f"recorded {level}"
    with client.session(level) as session:
        session.put(key, 1)
        session.call("add", key, 5)
        session.get(key)
        session.call("count_down", f"{key} down", 1)
    lines = lines_of(path)
    assert [line["operations"] for line in lines] == [
        [["write", key, 1]],
        [["read", key, 1], ["write", key, 6], ["read", key, 6]],
        [["read", key, 6]],
        [["read", f"{key} down", None], ["write", f"{key} down", 1]],
        [["read", f"{key} down", 1], ["write", f"{key} down", 2], ["read", f"{key} down", 2]],
    ]
    assert [line["after"] for line in lines] == [[], [0], [0, 1], [2], [3]]
    assert {line.get("commit", 0) for line in lines} == {session.stamp}
    assert bool(session.stamp) == (level == "causal")  # elsewhere each key is written by itself
    assert len({line["invocation"] for line in lines}) == 1
    assert [line["node"] == "client" for line in lines] == [True, False, True, False, False]
    assert judge(read(path)).held("causal")


def test_branches_of_a_graph_come_after_the_same_and_before_the_same(history: tuple[cb.Client, Path]) -> None:
    client, path = history
    client.options(session="causal").call("diamond", branches("recorded graph"))
    client.close()  # steps' replies may come after that of the last one
    lines = lines_of(path)
    assert sorted(lines[0]["operations"] + lines[1]["operations"]) == [
        ["write", "recorded graph left", "L"], ["write", "recorded graph right", "R"],
    ]  # fmt: skip
    assert [line["after"] for line in lines] == [[], [], [0, 1]]
    assert [one[2] for one in lines[2]["operations"]] == [None, "L", "R"]


def test_what_had_no_effect_says_so_and_sessions_beside_each_other_are_different_ones(
    history: tuple[cb.Client, Path],
) -> None:
    client, path = history
    with client.session("causal") as outer:
        outer.put("recorded outer", 1)
        with client.session("causal") as inner:
            inner.put("recorded inner", 1)
    with client.session("causal") as session:
        session.put("recorded gone", 1)
        session.abort()
    with pytest.raises(ValueError, match="after all"):
        client.options(session="causal").call("fail_after", "recorded gone", 2)
    with client.session("causal") as session:
        session.get("recorded inner")
    client.close()
    inner, outer, gone, raised, last = lines_of(path)
    assert inner["session"] != outer["session"]
    assert (gone["outcome"], gone["operations"]) == ("failed", [["write", "recorded gone", 1]])
    assert (raised["outcome"], raised["operations"]) == ("failed", [["write", "recorded gone", 2]])
    assert last["operations"] == [["read", "recorded inner", 1]]
    known = {last["session"], *(one["session"] for one in (inner, outer) if one["invocation"] in last.get("told", ()))}
    assert known >= {inner["session"], outer["session"]} or gone.get("told") == [inner["invocation"]]
    assert judge(read(path)).held("causal")


def read_and_raise(key: str) -> None:
    cb.get(key, None)
    cb.put(f"{key} own", 1)
    cb.get(f"{key} own")
    raise ValueError("after all")


def test_what_a_function_has_read_that_raised_is_a_part_of_the_session_that_called_it(
    history: tuple[cb.Client, Path],
) -> None:
    client, path = history
    client.register(read_and_raise)
    with client.session("causal") as session:
        session.put("recorded here", 1)
        with pytest.raises(ValueError, match="after all"):
            session.call("read_and_raise", "recorded here")
        session.put("recorded after", 2)
    assert [line["operations"] for line in lines_of(path)] == [
        [["write", "recorded here", 1]], [["read", "recorded here", 1]], [["write", "recorded after", 2]],
    ]  # fmt: skip
    assert judge(read(path)).held("causal")


def commit_and_die(key: str, value: int) -> None:
    """Have the executor end when this call is committed, or just before."""
    from cloudburst import context
    from cloudburst.transactions import Transaction

    def commit_then_die(session: Transaction) -> int:
        if value > 0:
            commit(session)
        os._exit(1)

    cb.put(key, value)
    session = context.session()
    assert session is not None
    commit, Transaction.commit = Transaction.commit, commit_then_die  # type: ignore[method-assign]


@pytest.mark.parametrize("value", [1, -1], ids=["committed", "not committed"])
def test_a_call_of_which_nobody_knows_whether_it_was_committed_is_unknown(
    history: tuple[cb.Client, Path], value: int
) -> None:
    """What others read of it has somebody who wrote it, then."""
    client, path = history
    client.register(commit_and_die)
    key = f"recorded unknown {value}"
    with pytest.raises(cb.ExecutorLost):
        client.options(session="causal", retries=0).call("commit_and_die", key, value)
    until = time.monotonic() + 10
    while value > 0 and client.get(key, None) is None and time.monotonic() < until:
        pass
    with client.session("causal") as session:
        assert session.get(key, None) in (None, value)
    client.close()
    later, unknown = lines_of(path)
    assert (unknown["outcome"], unknown["operations"]) == ("unknown", [["write", key, value]])
    assert unknown["session"] != later["session"]
    assert judge(read(path)).held("causal")


def test_a_session_with_a_token_was_told_of_the_one_that_had_it(history: tuple[cb.Client, Path]) -> None:
    client, path = history
    with client.session("causal") as teller:
        teller.put("recorded told", 1)
    other = path.with_name("other")
    with Client(client._join, other) as listener, listener.session("causal", token=teller.token) as session:
        assert session.get("recorded told") == 1
    assert lines_of(other)[0]["told"] == [lines_of(path)[0]["invocation"]]


def test_a_command_records_with_an_option(home: object, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import cloudburst as cb\n"
        "def main():\n"
        "    with cb.session('causal') as session:\n"
        "        session.put('recorded by a command', 1)\n"
    )
    path = tmp_path / "history.jsonl"
    command = [sys.executable, "-m", "cloudburst", "--record", str(path), "run", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    (line,) = lines_of(path)
    assert line["operations"] == [["write", "recorded by a command", 1]]


def test_values_have_names_by_which_they_are_found_again() -> None:
    assert [naming.name_of(value) for value in (5, -7, "text", "")] == [5, -7, "text", ""]
    long = [naming.name_of(value) for value in ("x" * 65, 1 << 60, True, None, 1.5, (1, 2), b"bytes", "#x")]
    assert len(set(long)) == len(long)
    assert all(str(name).startswith("#") and len(str(name)) == 25 for name in long)
    assert naming.read("k", None) == [("read", "k", None)]
    assert naming.read(b"k", LWW.of("v")) == [("read", "k", "v")]
    assert naming.read("k", Set({2, 1})) == [("read", "k", [1, 2])]
    assert naming.read("k", Counter(3)) == naming.written("k", Counter(3), None) == []
    assert naming.written("k", Causal("v"), None) == [("write", "k", "v")]
    seen = ORSet({"a", "b"}).assign(None, 1, 7)
    assert naming.written("k", ORSet({"c"}, remove={"a", "z"}), seen) == [("add", "k", "c"), ("remove", "k", "a")]


def test_parts_are_written_once_all_that_led_to_them_is_there() -> None:
    write = [("write", "k", 1)]
    parts = [(3, [1, 2], "n", write), (1, [], "n", []), (2, [1], "n", write)]
    assert chain_of(parts[:1], [3]) is None
    order = chain_of(parts, [3])
    assert order is not None
    assert [one[0] for one in order] == [1, 2, 3]
    with pytest.raises(ProtocolError):
        unpack_told(b"\xc1")
