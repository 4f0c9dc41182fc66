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

from cloudburst.config import OUTPUT_BYTES_MAX
from cloudburst.logbook import NOBODY, TEXT_BYTES_MAX, Author, record


class Output(io.TextIOBase):
    """A text stream that remembers what was written since it was last taken, up to a limit.

    `author` says whose it is that is written now.
    """

    def __init__(self, fd: int, author: Callable[[], Author], limit_bytes: int = OUTPUT_BYTES_MAX) -> None:
        super().__init__()
        self._fd = fd
        self._author = author
        self._limit = limit_bytes
        self._kept = bytearray()
        self._line = bytearray()
        self._line_author = NOBODY
        self._lost = 0
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
        data, author = text.encode("utf-8", "backslashreplace"), self._author()
        with self._lock:
            if author != self._line_author:
                self._pass_on()
                self._line_author = author
            self._line += data
            if b"\n" in data or len(self._line) > TEXT_BYTES_MAX:
                self._pass_on()
            if author is NOBODY:
                return len(text)
            room = self._limit - len(self._kept)
            if len(data) > room:
                self._lost += len(data) - room
            self._kept += data[:room]
        return len(text)

    def take(self) -> bytes:
        """Return what was kept since the last time, with a line about what was not."""
        if not self._kept:
            return b""
        with self._lock:
            self._pass_on()
            kept, lost = bytes(self._kept), self._lost
            self._kept.clear()
            self._lost = 0
        return kept + f"\n[truncated: {lost:,} more bytes]\n".encode() if lost else kept

    def _pass_on(self) -> None:
        """Write what has gathered, as a rule a line, in one system call for each record."""
        data = bytes(self._line)
        self._line.clear()
        self.written += len(data)
        try:
            while data:
                written = record(time.time(), self._line_author, data[:TEXT_BYTES_MAX])
                data = data[TEXT_BYTES_MAX:]
                while written:
                    written = written[os.write(self._fd, written) :]
        except OSError:
            pass  # nobody reads: the node is ending, and this process with it
