"""The anomalies that the literature names, each as small as it can be, and at which level it is one."""

from __future__ import annotations

from typing import Any

import pytest

from cloudburst.judge.verdict import Verdict
from tests.cloudburst.judge.lines import judged

LEVELS = ("repeatable", "read-atomic", "causal", "read-your-writes", "monotonic-reads")
Lines = tuple[str | dict[str, Any], ...]

NAMED: dict[str, tuple[Lines, str]] = {
    # -- what is allowed at every level
    "nothing": ((), ""),
    "a session that reads its own writes": (("a: write x 1", "a: read x 1, write x 2", "a: read x 2"), ""),
    "a stale read of another session": (("a: write x 1", "a: write x 2", "b: read x 1", "b: read x 2"), ""),
    "lost update": (("a: write x 0", "b: read x 0, write x 1", "c: read x 0, write x 2", "a: read x 2"), ""),
    "write skew": (("a: read x -, write y 1", "b: read y -, write x 1"), ""),
    "long fork": (("a: write x 1", "b: write y 1", "c: read x 1, read y -", "d: read x -, read y 1"), ""),
    "concurrent writes seen in one order": (
        ("a: write x 1", "b: write x 2", "c: read x 1", "c: read x 2", "d: read x 2"),
        "",
    ),
    "a write that took effect late": (
        ("a: write x 1 (unknown)", "a: read x -", "b: read x 1", "a: read x -"),
        "",
    ),
    # -- repeatable
    "non-repeatable read": (("a: write x 1", "b: read x -, read x 1"), "repeatable read-atomic causal"),
    "own write unseen": (("a: write x 1, read x -",), "repeatable read-atomic causal"),
    "own write read before it": (("a: read x 1, write x 1",), "repeatable read-atomic causal"),
    # -- read atomic
    "fractured read": (("a: write x 1, write y 1", "b: read x 1, read y -"), "read-atomic causal"),
    "fractured read of a newer write": (
        ("a: write y 0", "b: read y 0, write x 1, write y 1", "c: read x 1, read y 0"),
        "read-atomic causal",
    ),
    "each half of two transactions": (
        ("a: write x 1, write y 1", "b: write x 2, write y 2", "c: read x 1, read y 2"),
        "read-atomic causal",
    ),
    "two readers that tear two transactions the other way round": (
        ("a: write x 1, write y 1", "b: write x 2, write z 2", "c: read x 1, read z 2", "d: read x 2, read y 1"),
        "read-atomic causal",
    ),
    "dirty read": (("a: write x 1 (failed)", "b: read x 1"), "read-atomic causal"),
    "intermediate read": (("a: write x 1, write x 2", "b: read x 1"), "read-atomic causal"),
    "thin air": (("a: write x 1", "b: read x 2"), "read-atomic causal"),
    "two that read each other": (("a: read y 1, write x 1", "b: read x 1, write y 1"), "read-atomic causal"),
    # -- causal
    "causality violation over three keys and three clients": (
        ("a: write x 1", "b: read x 1, write y 1", "c: read y 1, write z 1", "d: read z 1, read x -"),
        "causal",
    ),
    "an answer whose question is older": (
        ("a: write x 1", "a: write x 2", "b: read x 2, write y 1", "c: read y 1", "c: read x 1"),
        "causal",
    ),
    "single-key writes seen in two orders": (
        ("a: write x 1", "b: write x 2", "c: read x 1", "c: read x 2", "d: read x 2", "d: read x 1"),
        "causal monotonic-reads",
    ),
    "a session that does not see its own write": (("a: write x 1", "a: read x -"), "causal read-your-writes"),
    "a session that goes back": (("a: write x 1", "b: read x 1", "b: read x -"), "causal monotonic-reads"),
    "a read from a session's own future": (("a: read x 1", "a: write x 1"), "causal"),
    "a deleted value that comes back": (
        ("a: write x 1", "a: write x -", "b: read x 1", "a: read x 1"),
        "causal read-your-writes",
    ),
    "a token that was told and not honoured": (
        (
            {"session": "a", "invocation": "i", "operations": [["write", "x", 1]], "outcome": "ok"},
            {"session": "b", "told": ["i"], "operations": [["read", "x", None]], "outcome": "ok"},
        ),
        "causal",
    ),
}  # fmt: skip


def broken(verdict: Verdict) -> str:
    return " ".join(level for level in LEVELS if not verdict.held(level))


@pytest.mark.parametrize("name", NAMED)
def test_anomaly_is_one_at_the_levels_that_forbid_it(name: str) -> None:
    lines, levels = NAMED[name]
    assert broken(judged(*lines)) == levels


def test_what_failed_was_not_written_and_what_has_no_known_end_may_have_been() -> None:
    assert broken(judged("a: write x 1 (failed)", "a: read x -", "b: read x -")) == ""
    assert broken(judged("a: write x 1 (unknown)", "b: read x -", "b: read x 1", "c: read x -")) == ""
    assert broken(judged("a: write x 1, write y 1 (unknown)", "b: read x 1, read y -")) == "read-atomic causal"


def test_what_failed_was_told_only_what_its_session_knew_and_binds_nobody() -> None:
    assert broken(judged("a: write x 1", "a: read x - (failed)")) == "causal read-your-writes"
    assert broken(judged("a: write x 1", "b: read x 1 (failed)", "b: read x -")) == ""


def function(number: int, operations: list[list[Any]], after: list[int] | None = None) -> dict[str, Any]:
    line = {"session": "a", "invocation": "i", "function": number, "operations": operations, "outcome": "ok"}
    return line if after is None else line | {"after": after}


