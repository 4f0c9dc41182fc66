"""`cb check`: what it prints and which code it ends with; and the page that describes histories."""

from __future__ import annotations

import doctest
import io
import json
import re
from pathlib import Path

import pytest

from cloudburst.cli import main
from cloudburst.judge.history import FIELDS
from cloudburst.judge.writing import Writer

Output = pytest.CaptureFixture[str]
GUIDE = Path(__file__).parents[3] / "docs" / "histories.md"


@pytest.fixture
def torn(tmp_path: Path) -> str:
    """A history that is repeatable, and no more."""
    path = tmp_path / "history.jsonl"
    with Writer(path) as writer:
        writer.write("ann", [("write", "x", "v"), ("write", "y", "w")])
        writer.write("bob", [("read", "x", "v"), ("read", "y", None)])
    return str(path)


def test_exit_code_says_whether_the_level_that_was_asked_for_held(torn: str, capsys: Output) -> None:
    assert main(["check", torn, "--level", "repeatable"]) == 0
    assert main(["check", torn, "--level", "read-atomic"]) == 1
    assert main(["check", torn]) == 1
    assert capsys.readouterr().err == ""


def test_what_is_no_history_ends_with_usage_and_one_line(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"history": 1}\n{"session": "a"}\n')
    assert main(["check", str(path)]) == 2
    assert capsys.readouterr() == (
        "",
        "cb check: line 2, outcome: is None, and should be 'ok', 'failed' or 'unknown'\n",
    )
    assert main(["check", str(path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "HistoryError"
    assert main(["check", str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_json_has_the_levels_the_counts_and_the_words(torn: str, capsys: Output) -> None:
    assert main(["check", torn, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert {level: found["held"] for level, found in said["levels"].items()} == {
        "repeatable": True,
        "read-atomic": False,
        "causal": False,
        "read-your-writes": True,
        "monotonic-reads": True,
    }
    assert said["levels"]["read-atomic"]["violations"] == [
        {
            "kind": "fractured read",
            "line": 3,
            "session": "bob",
            "key": "y",
            "words": [
                "line 3 (session bob) reads 'y' as absent, though line 2 wrote 'w'",
                "  line 3 reads 'x' = 'v' of line 2",
            ],
        }
    ]
    assert said["counts"]["fractured_reads"] == 1


def test_so_many_violations_are_explained_as_were_asked_for(torn: str, capsys: Output) -> None:
    assert main(["check", torn, "--show", "0"]) == 1
    assert "though line 2 wrote" not in capsys.readouterr().out


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_how_far_it_is_goes_to_a_terminal_and_leaves_nothing_there(
    torn: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("cloudburst.judge.reading.PROGRESS_LINES", 2)
    assert main(["check", torn]) == 1
    assert "cb check: 2 lines read" in terminal.getvalue()
    assert "cb check: read-atomic" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\033[K")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_guides_history_is_judged_as_the_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("jsonl")
    (session,) = blocks("console")
    Path("history.jsonl").write_text(example)
    command, _, printed = session.partition("\n")
    assert command == "$ cb check history.jsonl"
    assert main(command.split()[2:]) == 1
    assert capsys.readouterr().out == printed


def test_the_guides_examples_of_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("pycon")
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(doctest.DocTestParser().get_doctest(example, {}, "histories.md", str(GUIDE), 0))
    assert runner.summarize(verbose=False).failed == 0


def test_the_guide_describes_every_field() -> None:
    assert [field for field in FIELDS if f"| `{field}` |" not in GUIDE.read_text()] == []
