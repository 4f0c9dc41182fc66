"""What a node writes about itself: as text, or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import anna
from anna.logs import EVENTS, Event, JsonFormatter
from tests.anna.local.processes import PATIENCE_S, Family, eventually, serving

KEYS = ["time", "level", "logger", "node", "worker", "event", "fields", "message"]


def lines_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Stop a node and return what it logged; every line must be an object with the same keys."""
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert process.stderr is not None
    lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    for line in lines:
        assert list(line) == KEYS, line
        assert line["event"] is None or line["event"] in EVENTS
        assert len(line["node"]) == 16
    return lines


def events(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line["fields"] for line in lines if line["event"] == event]


def test_a_node_tells_of_its_start_its_stop_and_a_worker_that_was_killed(directory: Path) -> None:
    """D20: a stop is clean, and told as one."""
    with serving("--workers", "2", "--log-format", "json") as (process, started):
        victim = Family(process.pid).workers[0]
        os.kill(victim.pid, signal.SIGKILL)
        assert victim.has_ended(PATIENCE_S)

        def restarted() -> bool:
            with anna.connect() as kvs:
                return all("error" not in worker for worker in kvs.status(timeout=0.5))

        eventually(restarted, "the worker was started again")
        lines = lines_of(process)
    assert events(lines, "start") == [{"workers": 2, "directory": started["directory"]}]
    (ended,) = events(lines, "worker-ended")
    assert (ended["pid"], ended["code"]) == (victim.pid, -signal.SIGKILL)
    (again,) = events(lines, "worker-started")
    assert again["seat"] == ended["seat"]
    assert events(lines, "stop") == [{"signals": ["SIGTERM"]}]


def test_a_node_tells_who_joins_and_leaves_and_when_it_has_its_keys(place: Path) -> None:
    with serving("--dir", f"{place}/a", "--workers", "1", "--log-format", "json") as (first, started):
        seed = started["workers"][0][0]
        with anna.connect(seed) as kvs:
            for number in range(100):
                kvs.put(f"k{number}", number)
        with serving("--dir", f"{place}/b", "--workers", "1", "--log-format", "json", "--join", seed) as (second, _):

            def joined() -> bool:
                with anna.connect(seed) as kvs:
                    return len(kvs.view.serving) == 2

            eventually(joined, "the second node has joined")
            told = lines_of(second)
        lines = lines_of(first)
    node = told[0]["node"]
    assert [node in view["joined"] for view in events(lines, "view")].count(True) == 1
    assert [node in view["left"] for view in events(lines, "view")].count(True) == 1
    versions = [view["version"] for view in events(lines, "view")]
    assert versions == sorted(set(versions))
    assert events(told, "handoff-ended")[0]["keys"] > 0


def test_a_restart_tells_how_much_came_back_in_what_time(directory: Path, place: Path) -> None:
    arguments = ("--workers", "1", "--data", f"{place}/data", "--log-format", "json")
    with serving(*arguments) as (process, _):
        with anna.connect() as kvs:
            for number in range(50):
                kvs.put(f"k{number}", number, ack="disk")
        lines_of(process)
    with serving(*arguments) as (process, _):
        with anna.connect() as kvs:
            assert kvs.get("k49") == 49
        lines = lines_of(process)
    (recovery,) = events(lines, "recovery")
    assert recovery["keys"] == 50
    assert 0 < recovery["batches"] <= 50
    assert 0 <= recovery["seconds"] < PATIENCE_S


def test_text_is_what_people_get(directory: Path) -> None:
    with serving("--workers", "1") as (process, _):
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None
        assert "anna.supervisor INFO stopping: SIGTERM" in process.stderr.read()


def test_an_error_is_one_line_too() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record = logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, "it %s", ("failed",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    read = json.loads(line)
    assert (read["message"], read["level"], read["event"]) == ("it failed", "error", None)
    assert read["error"].endswith("ValueError: first\nsecond")


def test_an_event_that_is_not_documented_is_our_own_bug() -> None:
    with pytest.raises(AssertionError):
        Event.of("no-such-event")
