"""What `cb up` leaves in its run directory, so that `cb down` and `cb status` find it from another shell.

A file that says who runs there and what, locked for as long as that process lives: one without a lock is of a process
that was killed, and counts for nothing. Source: SURFACE (cb up, cb down).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PREFIX: Final = "cloudburst-"
"""What the names of directories of clusters begin with; a file elsewhere is none of ours."""
UP: Final = "up"


def runtime_directory() -> Path:
    """Return where directories of clusters are: sockets in them must have short paths, private to this user."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    fits = os.path.isabs(runtime) and len(os.fsencode(runtime)) < 40 and os.access(runtime, os.W_OK)
    return Path(runtime if fits else "/tmp")


@dataclass(frozen=True, slots=True)
class Up:
    """A cluster that a command keeps running: the command's process, its directory, and those of its nodes."""

    pid: int
    directory: Path
    nodes: tuple[str, ...]


@contextmanager
def leave_word(directory: Path, nodes: tuple[str, ...]) -> Iterator[None]:
    """Say, within this block, that this process runs a cluster in a directory."""
    new = directory / f"{UP}.new"
    with open(new, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump({"pid": os.getpid(), "nodes": nodes}, file)
        file.flush()
        os.rename(new, directory / UP)  # so it is never seen without the lock
        yield


def clusters() -> list[Up]:
    """Return the clusters that commands of this user keep running; what one that was killed has left is removed."""
    found = [cluster_in(path) for path in sorted(runtime_directory().glob(f"{PREFIX}*"))]
    return [one for one in found if one is not None]


def cluster_in(directory: Path) -> Up | None:
    """Return what runs in the directory of a cluster; None when it is none, or its process has ended."""
    try:
        if not directory.name.startswith(PREFIX) or os.stat(directory).st_uid != os.getuid():
            return None
        with open(directory / UP) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = json.load(file)
                return Up(int(said["pid"]), directory, tuple(map(str, said["nodes"])))
        os.unlink(directory / UP)
        os.rmdir(directory)
    except (OSError, ValueError, KeyError):
        pass  # not there, not this user's, being written or removed just now, or its nodes are still ending
    return None
