"""The word count of docs/build.md, built once for all tests, and what programs see of this machine."""

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
