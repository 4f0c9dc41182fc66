"""A node that others can reach, under keys, and what is needed to come to it from another host."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from anna import authority
from anna.gate import Right
from tests.cloudburst.test_far_nodes import Program, two


@dataclass(frozen=True)
class SomeKeys:
    """Directories of keys: of one cluster for each right, and of another cluster."""

    admin: Path
    code: Path
    data: Path
    other: Path


@dataclass(frozen=True)
class Pair:
    """Two nodes under keys that reach each other by TCP alone, and where the first is reached."""

    first: Program
    second: Program
    address: str
    keys: SomeKeys


@pytest.fixture(scope="package")
def some_keys(tmp_path_factory: pytest.TempPathFactory) -> SomeKeys:
    place = tmp_path_factory.mktemp("keys")
    authority.found(place / "admin")
    authority.found(place / "other")
    for right in (Right.CODE, Right.DATA):
        authority.issue(place / "admin", place / right.name.lower(), right.name.lower(), right)
    return SomeKeys(*(place / name for name in ("admin", "code", "data", "other")))


@pytest.fixture(scope="package")
def pair(some_keys: SomeKeys) -> Iterator[Pair]:
    """Made once: two nodes take a second to start."""
    directory = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
    made: list[Program] = []

    def begin(name: str, *words: str) -> Program:
        made.append(Program(directory / name, name, *words))
        made[-1].read_until("(runs in)")
        return made[-1]

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ANNA_KEYS", str(some_keys.admin))
            first, second = two(begin)
        yield Pair(first, second, first.read_until(r"--join (tcp://127\.0\.0\.1:\d+) --keys"), some_keys)
    finally:
        for one in made:
            one.stop(signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)
