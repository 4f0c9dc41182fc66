"""A directory is built with what stands beside the program: its settings, secrets by name, tests, and no secrets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cloudburst.build.conftest import run

PROJECT = """
[project]
name = "greeter"
version = "2.1"
requires-python = ">=3.11"
dependencies = ["msgpack>=1"]

[tool.cloudburst]
secrets = ["GREETER_KEY"]
set = { greeting = "Hello" }
test-data = "cases"
"""
MAIN = """
import os
from pathlib import Path

import msgpack

import cloudburst as cb
import words

try:
    import absent_accelerator
except ImportError:
    absent_accelerator = None


@cb.function
def greet(greeting, name):
    return f"{greeting}, {words.titled(name)}"


def main(name: str = "you", greeting: str = "Hi"):
    print(cb.call("greet", greeting, name), len(os.environ["GREETER_KEY"]))


def test():
    assert Path("one/expected").is_file()
    assert cb.call("greet", "a", "b") == "a, B"
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("d")
    files = {
        "app/pyproject.toml": PROJECT, "app/main.py": MAIN,
        "app/words.py": "def titled(text):\n    return text.title()\n",
        "app/.env": "GREETER_KEY=marker-of-a-secret\n", "app/deploy.pem": "marker-of-a-secret\n",
        "app/notes.txt": "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG\n",
        "app/cases/one/expected": "Hello, Ann 3\n", "app/cases/one/arguments": "ann\n",
        "app/cases/wrong/expected": "Hi, Ann\nHi, Bob\n", "app/__pycache__/x.pyc": "",
    }  # fmt: skip
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    return home


@pytest.fixture(scope="module")
def greeter(source: Path) -> Path:
    built = run(source, sys.executable, "-m", "cloudburst", "build", "app", "-o", "app/greeter")
    assert built.returncode == 0, built.stderr
    left_out = [line for line in built.stderr.splitlines() if "left out" in line]
    assert "nothing in the file brings absent_accelerator, which it imports" in built.stderr
    assert left_out == [
        "cb build: left out .env: looks like a secret",
        "cb build: left out deploy.pem: looks like a secret",
        "cb build: left out notes.txt: looks like a secret (line 1)",
    ]
    return source / "app/greeter"


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
    assert (manifest["name"], manifest["version"], manifest["requires"]) == ("greeter", "2.1", ["msgpack>=1"])