def test_functions_of_one_invocation_are_one_transaction() -> None:
    write: dict[str, Any] = {"session": "b", "operations": [["write", "x", "v"], ["write", "y", "w"]], "outcome": "ok"}
    same = (function(0, [["read", "x", "v"]]), function(1, [["read", "x", "v"], ["read", "y", "w"]]))
    assert broken(judged(write, *same)) == ""
    changed = (function(1, [["read", "x", None]]), function(0, [["read", "x", "v"]]))
    assert broken(judged(write, *changed)) == "repeatable read-atomic causal"
    torn = (function(0, [["read", "x", "v"]]), function(1, [["read", "y", None]]))
    assert broken(judged(write, *torn)) == "read-atomic causal"


def test_a_branch_sees_what_was_written_before_it_and_not_what_its_sister_writes() -> None:
    source = function(0, [["write", "x", 1]])
    left, right = function(1, [["read", "x", 1], ["write", "x", 2]], [0]), function(2, [["read", "x", 1]], [0])
    for read in (1, 2):
        held = judged(source, left, right, function(3, [["read", "x", read]], [1, 2])).held("repeatable")
        assert held == (read == 2)
    assert not judged(source, left, function(2, [["read", "x", 2]], [0])).held("repeatable")


def test_a_violation_is_explained_with_as_few_lines_as_show_it() -> None:
    """Line 1 is the version; what does not matter is not mentioned."""
    verdict = judged(
        "a: write x 1", "e: write q 0", "b: read x 1, write y 1", "b: read q 0, write y 2", "c: read y 2, write z 1",
        "d: read q 0", "d: read z 1, read x -",
    )  # fmt: skip
    (violation,) = verdict.found["causal"]
    assert verdict.explain(violation) == [
        "line 8 (session d) reads 'x' as absent, though line 2 wrote '1'",
        "  line 8 comes after line 2:",
        "    line 4 reads 'x' = '1' of line 2",
        "    line 5 is later in session b than line 4",
        "    line 6 reads 'y' = '2' of line 5",
        "    line 8 reads 'z' = '1' of line 6",
    ]


def test_of_several_writes_that_a_read_missed_the_nearest_is_named() -> None:
    verdict = judged(
        "a: write x 1", "b: read x 1, write y 1", "c: read y 1, write z 1", "e: write x 2", "c: read x 2", "c: read x -"
    )
    (violation,) = verdict.found["causal"]
    assert verdict.explain(violation)[0] == "line 7 (session c) reads 'x' as absent, though line 5 wrote '2'"
    assert len(verdict.explain(violation)) == 4


def test_a_knot_is_explained_as_a_cycle_with_the_reads_that_force_each_order() -> None:
    verdict = judged("a: write x 1", "b: write x 2", "c: read x 1", "c: read x 2", "d: read x 2", "d: read x 1")
    (violation,) = verdict.found["causal"]
    assert verdict.explain(violation) == [
        "no order of commits is possible; each of these comes before the next, and the last before the first:",
        "  line 2 commits before line 3: line 5 reads 'x' = '2' of line 3, and must see '1' of line 2",
        "    line 5 comes after line 2:",
        "      line 4 reads 'x' = '1' of line 2",
        "      line 5 is later in session c than line 4",
        "  line 3 commits before line 2: line 7 reads 'x' = '1' of line 2, and must see '2' of line 3",
        "    line 7 comes after line 3:",
        "      line 6 reads 'x' = '2' of line 3",
        "      line 7 is later in session d than line 6",
    ]


def test_papers_counts_are_those_of_their_definitions() -> None:
    counts = judged(
        "a: write x 1, write y 1",
        "b: read x 1, read y -",
        "b: write x 2, read x 1",
        "c: read x 1, read x 2",
        "d: read y 1, write z 1",
        "e: read z 1, read x -",
    ).counts
    assert counts is not None
    assert (counts.transactions, counts.read_your_writes, counts.repeatable_read) == (6, 1, 1)
    assert counts.fractured_reads == 2, "b's first, and c's two versions"
    assert counts.causal == 2, "b's first, and e's, whose z depends on x"
    assert counts.lost_updates is None, "there are no stamps"


def test_half_of_each_of_two_transactions_is_one_fractured_read_not_a_knot() -> None:
    verdict = judged("a: write x 1, write y 1", "b: write x 2, write y 2", "c: read x 1, read y 2")
    assert verdict.counts is not None
    assert verdict.counts.fractured_reads == 1
    assert verdict.explain(verdict.found["read-atomic"][0]) == [
        "line 4 (session c) reads 'y' = '2' of line 3, though line 2 wrote '1'",
        "  it also reads 'x' = '1' of line 2, though line 3 wrote '2'",
        "  line 4 reads 'x' = '1' of line 2",
    ]


def stamped(session: str, stamp: int, *operations: list[Any]) -> dict[str, Any]:
    return {"session": session, "operations": list(operations), "outcome": "ok", "commit": stamp}


def test_stamps_say_what_was_overwritten_unseen_and_which_version_is_older() -> None:
    first, second = stamped("a", 10, ["write", "x", "1"]), stamped("b", 20, ["write", "x", "2"], ["write", "y", "2"])
    seen = stamped("c", 30, ["read", "x", "2"], ["write", "x", "3"])
    counts = judged(first, second, seen, "d: read x 1, read y 2").counts
    assert counts is not None
    assert counts.lost_updates == 1, "20 had not seen 10"
    assert counts.fractured_reads == 1, "the version of 10 beside what 20 wrote"
