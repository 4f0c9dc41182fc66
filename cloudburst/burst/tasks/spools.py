"""Files that programs write into or read, each used again when nobody else has it open any more.

The one rule: what a program has left running can never write into another task's result. A program gets a descriptor of
its own of a file without a name; when its task is over, the kernel is asked for a lease on the file, which nobody gets
while another has it open. A file that a program had as input is, in the same way, written anew for the next one. Where
there are no leases, each task has new files. Why not always: file systems keep away from inodes that were freed a
moment ago, so making and removing files took a tenth of a task's processor time. Source: decision record 0047.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from stat import S_ISREG
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
            size = os.fstat(file.fileno()).st_size
            if size <= SPOOL_BYTES_KEPT and _is_only_here(file):
                if size:
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


def write_anew(path: str, content: bytes, before: str | None) -> None:
    """Write a file; it is the one that was at `before`, if that may be, and nothing is left there. Raises OSError."""
    if before is not None:
        try:
            with FileIO(os.open(before, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+") as file:
                found = os.fstat(file.fileno())
                if S_ISREG(found.st_mode) and found.st_nlink == 1 and _is_only_here(file):
                    os.rename(before, path)
                    before = None
        except OSError:
            pass  # it is gone, or no file any more, or not to be read
        if before is not None:
            _remove(before)
    with open(path, "wb") as new:
        new.write(content)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _is_only_here(file: FileIO) -> bool:
    """Whether no other descriptor of a file is open, in any process, than the given one and its copies."""
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
