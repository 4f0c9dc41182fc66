"""Keys of two clusters, made once: making some takes 20 ms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from anna import authority
from anna.gate import Right


@dataclass(frozen=True)
class SomeKeys:
    """Directories of keys: of one cluster for each right, and of another cluster."""

    admin: Path
    code: Path
    data: Path
    other: Path


@pytest.fixture(scope="session")
def some_keys(tmp_path_factory: pytest.TempPathFactory) -> SomeKeys:
    place = tmp_path_factory.mktemp("keys")
    authority.found(place / "admin")
    authority.found(place / "other")
    for right in (Right.CODE, Right.DATA):
        authority.issue(place / "admin", place / right.name.lower(), right.name.lower(), right)
    return SomeKeys(*(place / name for name in ("admin", "code", "data", "other")))
