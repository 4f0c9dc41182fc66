"""What user code prints: kept with the call that printed it, and passed on to the node with its author's name.

The text of one call is bounded and travels with its reply; a copy goes to the executor's real output, a pipe that the
node reads at a bounded pace, so a flood slows its author down and nobody else. What is printed while no call runs, by
threads that one has left behind, is nobody's: only the node gets it. Source: reliability C (output floods).
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from cloudburst.config import OUTPUT_BYTES_MAX
from cloudburst.logbook import NOBODY, TEXT_BYTES_MAX, Author, record


class Sheet:
    """What one invocation has printed, or several one after the other: what is kept of it, and its unfinished line."""

    __slots__ = ("author", "kept", "line", "lost")

    def __init__(self, author: Author = NOBODY) -> None:
        self.author = author
        self.kept = bytearray()
        self.line = bytearray()
        self.lost = 0

    def add(self, data: bytes, limit: int) -> None:
        """Keep as much of `data` as fits."""
        room = limit - len(self.kept)
        if len(data) > room:
            self.lost += len(data) - room
        self.kept += data[:room]


sheet: Final[ContextVar[Sheet | None]] = ContextVar("sheet", default=None)
"""Where what this context prints belongs; None: to the call that the main thread runs."""


class Output(io.TextIOBase):
    """A text stream that remembers what was written since it was last taken, up to a limit.

    `author` says whose it is that is written now in a context without a sheet of its own.
    """

    def __init__(self, fd: int, author: Callable[[], Author], limit_bytes: int = OUTPUT_BYTES_MAX) -> None:
        super().__init__()
        self._fd = fd
        self._author = author
        self._limit = limit_bytes
        self._main = Sheet()
        self.written = 0
        """Bytes passed on so far."""
        self._lock = threading.Lock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """UTF-8, whatever the locale."""
        return "utf-8"

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the pipe behind it."""
        return self._fd

    def isatty(self) -> bool:
        """It is not."""
        return False

    def write(self, text: str) -> int:
        """Keep `text`, or as much as fits, and pass it on."""
        data, own = text.encode("utf-8", "backslashreplace"), sheet.get()
        author = self._author() if own is None else own.author
        with self._lock:
            own = self._main if own is None else own
            if author != own.author:
                self._pass_on(own)
                own.author = author
            own.line += data
            if b"\n" in data or len(own.line) > TEXT_BYTES_MAX:
                self._pass_on(own)
            if author is not NOBODY:
                own.add(data, self._limit)
        return len(text)

    def take(self, own: Sheet | None = None) -> bytes:
        """Return what was kept since the last time, with a line about what was not; `own` None: of the main thread."""
        own = own or self._main
        if not own.kept:
            return b""
        with self._lock:
            self._pass_on(own)
            kept, lost = bytes(own.kept), own.lost
            own.kept.clear()
            own.lost = 0
        return kept + f"\n[truncated: {lost:,} more bytes]\n".encode() if lost else kept

    def _pass_on(self, own: Sheet) -> None:
        """Write what has gathered, as a rule a line, in one system call for each record."""
        data = bytes(own.line)
        own.line.clear()
        self.written += len(data)
        try:
            while data:
                written = record(time.time(), own.author, data[:TEXT_BYTES_MAX])
                data = data[TEXT_BYTES_MAX:]
                while written:
                    written = written[os.write(self._fd, written) :]
        except OSError:
            pass  # nobody reads: the node is ending, and this process with it
