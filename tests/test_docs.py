"""The README's and the guides' examples do what their comments say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from tests.anna.local.processes import eventually, serving

ROOT = Path(__file__).parent.parent
PROMISES = re.compile(r"print\(.*?\)\s*#\s*([^:;\n]+)")


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


EXAMPLES = [(f"README.md:{n}", code) for n, code in enumerate(blocks(ROOT / "README.md"))]


def test_the_readme_has_examples() -> None:
    assert len(EXAMPLES) >= 2
    assert all(PROMISES.search(code) for _, code in EXAMPLES)


@pytest.mark.parametrize(("name", "code"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_example_prints_what_its_comments_say(name: str, code: str) -> None:
    with tempfile.TemporaryDirectory(prefix="docs-") as directory:
        script = Path(directory) / "example.py"
        script.write_text(code)
        environment = os.environ | {
            "ANNA_DIR": f"{directory}/anna",
            "CLOUDBURST_DIR": f"{directory}/cloudburst",
            "PYTHONPATH": str(ROOT),
        }
        run = subprocess.run(
            [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [promise.strip() for promise in PROMISES.findall(code)]


def commands(path: Path) -> list[list[str]]:
    """Return the words of each line of a page's shell examples."""
    shell = re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in shell for line in block.splitlines()]


def test_nobody_is_told_to_install_this_library_by_its_name() -> None:
    """On PyPI both names are other people's projects: `pip install cloudburst` gets a stranger's code."""
    places = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*")]
    places += [path for package in ("anna", "cloudburst", "bench", "demos") for path in (ROOT / package).rglob("*.py")]
    wrong = re.compile(r"pip install[^`\n]*[\s'\"](?:cloudburst|anna)\b")
    found = [(path.name, said) for path in places if path.is_file() for said in wrong.findall(path.read_text())]
    assert found == []
    assert wrong.search("pip install 'cloudburst[ssh]'")


def test_the_readmes_nodes_find_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is written there, but for the directories and ports, which are the test's own."""
    monkeypatch.setenv("ANNA_DIR", str(tmp_path / "first"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    *serve, status = commands(ROOT / "README.md")
    ports: dict[str, str] = {}

    def here(word: str) -> str:
        if word.startswith("tcp://"):
            return ports.get(word, "tcp://127.0.0.1:0")
        return str(tmp_path / word.strip("/").replace("/", "-")) if word.startswith("/") else word

    with ExitStack() as nodes:
        for words in serve:
            assert words[:2] == ["anna", "serve"]
            (listened,) = (after for word, after in pairwise(words) if word == "--listen")
            _, started = nodes.enter_context(serving("--workers", "1", *map(here, words[2:])))
            ports[listened] = started["workers"][0][-1]
        arguments = [sys.executable, "-m", "anna.cli", *map(here, status[1:])]

        def both_are_shown() -> bool:
            run = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
            return run.returncode == 0 and f"on {len(serve)} nodes" in run.stdout

        eventually(both_are_shown, "the status shows both nodes")


def test_the_tour_names_files_that_are_there() -> None:
    tour = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:[\w]+/)*\w+\.pyx?)`", tour))
    sources = {
        str(path.relative_to(ROOT))
        for place in ("anna", "cloudburst", "demos", "tests")
        for path in (ROOT / place).rglob("*.py*")
    }
    assert len(named) > 30
    assert [name for name in sorted(named) if not any(f"/{source}".endswith(f"/{name}") for source in sources)] == []
