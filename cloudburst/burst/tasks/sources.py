"""Where the items of `cb map` come from: words, or lines of a file. (What comes from a stage before: `pipes`.)

The one rule: nothing is read before there is room for it, so that endless input needs no endless memory.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from cloudburst.burst.tasks.items import Item, Keys, item_of

READ_BYTES: Final = 64 * 1024
AT_ONCE: Final = 64
"""So many items are read at a time, and then what has ended meanwhile is looked at."""
LINE_BYTES_MAX: Final = 64 * 1024

Send = Callable[[bytes, bytes], str]


class Source(Protocol):
    """Gives items."""

    ended: bool
    """Whether no more will come."""

    def fds(self) -> list[int]:
        """Return which descriptors become readable when there is more."""

    def take(self, room: int, send: Send | None) -> list[Item]:
        """Return up to `room` items, without waiting."""

    def done(self, item: Item) -> None:
        """Take in that an item is settled."""


class Words:
    """Items that are known from the beginning."""

    def __init__(self, words: Iterable[str], keys: Keys) -> None:
        self._words = deque(words)
        self._keys = keys
        self._number = 0
        self.total = len(self._words)
        self.ended = not self._words

    def fds(self) -> list[int]:
        """Return nothing: there is nothing to wait for."""
        return []

    def take(self, room: int, send: Send | None) -> list[Item]:
        """Return up to `room` items."""
        items = []
        for _ in range(min(room, AT_ONCE, len(self._words))):
            items.append(item_of(self._words.popleft(), self._number, self._keys, send))
            self._number += 1
        self.ended = not self._words
        return items

    def done(self, item: Item) -> None:
        """Take in that an item is settled."""


class Lines:
    """Items that come line by line on a descriptor, or with `end` b"\\0" as `find -print0` writes them."""

    def __init__(self, fd: int, keys: Keys, end: bytes = b"\n", begun: bytes = b"") -> None:
        self._fd = fd
        self._keys = keys
        self._end = end
        self._rest = begun
        self._lines: deque[str] = deque()
        self._number = 0
        self._closed = False
        self.ended = False
        self._cut()

    def fds(self) -> list[int]:
        """Return the descriptor, while it may have more."""
        return [] if self._closed or self._lines else [self._fd]

    def take(self, room: int, send: Send | None) -> list[Item]:
        """Return up to `room` items. Raises ValueError for a line that is too long."""
        if not self._lines and not self._closed and room and select.select([self._fd], [], [], 0)[0]:
            data = os.read(self._fd, READ_BYTES)
            self._closed = not data
            self._rest += data
            self._cut()
        items: list[Item] = []
        while self._lines and len(items) < min(room, AT_ONCE):
            items.append(item_of(self._lines.popleft(), self._number, self._keys, send))
            self._number += 1
        self.ended = self._closed and not self._lines
        return items

    def _cut(self) -> None:
        *lines, self._rest = self._rest.split(self._end)
        if self._closed and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        if len(self._rest) > LINE_BYTES_MAX:
            raise ValueError(f"a line of the input has more than {LINE_BYTES_MAX:,} bytes, which is line_bytes_max")
        self._lines += [line.decode(errors="surrogateescape") for line in lines if line]

    def done(self, item: Item) -> None:
        """Take in that an item is settled."""
