"""Every test has a cluster directory of its own: short, because Unix sockets have short paths, and not the user's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def place() -> Iterator[Path]:
    """A new empty directory with a short path."""
    with tempfile.TemporaryDirectory(prefix="an", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a cluster directory, not made yet, which is `ANNA_DIR` for this test and its processes."""
    path = place / "c"
    monkeypatch.setenv("ANNA_DIR", str(path))
    monkeypatch.delenv("ANNA_ADDRESS", raising=False)
    return path
