"""An executor's clients of the store, connected when they are first needed.

The node publishes where the store is once it is there, and starts a new cache when one has ended: both are waited for,
so that a function that happens to be the first to ask is not told what its caller could do nothing about.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from cloudburst import config
from cloudburst.errors import UnavailableError
from cloudburst.page import Page

PAUSE_S: Final = 0.002


class Stores:
    """One process's clients. Raises UnavailableError when the node has no store, or no cache, for too long."""

    def __init__(self, page: Page, keys: str | None) -> None:
        self._page = page
        self._keys = keys
        self._lock = threading.Lock()
        self._open: dict[bool, Any] = {}

    def of(self, system: bool) -> Any:
        """Return the client through the node's cache; with `system`, the one of owners that may use reserved keys."""
        found = self._open.get(system)
        if found is None:
            with self._lock:
                found = self._open.get(system)
                if found is None:
                    found = self._open[system] = self._connect(system)
        return found

    def _connect(self, system: bool) -> Any:
        import anna
        from anna.errors import NoWorkers

        end = time.monotonic() + config.CONTROL_TIMEOUT_S
        why = "it has not published any"
        while time.monotonic() < end:
            addresses = self._page.store
            try:
                if addresses:
                    return anna.connect(addresses[system], system=system, keys=self._keys)
            except NoWorkers as fault:  # a cache that has just ended, whose successor comes
                why = str(fault)
            time.sleep(PAUSE_S)
        raise UnavailableError(f"the node has had no store for {config.CONTROL_TIMEOUT_S} s: {why}")
