"""Whether a node is at work, seen in its page: nobody has to be asked, and the node has nothing to do for it.

Source: DESIGN §6 (the node's page).
"""

from __future__ import annotations

from cloudburst.page import IDLE, Page


class Work:
    """What has been seen of the executors of one node."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._begun = 0

    def look(self) -> bool:
        """Return whether a call has begun since the last look, or runs now."""
        slots = range(self._page.own)
        begun = sum(self._page.describe(slot)[3] for slot in slots)
        grown, self._begun = begun > self._begun, begun
        return grown or any(self._page.activity(slot)[0] != IDLE for slot in slots)
