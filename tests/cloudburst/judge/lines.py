"""Histories in short: `history("a: write x 1", "b: read x 1, write y 2")`, one transaction each, and random small
ones."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from cloudburst.judge.history import History
from cloudburst.judge.reading import read_lines
from cloudburst.judge.verdict import Verdict, judge


def history(*transactions: str | dict[str, Any]) -> History:
    """Return a history; a transaction is "SESSION: KIND KEY VALUE, …", then perhaps " (failed)" or " (unknown)", or a
    line's fields.

    A value is `-` for absent, `{a b}` for a set.
    """
    lines = [one if isinstance(one, dict) else said(one) for one in transactions]
    return read_lines([(json.dumps(line) + "\n").encode() for line in ({"history": 1}, *lines)])


def said(text: str) -> dict[str, Any]:
    session, _, rest = text.partition(": ")
    outcome = "ok"
    for name in ("failed", "unknown"):
        if rest.endswith(f" ({name})"):
            outcome, rest = name, rest.removesuffix(f" ({name})")
    operations = [operation(one) for one in rest.split(", ") if one]
    return {"session": session, "operations": operations, "outcome": outcome}


def operation(text: str) -> list[Any]:
    kind, key, value = text.split(" ", 2)
    if value == "-":
        return [kind, key, None]
    return [kind, key, value[1:-1].split() if value.startswith("{") else value]


def judged(*transactions: str | dict[str, Any]) -> Verdict:
    return judge(history(*transactions))


@st.composite
def small(draw: st.DrawFn) -> History:
    """Two to five transactions of up to three sessions on two keys, whose reads see anything that anybody wrote.

    Mostly what was written on an earlier line, so that histories that hold are not too rare; half of them end with two
    reads of one session, so that those in which a session goes back are not either.
    """
    keys = draw(st.sampled_from([("x",), ("x", "y")]))
    operations = st.lists(st.tuples(st.booleans(), st.sampled_from(keys)), min_size=1, max_size=3)
    planned = [(draw(st.sampled_from("abc")), one) for one in draw(st.lists(operations, min_size=2, max_size=5))]
    if draw(st.booleans()):
        planned = [*planned[:3], ("a", [(False, "x")]), ("a", [(False, "x")])]
    written: dict[str, list[str | None]] = {key: [None] for key in keys}
    for number, (_, wanted) in enumerate(planned):
        for place, (writes, key) in enumerate(wanted):
            if writes:
                written[key].append(f"{number}.{place}")
    lines: list[dict[str, Any]] = []
    for number, (session, wanted) in enumerate(planned):
        line = {"session": session, "operations": _shown(draw, number, wanted, written), "invocation": str(number)}
        line["outcome"] = draw(st.sampled_from(["ok"] * 6 + ["unknown", "failed"]))
        if number and not draw(st.integers(0, 4)):
            line["told"] = [str(draw(st.integers(0, number - 1)))]
        lines.append(line)
    return history(*lines)


def _shown(
    draw: st.DrawFn, number: int, wanted: list[tuple[bool, str]], written: dict[str, list[str | None]]
) -> list[list[Any]]:
    own: dict[str, str] = {}
    shown: list[list[Any]] = []
    for place, (writes, key) in enumerate(wanted):
        if writes:
            own[key] = f"{number}.{place}"
            shown.append(["write", key, own[key]])
        elif key in own and draw(st.integers(0, 9)):
            shown.append(["read", key, own[key]])
        else:
            earlier = [value for value in written[key] if value is None or int(value[0]) <= number]
            shown.append(["read", key, draw(st.sampled_from(earlier if draw(st.integers(0, 7)) else written[key]))])
    return shown
