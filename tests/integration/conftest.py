"""Every test here has a cluster directory of its own, as those of the embedded cluster have."""

from __future__ import annotations

from tests.anna.local.conftest import directory, place

__all__ = ["directory", "place"]
