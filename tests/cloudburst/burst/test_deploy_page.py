"""docs/deploy.md does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "deploy.md").read_text()


def test_the_pages_program_prints_what_its_comment_says(directory: Path) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    script = directory / "program.py"
    script.write_text(code)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(directory), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.stdout) == ("", re.findall(r"# (.*)", code)[0] + "\n")
    assert [path.name for path in directory.iterdir()] == ["program.py"], "and leaves nothing"


def test_the_options_that_the_page_names_exist() -> None:
    said = {word for name in ("up", "hosts", "reap") for word in options_of(name)}
    assert set(re.findall(r"(?<=`)--[a-z-]+|(?<= )--[a-z-]+", PAGE)) <= said


def options_of(command: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cloudburst", command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return re.findall(r"--[a-z-]+", done.stdout)
