"""What whoever has a run leaves in its directory, so that `cb down`, `status` and `reap` find it from another shell.

A file that says who that is and what, locked for as long as that process lives: one without a lock is of a process
that was killed, and counts for nothing. Source: SURFACE (cb up, cb down).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from cloudburst.burst.reaping import DESK, KNOWN, PREFIX, UP

STORE: Final = "-store"
"""What the names of the directories of nodes' stores end with."""


def runtime_directory() -> Path:
    """Return where directories of runs are: sockets in them must have short paths, private to this user."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    fits = os.path.isabs(runtime) and len(os.fsencode(runtime)) < 40 and os.access(runtime, os.W_OK)
    return Path(runtime if fits else "/tmp")


@dataclass(frozen=True, slots=True)
class Up:
    """A run: the process that has it, its directory, and those of its nodes on this machine.

    A `command` is ended from another shell; a program ends its own.
    """

    pid: int
    directory: Path
    nodes: tuple[str, ...]
    command: bool


class Word:
    """What this process says, until `take_back` or its end, of the run that it has."""

    def __init__(self, directory: Path, run: str, command: bool) -> None:
        new = directory / f"{UP}.new"
        self._path = directory / UP
        self._file: IO[str] = open(new, "w")  # noqa: SIM115  (it is locked as long as it is open)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        json.dump({"pid": os.getpid(), "run": run, "since": time.time(), "command": command}, self._file)
        self._file.flush()
        os.rename(new, self._path)  # so it is never seen without the lock

    def take_back(self) -> None:
        """Say no more."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def clusters() -> list[Up]:
    """Return the runs that commands of this user keep; what one that was killed has left is removed."""
    found = [cluster_in(path) for path in sorted(runtime_directory().glob(f"{PREFIX}*"))]
    return [one for one in found if one is not None and one.command]


def entrances() -> list[Path]:
    """Return, of each run that a command of this user keeps, the directory of a node on this machine."""
    return [one.directory / one.nodes[0] for one in clusters() if one.nodes]


def cluster_in(directory: Path) -> Up | None:
    """Return what runs in the directory of a run; None when it is none, or its process has ended."""
    try:
        if not directory.name.startswith(PREFIX) or os.stat(directory).st_uid != os.getuid():
            return None
        with open(directory / UP) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = json.load(file)
                return Up(int(said["pid"]), directory, _nodes(directory), bool(said["command"]))
        for name in (DESK, KNOWN, UP):
            (directory / name).unlink(missing_ok=True)
        os.rmdir(directory)
    except (OSError, ValueError, KeyError):
        pass  # not there, not this user's, being written or removed just now, or its nodes are still ending
    return None


def _nodes(directory: Path) -> tuple[str, ...]:
    """Return the names of the nodes there."""
    found = sorted(path.parent.name for path in directory.glob("*/lease.sock"))
    return tuple(name for name in found if not name.endswith(STORE))
