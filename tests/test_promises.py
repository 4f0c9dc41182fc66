"""docs/promises.md names a test for what it promises, or says that there is none yet; the tests that it names exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "promises.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
PROMISES = [f"P{n}" for n in (*range(1, 7), *range(10, 19), 23, 24)]


NOT_KEPT_YET = TEXT.split("## Not kept yet", 1)[1]


@cache
def marks_in(path: str) -> dict[str, str]:
    """Return the name of each test function of a file, and its decorators as text, those that have a name resolved."""
    tree = ast.parse((ROOT / path).read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    named = {
        t.id: ast.unparse(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign)
        for t in n.targets
        if isinstance(t, ast.Name)
    }
    marks = {f.name: [ast.unparse(decorator) for decorator in f.decorator_list] for f in functions}
    return {name: " ".join(named.get(m, m) for m in found) for name, found in marks.items() if name.startswith("test_")}


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[f"{path}::{name}" for path, name in NAMED])
def test_a_test_that_is_named_exists(path: str, name: str) -> None:
    assert name in marks_in(path)


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[f"{path}::{name}" for path, name in NAMED])
def test_a_test_that_is_expected_to_fail_is_named_among_what_is_not_kept(path: str, name: str) -> None:
    assert "xfail" not in marks_in(path)[name] or f"{path}::{name}" in NOT_KEPT_YET


def test_every_mention_of_a_test_is_one_that_is_looked_up() -> None:
    assert TEXT.count("::test_") == len(re.findall(r"`tests/[\w/]+\.py::test_\w+`", TEXT))
    assert len(NAMED) > 50


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_has_one_line_that_names_a_test_or_says_that_there_is_none(promise: str) -> None:
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {promise} |")]
    assert "::test_" in line or "not shown yet" in line


@pytest.mark.parametrize("level", ['ack="memory"', "nothing (the default)", "ack=k", 'ack="disk"'])
def test_every_way_to_ask_for_safety_names_its_tests(level: str) -> None:
    (line,) = [line for line in TEXT.splitlines() if line.startswith((f"| `{level}`", f"| {level}"))]
    assert "::test_" in line
