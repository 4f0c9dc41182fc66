"""Keys in order, over all workers: pages of each, merged.

The one rule: a key is given once everything before it has been given, so a page is asked for only when the merge has
come to its worker's end. A key that several workers hold is given once. As many nodes may fail as there are further
copies of each key; and when the view changes, the scan begins anew after the last key that it gave. Pure: a driver
asks for the pages that are wanted, and looks for a newer view when answers tell of one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from anna.config import SCAN_KEYS_MAX
from anna.messages import View


class Scan:
    """The merge of the workers' pages: `wanted` says which are needed, `take` takes one, `ready` gives keys."""

    def __init__(self, view: View, prefix: str | bytes, limit: int | None) -> None:
        if limit is not None and limit < 0:
            raise ValueError(f"limit is {limit}; it must be 0 or more")
        self.prefix = prefix.encode() if isinstance(prefix, str) else bytes(prefix)
        self.left = limit
        self._latest: bytes | None = None
        self.restart(view)

    def restart(self, view: View) -> None:
        """Go on with the workers of another view, after the last key that was given."""
        self.view = view
        self._failed: set[int] = set()
        serving = [view.index_of(worker.worker_id) for node in view.serving for worker in node.workers]
        self._cursors: dict[int, bytes] = dict.fromkeys(serving, self._latest or b"")
        self._pages: dict[int, list[bytes]] = {}

    @property
    def page_keys(self) -> int:
        """How many keys to ask for at once."""
        return SCAN_KEYS_MAX if self.left is None else min(self.left, SCAN_KEYS_MAX)

    def wanted(self) -> list[tuple[int, bytes]]:
        """Return [(place, key after which to go on), …]: what the next keys wait for; empty at the end."""
        if self.left == 0:
            return []
        return [(place, cursor) for place, cursor in self._cursors.items() if place not in self._pages]

    def take(self, place: int, keys: list[bytes], more: bool) -> bool:
        """Take the page of one worker; False when it helps no further now, and the same is to be asked for again."""
        if keys:
            self._pages[place] = keys
            self._cursors[place] = keys[-1]
        elif more:
            return False
        if not more:
            del self._cursors[place]
        return True

    def can_spare(self, place: int) -> bool:
        """A worker gave no page: whether the others have copies of all that it holds, and it is done without."""
        worker = self.view.workers[place].worker_id
        failed = self._failed | {self.view.node_of(worker).node_id if self.view.copies_apart else worker}
        if len(failed) >= self.view.copies_least:
            return False
        self._failed = failed
        self._cursors.pop(place, None)
        self._pages.pop(place, None)
        return True

    def ready(self) -> Iterator[str | bytes]:
        """Give the keys that no page which is still to come can precede."""
        # A worker with more to come bounds what is certain: beyond its page's end it may have anything.
        ends = [self._cursors[place] for place in self._pages if place in self._cursors]
        end = min(ends) if ends else None
        pages, self._pages = self._pages, {}
        for place, keys in pages.items():
            rest = [] if end is None else [key for key in keys if key > end]
            if rest:
                self._pages[place] = rest
        for key in heapq.merge(*([key for key in keys if end is None or key <= end] for keys in pages.values())):
            if key == self._latest:
                continue
            if self.left is not None:
                if self.left == 0:
                    return
                self.left -= 1
            self._latest = key
            yield text_of(key)


def text_of(key: bytes) -> str | bytes:
    """Return a key as text when it is valid UTF-8."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key
