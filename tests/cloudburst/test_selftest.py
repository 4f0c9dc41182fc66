"""`cb selftest` uses all of a node of its own, and says which step went wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cloudburst import selftest
from cloudburst.cli import main

Output = pytest.CaptureFixture[str]

STEPS = ["start", "put and get", "merge", "call", "graph", "session", "killed executor", "large value", "end"]


@pytest.fixture(autouse=True)
def somewhere_else(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nodes that are started are there."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    monkeypatch.setenv("CLOUDBURST_DIR", str(directory / "node"))
    return directory


def test_every_step_is_right_and_nothing_is_left(somewhere_else: Path, capsys: Output) -> None:
    assert main(["selftest", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["ok"]) for one in said] == [(name, True) for name in STEPS], said
    assert os.listdir(somewhere_else) == []


def test_a_step_that_goes_wrong_is_named_and_the_others_are_tried(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(client: Any) -> str:
        client.put("selftest/lost", 1)
        client.put("selftest/lost", 2)
        selftest._same(client.get("selftest/lost"), 1, "what was put")
        return "found"

    chosen = {"lost": lose, "merge": selftest.STEPS["merge"]}
    monkeypatch.setattr(selftest, "STEPS", chosen)
    assert main(["selftest"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["ok", "start"], ["FAILED", "lost"], ["ok", "merge"], ["ok", "end"],
    ]  # fmt: skip
    assert lines[1].endswith("Wrong: what was put is 2, and must be 1")
    assert lines[-1] == "failed: lost"


def test_what_this_machine_cannot_have_is_an_environment_mismatch(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setenv("CLOUDBURST_SANDBOX", f"bwrap,read={directory}/absent")
    assert main(["selftest"]) == 3
    assert "which is no directory here" in capsys.readouterr().err


def test_a_place_that_there_is_not_is_a_usage_error(capsys: Output) -> None:
    assert main(["selftest", "--on", "mars"]) == 2
    assert "'mars'" in capsys.readouterr().err
