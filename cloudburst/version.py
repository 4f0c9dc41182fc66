"""What this copy of the package is, for those that run another: what people are told, and what must be the same."""

from __future__ import annotations

from typing import Final

PROTOCOL: Final = 2
"""Grows whenever what nodes ask of each other, or what clients send to executors, changes so that two cannot talk."""


def release() -> str:
    """Return the version that is installed, "unknown" when this copy is not."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("cloudburst")
    except PackageNotFoundError:
        return "unknown"
