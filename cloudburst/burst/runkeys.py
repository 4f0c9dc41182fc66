"""The keys of one run of machines: an authority in this process's memory, and what it has made for each host.

The one rule: the authority's private key leaves this process in no way, and ends with it; a host has the keys of its
own name only, and they end a day later at most. Whoever holds the connection to a host gives it new ones in time.
Source: reliability D (keys); docs/decisions/0041.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from anna.gate import Right
from cloudburst import config

if TYPE_CHECKING:
    from anna.authority import Issuer

KeyFiles = Mapping[str, str]
"""The files of a directory of keys, by name."""


class RunKeys:
    """Makes the keys of a run; from any thread. Nothing is made, and nothing loaded, before the first is asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._issuer: Issuer | None = None
        self._due: dict[str, float] = {}

    @property
    def issuer(self) -> Issuer:
        """The authority."""
        with self._lock:
            if self._issuer is None:
                from anna.authority import Issuer

                self._issuer = Issuer.fresh()
            return self._issuer

    def host(self, name: str) -> KeyFiles:
        """Return new keys for a host, which may be a node with them."""
        return self._issue(name, Right.ADMIN)

    def client(self, name: str) -> KeyFiles:
        """Return new keys for programs on this machine, which may register and call."""
        return self._issue(name, Right.CODE)

    def _issue(self, name: str, right: Right) -> KeyFiles:
        files = self.issuer.issue(name, right, timedelta(seconds=config.RUN_KEYS_S))
        self._due[name] = time.time() + config.RUN_KEYS_S / 2
        return files

    def due(self, name: str) -> bool:
        """Whether what was made for somebody has half of its time behind it."""
        return time.time() >= self._due.get(name, float("inf"))

    def __reduce__(self) -> Any:
        raise TypeError("the authority of a run stays in its process")

    def __repr__(self) -> str:
        return "<the keys of a run>"
