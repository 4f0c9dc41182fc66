"""The lab's fixtures: where the machine cannot have one, every test here is skipped with the reason."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.anna.local.conftest import directory, place
from tests.lab import disks, hosts

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


@pytest.fixture
def five_hosts() -> Iterator[hosts.Lab]:
    """Five hosts for nodes, h1 to h5, and one for clients."""
    if (reason := why_no_lab()) is not None:
        pytest.skip(f"NO LAB HERE: {reason}")
    with hosts.lab("h1", "h2", "h3", "h4", "h5", "clients") as made:
        yield made


@pytest.fixture
def new_disk(place: Path) -> Iterator[Callable[[str, int], disks.Disk]]:
    """Makes mounted disks of so many MiB, by name."""
    if (reason := disks.why_not()) is not None:
        pytest.skip(f"NO DISKS HERE: {reason}")
    with contextlib.ExitStack() as stack:

        def make(name: str, size_mib: int) -> disks.Disk:
            (place / name).mkdir()
            return stack.enter_context(disks.disk(place / name, size_mib))

        yield make


@pytest.fixture(scope="session")
def shim_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled disk-fault shim."""
    return disks.build_shim(tmp_path_factory.mktemp("faultshim"))
