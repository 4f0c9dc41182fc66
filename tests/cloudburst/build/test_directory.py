"""A directory is built with what stands beside the program: its settings, secrets by name, tests, and no secrets."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cloudburst.build.conftest import run


def test_a_directory_is_one_program_with_its_modules_and_settings(greeter: Path, source: Path) -> None:
    done = run(source, greeter, "run", "bob", GREETER_KEY="123")
    assert (done.stdout, done.stderr) == ("Hello, Bob 3\n", "")


def test_its_tests_are_cases_with_data_and_a_function(greeter: Path, source: Path) -> None:
    done = run(source, greeter, "test", "one", "test()", "--json", GREETER_KEY="123")
    assert [(one["name"], one["fault"]) for one in json.loads(done.stdout)] == [("one", ""), ("test()", "")]
    assert done.returncode == 0


def test_a_case_that_prints_something_else_fails_and_shows_the_difference(greeter: Path, source: Path) -> None:
    done = run(source, greeter, "test", "wrong", GREETER_KEY="123")
    assert done.returncode == 1
    assert "FAILED  wrong" in done.stdout
    assert "-Hi, Ann\n-Hi, Bob\n+Hello, You 3\n" in done.stdout


def test_a_secret_that_is_needed_and_not_there_is_said_before_anything_starts(greeter: Path, source: Path) -> None:
    done = run(source, greeter, "run", "bob")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "greeter: GREETER_KEY is not in the environment, and needed: GREETER_KEY=… greeter run\n"
    )
    assert "secrets    GREETER_KEY (from the environment)" in run(source, greeter, "info").stdout


def test_only_what_belongs_to_the_application_is_inside(greeter: Path, source: Path) -> None:
    manifest = json.loads(run(source, greeter, "info", "--json").stdout)
    assert sorted(manifest["files"]) == [
        "app/main.py", "app/pyproject.toml", "app/words.py", "test-data/one/arguments", "test-data/one/expected",
        "test-data/wrong/expected",
    ]  # fmt: skip
    assert (manifest["name"], manifest["version"], manifest["requires"]) == ("greeter", "2.1", ["msgpack>=1", "xxhash"])
