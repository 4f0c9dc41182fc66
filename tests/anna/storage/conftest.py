"""A directory for tests that need no real disk: in memory where there is such a file system, as fsync is free there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.anna.storage.seats import IN_MEMORY


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="seat-", dir=IN_MEMORY) as directory:
        yield Path(directory)
