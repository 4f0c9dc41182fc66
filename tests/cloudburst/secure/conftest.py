"""A node that others can reach, under keys, and what is needed to come to it from another host."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.anna.secure.conftest import SomeKeys, some_keys
from tests.cloudburst.test_far_nodes import Program, two

__all__ = ["some_keys"]


@dataclass(frozen=True)
class Pair:
    """Two nodes under keys that reach each other by TCP alone, and where the first is reached."""

    first: Program
    second: Program
    address: str
    keys: SomeKeys


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
