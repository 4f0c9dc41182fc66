"""`./wc test`: what a built file was packed with to be tested, run as a user would run it.

The one rule: every case has a fresh copy of its data and a node of its own, so that none sees what another has left. A
directory of the test data with a file `expected` is a case: what the application prints when it is run there, with
the words of the file `arguments`, must be what that holds. A function `test` of the application is a case as well.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudburst import config
from cloudburst.build.entry import target
from cloudburst.build.manifest import SOURCES, TESTS, Manifest
from cloudburst.commandline import FAILED, OK, USAGE

EXPECTED: Final = "expected"
ARGUMENTS: Final = "arguments"
SHOWN_LINES: Final = 20


@dataclass(frozen=True, slots=True)
class Case:
    """`data` is the directory that it runs in a copy of; None for one that has no data."""

    name: str
    data: Path | None
    words: tuple[str, ...]
    expected: str | None
    """What it prints; None when it only must not fail."""


def main(manifest: Manifest, place: Path, words: Sequence[str]) -> int:
    """Run the cases, or those that are named; say what each came to; return the exit code."""
    as_json = "--json" in words
    names = [word for word in words if word != "--json"]
    cases = list(cases_of(manifest, place))
    chosen = [one for one in cases if not names or one.name in names]
    if not cases:
        return _refuse(manifest, f"there is nothing to test: build it with --test-data DIR, or with a function `test`"
                                 f" in {manifest.main}")  # fmt: skip
    if unknown := sorted(set(names) - {one.name for one in cases}):
        return _refuse(manifest, f"no case {', '.join(unknown)}; there are {', '.join(one.name for one in cases)}")
    results = []
    for case in chosen:
        begun = time.monotonic()
        fault = run(case, manifest, place)
        took = time.monotonic() - begun
        results.append({"name": case.name, "ok": not fault, "seconds": round(took, 3), "fault": fault})
        if not as_json:
            print(f"{'ok' if not fault else 'FAILED':<7} {case.name}  {took:.1f} s" + (f"\n{fault}" if fault else ""))
    failed = sum(not one["ok"] for one in results)
    print(json.dumps(results) if as_json else f"{len(results) - failed} of {len(results)} passed")
    return FAILED if failed else OK


def cases_of(manifest: Manifest, place: Path) -> Iterator[Case]:
    """Yield what can be tested, in the order of the names."""
    data = place / TESTS
    for expected in sorted(data.rglob(EXPECTED)):
        arguments = expected.parent / ARGUMENTS
        words = shlex.split(arguments.read_text(), comments=True) if arguments.is_file() else []
        name = expected.parent.relative_to(data).as_posix()
        yield Case("data" if name == "." else name, expected.parent, tuple(words), expected.read_text())
    if "test" in manifest.functions:
        yield Case("test()", data if data.is_dir() else None, ("test",), None)


def run(case: Case, manifest: Manifest, place: Path) -> str:
    """Run one case; return what is wrong, "" when nothing is."""
    with tempfile.TemporaryDirectory(prefix="cb-test-") as made:
        here = Path(made, "data")
        if case.data is None:
            here.mkdir()
        else:
            shutil.copytree(case.data, here)
        environment = os.environ | {"CLOUDBURST_DIR": f"{made}/node", "ANNA_DIR": f"{made}/store"}
        words = target(manifest, place / SOURCES / manifest.main, case.words)
        command = [sys.executable, "-I", "-m", "cloudburst", "run", *words]
        try:
            done = subprocess.run(
                command, cwd=here, env=environment, text=True, timeout=config.CASE_TIMEOUT_S, check=False,
                stdin=subprocess.DEVNULL, capture_output=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"it has not ended within {config.CASE_TIMEOUT_S:g} s"
    if done.returncode != 0:
        return f"it ended with {done.returncode}:\n{_tail(done.stderr or done.stdout)}"
    if case.expected is None or done.stdout == case.expected:
        return ""
    wanted, printed = case.expected.splitlines(), done.stdout.splitlines()
    differing = list(difflib.unified_diff(wanted, printed, "expected", "printed", lineterm=""))
    return "\n".join(differing[:SHOWN_LINES]) or "it prints the same lines, but ends them differently"


def _tail(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-SHOWN_LINES:])


def _refuse(manifest: Manifest, why: str) -> int:
    sys.stderr.write(f"{manifest.name} test: {why}\n")
    return USAGE
