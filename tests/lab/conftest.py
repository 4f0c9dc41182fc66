"""The lab's fixtures: where the machine cannot have one, every test here is skipped with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from tests.anna.local.conftest import directory, place
from tests.lab import hosts

__all__ = ["directory", "place"]


@cache
def why_no_lab() -> str | None:
    return hosts.why_not()


@pytest.fixture
def three_hosts() -> Iterator[hosts.Lab]:
    """Three hosts for nodes, h1 to h3, and one for clients."""
    if (reason := why_no_lab()) is not None:
        pytest.skip(f"NO LAB HERE: {reason}")
    with hosts.lab("h1", "h2", "h3", "clients") as made:
        yield made
