"""The calls that a running call has begun: they stop with it when it is stopped, and go on after any other end.

The one rule: a future that nobody holds any more is not held here either. Source: DESIGN §6.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from cloudburst.page import Page

if TYPE_CHECKING:
    from cloudburst.futures import Future


class Children:
    """Those of the call that the main thread of an executor runs."""

    def __init__(self, page: Page, number: int) -> None:
        self._page = page
        self._number = number
        self._futures: weakref.WeakSet[Future] | None = None

    def add(self, future: Future) -> None:
        """Take in a call that has been begun."""
        if self._futures is None:
            self._futures = weakref.WeakSet()
        self._futures.add(future)

    def part(self) -> None:
        """Take in that the call has ended; its own are cancelled if it was stopped."""
        futures, self._futures = self._futures, None
        if futures is not None and self._page.doomed(self._number):
            for child in list(futures):
                child.cancel()
