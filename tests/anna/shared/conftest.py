"""What the tests of this directory count: the memories that they share, and not those that were shared before them."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.anna.shared.peer import mappings

Count = Callable[[int], int]


@pytest.fixture(autouse=True)
def shared() -> Count:
    """Return what counts the memories that a process has shared since the test began.

    A client that outlives tests has some from before, and so has every worker, which is forked from this process.
    """
    before = mappings(os.getpid())
    return lambda pid: mappings(pid) - before
