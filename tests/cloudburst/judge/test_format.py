"""Histories as files: what is written is read back, and what is wrong is named with its line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudburst.judge import history as format
from cloudburst.judge.history import HistoryError, Operation
from cloudburst.judge.reading import read, read_lines
from cloudburst.judge.writing import Writer

GOOD: dict[str, Any] = {"session": "a", "operations": [["write", "x", "v"]], "outcome": "ok"}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with Writer(path) as writer:
        writer.write(
            "a", [("write", "é\ud800", "v"), ("write", "n", 7), ("read", "s", {"b", 1})], invocation="i", commit=9
        )
        writer.write("b", [("read", "x", None)], "unknown", function=2, after=[], node="n1", told=["i"], note="why")
    with Writer(path) as writer:
        writer.write("c", [("read", "s", frozenset())], "failed")
    first, second, third = (one.lines[0] for one in read(path).transactions)
    assert first == format.Line(
        2, "a",
        (Operation("write", "é\ud800", "v"), Operation("write", "n", 7), Operation("read", "s", frozenset({"b", 1}))),
        "ok", "i", commit=9,
    )  # fmt: skip
    assert second == format.Line(3, "b", (Operation("read", "x", None),), "unknown", None, 2, (), "n1", told=("i",))
    assert third == format.Line(4, "c", (Operation("read", "s", frozenset()),), "failed")


def test_a_writer_refuses_what_a_reader_would(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with Writer(path) as writer, pytest.raises(HistoryError, match=r"line 1, operations\[0\]: writes float 1.5"):
        writer.write("a", [("write", "x", 1.5)])
    assert path.read_bytes() == b'{"history":1}\n'
    with pytest.raises(HistoryError, match="is closed"):
        writer.write("a", [])


def test_a_line_that_was_cut_off_at_the_end_is_left_out() -> None:
    whole = [b'{"history": 1}\n', json.dumps(GOOD).encode() + b"\n"]
    history = read_lines([*whole, b'{"session": "b", "opera'])
    assert (len(history.transactions), history.torn) == (1, True)
    with pytest.raises(HistoryError, match="line 3: is no JSON"):
        read_lines([*whole, b'{"session": "b", "opera\n'])


WRONG: list[tuple[Any, str]] = [
    (7, "line 2: is int 7, and should be an object"),
    (GOOD | {"sesion": "a"}, "line 2, sesion: is no field; there are session, "),
    ({"operations": [], "outcome": "ok"}, "line 2, session: is missing"),
    (GOOD | {"session": 3}, "line 2, session: is int 3, and should be text"),
    (GOOD | {"outcome": "fine"}, "line 2, outcome: is 'fine', and should be 'ok', 'failed' or 'unknown'"),
    (GOOD | {"operations": "x"}, "line 2, operations: is str 'x', and should be a list"),
    (GOOD | {"operations": [["read", "x"]]}, "line 2, operations[0]: should be [kind, key, value]"),
    (GOOD | {"operations": [["read", "x", 1], ["reed", "x", 1]]}, "line 2, operations[1]: is a 'reed'; there are read"),
    (GOOD | {"operations": [["read", 5, 1]]}, "line 2, operations[0]: has int 5 for a key"),
    (GOOD | {"operations": [["read", "x", True]]}, "line 2, operations[0]: reads bool True"),
    (GOOD | {"operations": [["read", "x", [None]]]}, "line 2, operations[0]: reads nothing in a set"),
    (GOOD | {"operations": [["add", "x", None]]}, "line 2, operations[0]: adds nothing"),
    (GOOD | {"operations": [["write", "x", ["v"]]]}, "line 2, operations[0]: writes list ['v']"),
    (GOOD | {"function": -1}, "line 2, function: is int -1, and should be a whole number"),
    (GOOD | {"commit": "soon"}, "line 2, commit: is str 'soon', and should be a whole number"),
    (GOOD | {"function": 1, "after": [1]}, "line 2, after: is [1], and should list functions below 1"),
    (GOOD | {"told": "i"}, "line 2, told: is 'i', and should list invocations"),
    ({"history": 2}, "line 2, history: is version 2; this judge reads 1"),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_wrong_line_is_named_with_its_field(line: Any, said: str) -> None:
    with pytest.raises(HistoryError) as caught:
        read_lines([b'{"history": 1}\n', json.dumps(line).encode() + b"\n"])
    assert str(caught.value).startswith(said)


def test_what_only_several_lines_have_wrong_is_named_too() -> None:
    from cloudburst.judge.facts import gather
    from tests.cloudburst.judge.lines import history

    def fault(*lines: Any) -> str:
        with pytest.raises(HistoryError) as caught:
            gather(history(*lines))
        return str(caught.value)

    part = GOOD | {"invocation": "i"}
    assert fault("a: write x 1", "b: write x 1") == (
        "line 3, operations[0]: writes '1' to 'x', as line 2 does; each value is written once"
    )
    assert fault("a: write x 1, write x 1").startswith("line 2, operations[1]: writes '1' to 'x', as line 2 does")
    assert fault(GOOD | {"told": ["i"]}) == "line 2, told: there is no invocation 'i'"
    assert fault(part, part | {"session": "b"}) == "line 3, session: is 'b'; line 2 has 'i' in 'a'"
    assert fault(part, part) == "line 3, function: 0 of 'i' is there already"
    assert fault(part | {"function": 2, "after": [1]}, part) == "line 2, after: 'i' has no function 1"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "history: is empty"),
        ([json.dumps(GOOD).encode() + b"\n"], 'line 1, history: a history begins with {"history": 1}'),
        ([b'{"history": 1}\n', b"null\n"], "line 2: is nothing, and should be an object"),
        ([b'{"history": 1}\n', b"\xff\n"], "line 2: is no JSON"),
        ([b'{"history": 1}\n', b"[" * 100_000 + b"\n"], "line 2: is no JSON"),
    ],
)
def test_what_is_no_history_is_refused(lines: list[bytes], said: str) -> None:
    with pytest.raises(HistoryError) as caught:
        read_lines(lines)
    assert str(caught.value).startswith(said)


def test_a_line_has_a_longest_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudburst.judge.reading.LINE_BYTES_MAX", 100)
    with pytest.raises(HistoryError, match="line 2: has 102 bytes; LINE_BYTES_MAX is 100"):
        read_lines([b'{"history": 1}\n', b" " * 101 + b"\n"])
