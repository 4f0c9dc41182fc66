"""What user code prints: kept with the call that printed it, and passed on to the node.

The text of one call is bounded and travels with its reply; a copy goes to the executor's real output, a pipe that the
node reads at a bounded pace, so a flood slows its author down and nobody else. Source: reliability C (output floods).
"""

from __future__ import annotations

import io
import os
import threading
from typing import Final

from cloudburst.config import OUTPUT_BYTES_MAX

LINE_BYTES_MAX: Final = 4096


class Output(io.TextIOBase):
    """A text stream that remembers what was written since it was last taken, up to a limit."""

    def __init__(self, fd: int, limit_bytes: int = OUTPUT_BYTES_MAX) -> None:
        super().__init__()
        self._fd = fd
        self._limit = limit_bytes
        self._kept = bytearray()
        self._line = bytearray()
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
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            room = self._limit - len(self._kept)
            if len(data) > room:
                self._lost += len(data) - room
            self._kept += data[:room]
            self._line += data
            if b"\n" in data or len(self._line) > LINE_BYTES_MAX:
                self._pass_on()
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
        """Write what has gathered, whole lines at a time, so that one print is one system call."""
        data = bytes(self._line)
        self._line.clear()
        self.written += len(data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            pass  # nobody reads: the node is ending, and this process with it
