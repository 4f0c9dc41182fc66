"""The word count of docs/build.md and the directory of a greeter, built once for all tests, and what programs see."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUN_S = 100.0

Command = Callable[..., "subprocess.CompletedProcess[str]"]

PROJECT = """
[project]
name = "greeter"
version = "2.1"
requires-python = ">=3.11"
dependencies = ["msgpack>=1", "xxhash"]

[tool.cloudburst]
secrets = ["GREETER_KEY"]
set = { greeting = "Hello" }
test-data = "cases"
"""
MAIN = """
import json
import os
import time
from pathlib import Path

import msgpack
import xxhash

import cloudburst as cb
import words

try:
    import absent_accelerator
except ImportError:
    absent_accelerator = None


@cb.function
def greet(greeting, name):
    return f"{greeting}, {words.titled(name)}"


@cb.function
def mark(text):
    return xxhash.xxh32(text.encode()).hexdigest()


def stage(path: Path, greeting: str = "Hi"):
    time.sleep(float(os.environ.get("PAUSE", 0)))
    for word, times in sorted(json.loads(path.read_text()).items()):
        if word == "poison":
            raise ValueError(f"{word} in {path.name}")
        yield f"{greeting} {word} {times} {mark(word)}"


def main(name: str = "you", greeting: str = "Hi"):
    print(cb.call("greet", greeting, name), len(os.environ["GREETER_KEY"]))


def test():
    assert Path("one/expected").is_file()
    assert cb.call("greet", "a", "b") == "a, B"
"""


def example() -> str:
    """Return the program of the page."""
    (found,) = re.findall(r"^```python\n(# wordcount\.py\n.*?)^```", (ROOT / "docs/build.md").read_text(), re.M | re.S)
    return str(found)


def environment(home: Path) -> dict[str, str]:
    """Return what programs run in: nobody else's nodes and settings, and a cache that only these tests have."""
    return {
        "PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "PEX_ROOT": str(home.parent / "pex"),
        "XDG_RUNTIME_DIR": str(home), "CLOUDBURST_DIR": str(home / "node"), "ANNA_DIR": str(home / "store"),
    }  # fmt: skip


def run(home: Path, *words: object, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)), cwd=cwd or home, env=environment(home) | more, capture_output=True, text=True,
        timeout=RUN_S, check=False,
    )  # fmt: skip


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the program, books to count the words of, and what it is tested on."""
    home = tmp_path_factory.mktemp("b")
    (home / "wordcount.py").write_text(example())
    (home / "books").mkdir()
    (home / "books/ab.txt").write_text("a b a c a b\n")
    (home / "books/bd.txt").write_text("B d\n")
    (home / "tests/small/books").mkdir(parents=True)
    (home / "tests/small/books/x.txt").write_text("to be or not to be\n")
    (home / "tests/small/arguments").write_text("--n 2  # the two most frequent\n")
    (home / "tests/small/expected").write_text("       2 to\n       2 be\n")
    return home


@pytest.fixture(scope="package")
def wc(place: Path) -> Path:
    """The file that `cb build` makes of it."""
    built = run(
        place, sys.executable, "-m", "cloudburst", "build", "wordcount.py", "-o", "wc", "--test-data", "tests",
        "--set", "n=3",
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    return place / "wc"


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
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
