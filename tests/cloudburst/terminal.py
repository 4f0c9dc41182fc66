"""Runs the scripts of a page as their readers would, and compares what they print with what the page shows.

A script is a fenced block of Python whose first line is a comment with its file name; what it prints on a terminal
follows in a `console` block. Frames of the library itself are left out of tracebacks, and what differs from run
to run (pids, times, executors, versions) counts as equal.
`python -m tests.cloudburst.terminal docs/failures.md` writes what is printed now
into the page.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = re.compile(
    r"^```python\n# (?P<name>\w+\.py)\n(?P<code>.*?)^```\n\n```console\n(?P<shown>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
RUN_S = 60.0
LIBRARY = re.compile(
    rf'^ *File "(?:{re.escape(str(ROOT))}/(?:anna|cloudburst)|<frozen|[^"]*/lib/python)[^\n]*\n'
    r"(?: {4,}(?! *File)[^\n]*\n)*",
    re.MULTILINE,
)
VARYING = (
    (re.compile(r"\b(executor|pid) \d+"), r"\1 N"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "ID"),
    (re.compile(r"\b\d+\.\d+ s\b"), "N s"),
    (re.compile(r"\b(cpython|Python) \d+\.\d+(\.\d+)?"), r"\1 N"),
    (re.compile(r"cloudpickle \d+"), "cloudpickle N"),
    (re.compile(r"which \S+ \(Python"), "which HOST (Python"),
    (re.compile(r"(?<=does not have; ).*"), "…"),
    (re.compile(r"^ *[~^]+ *\n", re.MULTILINE), ""),
)  # fmt: skip


def scripts(page: str) -> list[re.Match[str]]:
    """Return the scripts of a page, in their order."""
    return list(SCRIPT.finditer(page))


def run(name: str, code: str) -> str:
    """Return what a script prints, its own output and errors together, on a node and a store of its own."""
    directory = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
    try:
        (directory / name).write_text(f"# {name}\n{code}")
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(directory), "PYTHONPATH": str(ROOT),
            "CLOUDBURST_DIR": str(directory / "node"), "ANNA_DIR": str(directory / "store"),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, name], cwd=directory, env=environment, timeout=RUN_S, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return f"$ python {name}\n" + LIBRARY.sub("", done.stdout.replace(f"{directory}/", ""))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def alike(text: str) -> str:
    """Return `text` without what differs from run to run."""
    for pattern, instead in VARYING:
        text = pattern.sub(instead, text)
    return text


def rewrite(path: Path, only: list[str]) -> None:
    """Run the scripts of a page, and write what they print into it; `only` are the names of some."""
    page = path.read_text()
    for found in reversed(scripts(page)):
        if not only or found["name"] in only:
            start, end = found.span("shown")
            page = page[:start] + run(found["name"], found["code"]) + page[end:]
    path.write_text(page)


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]), sys.argv[2:])
