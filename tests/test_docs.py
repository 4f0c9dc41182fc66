"""The README's and the guides' examples do what their comments say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

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
