"""What this copy of the package is, for those that run another: what people are told, and what must be the same."""

from __future__ import annotations

import functools
import zlib
from typing import Final

RELEASE: Final = "0.1.0"
"""Its version, as pyproject.toml has it; written here, because to look it up takes longer than to start an executor."""

PROTOCOL: Final = 2
"""Grows whenever what nodes ask of each other, or what clients send to executors, changes so that two cannot talk."""


@functools.cache
def layout() -> str:
    """Return what is the same for two copies that can share a node: the layout of its page, and what is said around it.

    It is part of the name of the embedded node's directory, so that copies with different ones run beside each other.
    """
    from cloudburst.page import Page, page_bytes

    page = bytearray(page_bytes(1))
    Page.format(page, 1, 0, 0)
    return f"{zlib.crc32(bytes(page[:8]) + b'%d %d %d' % (page_bytes(0), page_bytes(1), PROTOCOL)):08x}"
