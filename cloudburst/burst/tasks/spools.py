"""Files without names that programs write into, each of them used again when nobody else has it open any more.

The one rule: what a program has left running can never write into another task's result. A program gets a descriptor of
its own of the file; when its task is over, the kernel is asked for a lease on it, which nobody gets while another has
it open. Where there are no leases, each task has new files. Why not always: file systems keep away from inodes that
were freed a moment ago, so making two for each task took a tenth of its processor time. Source: decision record 0047.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Final

SPOOL_BYTES_KEPT: Final = 1024 * 1024
"""A file in which more was written is not used again: to empty it takes longer than to make another one."""


class Spools:
    """The files of one worker, on the file system of `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._free: list[FileIO] = []

    def take(self) -> FileIO:
        """Return an empty file. Raises OSError."""
        return self._free.pop() if self._free else tempfile.TemporaryFile(dir=self._directory, buffering=0)

    def give_back(self, file: FileIO) -> None:
        """Keep a file for the next one who asks, if that may be; else close it."""
        try:
            if os.fstat(file.fileno()).st_size <= SPOOL_BYTES_KEPT and _is_only_here(file):
                file.truncate(0)
                self._free.append(file)
                return
        except OSError:
            pass
        file.close()

    def close(self) -> None:
        """Close all that nobody has taken."""
        while self._free:
            self._free.pop().close()


@contextmanager
def opened(*files: FileIO) -> Iterator[list[int]]:
    """Open files a second time, as programs shall have them, while this lasts. Raises OSError."""
    fds: list[int] = []
    try:
        for file in files:
            fds.append(os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDWR | os.O_CLOEXEC))
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def _is_only_here(file: FileIO) -> bool:
    """Whether no other descriptor of a file is open, in any process, than the given one and its copies."""
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
