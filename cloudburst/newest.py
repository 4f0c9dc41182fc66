"""What was newest of each function's record that this process has seen: an older one is refused, though it is signed.

The one rule: a record's place in the order is in what is signed, (version, revision), and only grows. In the store the
greater wins, so writing an older one changes nothing; who removes it first, and puts an older one there, is noticed by
everybody who has seen the newer. A pure core. Source: docs/decisions/0049.
"""

from __future__ import annotations

from typing import Final

from cloudburst.errors import NotSigned

Order = tuple[int, int]
"""Which registration of a name it is, and which amendment of that: poisoned, removed."""

SEEN_MAX: Final = 65_536
"""So many names and versions are remembered, those seen last."""


class Newest:
    """The greatest order seen under each key."""

    def __init__(self, most: int = SEEN_MAX) -> None:
        self._seen: dict[str, Order] = {}
        self._most = most

    def of(self, key: str) -> Order:
        """Return it; (0, 0) when nothing was seen."""
        return self._seen.get(key, (0, 0))

    def see(self, key: str, order: Order) -> None:
        """Take in what stands under a key. Raises NotSigned when it is older than what has stood there."""
        newest = self._seen.pop(key, order)
        self._seen[key] = max(newest, order)
        if len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]
        if order < newest:
            was, now = (f"version {version}.{revision}" for version, revision in (newest, order))
            raise NotSigned(f"it is {now}, and {was} has been here: somebody has put an older one back")
