"""What is left of runs on a host, found by the names of their directories, and ended.

The one rule: it needs nothing but Python, so that it can be sent to a host as text and run there, whatever is or is not
installed; it imports nothing of ours. Every run's directory has a name that begins in the same way. Whoever has a run
holds the lock of the file `up` in it, which the kernel gives back; a run whose file is not locked is over. Every other
process of a run has the run's directory among its words. Processes are ended by their pidfds. Values that a node kept
on disk and in memory are nobody's when the lock is free that it has on the directory on disk; nor is the directory of
a worker.

As a program: `reap JSON` answers with one line of JSON; `guard DIRECTORY UNTIL GRACE` ends what is left of a run once
its holder has ended, and the run and its holder when its time is over. Source: burst-systems §5.5; docs/decisions/0036.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

PREFIX: Final = "cloudburst-run-"
"""What the names of runs' directories begin with; a file elsewhere is none of ours."""
UP: Final = "up"
DESK: Final = "desk.sock"
KNOWN: Final = "known_hosts"
END_S: Final = 20.0
"""How long who has a run may take to end it when told to, calls that run there included."""
KILLED_S: Final = 5.0
MEMORY: Final = "/dev/shm"
SPILLED: Final = "-spill"
"""What the names of nodes' directories on disk end with; without it, they are those in memory."""
WORKER: Final = "cb-map-"
"""What the names of the directories of the workers of `cb map` begin with."""
HELD_MODE: Final = 0o700 | stat.S_ISVTX
"""The bit says that whoever has it has it locked."""


@dataclass(frozen=True, slots=True)
class Left:
    """A run that was found on this host: who has it (0 for nobody), since when, and its processes."""

    run: str
    directory: str
    holder: int
    age_s: float
    processes: tuple[int, ...]


def places() -> list[str]:
    """Return where directories of runs can be."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return sorted({"/tmp", *([runtime] if os.path.isabs(runtime) else [])})


def survey() -> list[Left]:
    """Return every run of this user that can be found here."""
    return [found for place in places() for path in sorted(Path(place).glob(f"{PREFIX}*")) if (found := look(path))]


def look(directory: Path) -> Left | None:
    """Return what is known of the run in a directory; None when it is none of this user's."""
    try:
        about = os.stat(directory, follow_symlinks=False)
        if about.st_uid != os.getuid() or not directory.name.startswith(PREFIX):
            return None
        said = _holder(directory)
    except OSError:
        return None
    begun = float(said.get("since", about.st_mtime))
    run = str(said.get("run", directory.name.removeprefix(PREFIX)))
    return Left(run, str(directory), int(said.get("pid", 0)), time.time() - begun, tuple(processes_of(str(directory))))


def _holder(directory: Path) -> dict[str, Any]:
    """Return what the process that has a run says of it; without its pid when nobody has it."""
    try:
        with open(directory / UP) as file:
            said: dict[str, Any] = json.load(file)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return said
            return {**said, "pid": 0}
    except (OSError, ValueError):
        return {}


def processes_of(directory: str) -> list[int]:
    """Return the processes of this user, but this one, that have a path in a directory among their words."""
    found = []
    wanted = os.fsencode(directory)
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (os.getpid(), os.getppid()):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == os.getuid() and _names(Path("/proc", name), wanted):
                    found.append(int(name))
    return found


def _names(process: Path, wanted: bytes) -> bool:
    words = process.joinpath("cmdline").read_bytes().split(b"\0")
    return any(word == wanted or word.startswith(wanted + b"/") for word in words)


def reap(older_s: float | None, dry: bool, run: str = "") -> list[Left]:
    """End runs that nobody has, and, with `older_s`, those that are older; of one `run` only, if it is named."""
    chosen = [one for one in survey() if _is_over(one, older_s) and run in ("", one.run)]
    if not dry:
        for one in chosen:
            end(one)
        sweep()
    return chosen


def _is_over(found: Left, older_s: float | None) -> bool:
    return not found.holder if older_s is None else found.age_s >= older_s


def end(found: Left, grace_s: float = END_S) -> None:
    """Have its holder end a run, then kill whatever is left of it, and remove its directory and its shared memory."""
    if found.holder:
        send([found.holder], signal.SIGTERM, grace_s)
        send([found.holder], signal.SIGKILL, KILLED_S)  # it may be frozen
    until = time.monotonic() + KILLED_S
    while (left := processes_of(found.directory)) and time.monotonic() < until:
        send(left, signal.SIGKILL, KILLED_S)
    _remove(Path(found.directory))


def send(pids: list[int], number: signal.Signals, within_s: float) -> None:
    """Signal processes and wait for their ends, but not for longer."""
    watches = []
    for pid in pids:
        with contextlib.suppress(OSError):
            watch = os.pidfd_open(pid)
            watches.append(watch)
            signal.pidfd_send_signal(watch, number)
    until = time.monotonic() + within_s
    for watch in watches:
        select.select([watch], [], [], max(0.0, until - time.monotonic()))
        os.close(watch)


def _remove(directory: Path) -> None:
    """Remove the directory of a run, and what its nodes had in shared memory."""
    inside = [entry.path for entry in os.scandir(directory)] if directory.is_dir() else []
    for path in inside:
        mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        memory = Path(MEMORY, f"cloudburst-{os.getuid()}-{mark}")
        with contextlib.suppress(OSError):
            shutil.rmtree(os.path.realpath(memory / "spill"))
        shutil.rmtree(memory, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def sweep(*disks: str | Path) -> None:
    """Remove the values of nodes, and what workers had, that were killed with all that would have done so."""
    named = os.environ.get("CLOUDBURST_SPILL")
    for disk in sorted({str(disk) for disk in (*disks, named, "/var/tmp", tempfile.gettempdir()) if disk}):
        for pattern in (f"cloudburst-{os.getuid()}-*{SPILLED}", f"{WORKER}*"):
            for path in Path(disk).glob(pattern):
                with contextlib.suppress(OSError):  # it is in use, or another one has removed it
                    _sweep(path)


def _sweep(path: Path) -> None:
    """Remove a directory, and what a node has in memory beside it; raise OSError when somebody has it."""
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        about = os.fstat(lock)
        if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) != HELD_MODE:
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(lock, path):
            memory = Path(MEMORY, path.name.removesuffix(SPILLED))
            with contextlib.suppress(OSError):
                if os.readlink(memory / "spill") == str(path):
                    shutil.rmtree(memory)
            shutil.rmtree(path)
    finally:
        os.close(lock)


def held(path: Path) -> int:
    """Return a lock on a directory: as long as that is open, nobody takes it for left. Raises FileNotFoundError."""
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_SH)
    if not _is_at(lock, path):
        os.close(lock)  # it was swept away before it was locked
        raise FileNotFoundError(path)
    os.fchmod(lock, HELD_MODE)
    return lock


def _is_at(fd: int, path: Path) -> bool:
    """Whether what is open is what is at that path now."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def guard(directory: str, until: float, grace_s: float) -> None:
    """Wait for the end of the run's holder, or its time; then see to it that nothing is left."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    found = look(Path(directory))
    if found is not None and found.holder:
        with contextlib.suppress(OSError):
            watch = os.pidfd_open(found.holder)
            left_s = max(0.0, until - time.time()) if until else None
            if select.select([watch], [], [], left_s)[0]:
                _wait_until_empty(directory, grace_s)
    found = look(Path(directory))
    if found is not None:
        end(found, grace_s)


def _wait_until_empty(directory: str, grace_s: float) -> None:
    """Give nodes whose holder has ended their time to end by themselves, and remove what is theirs."""
    until = time.monotonic() + grace_s
    while os.path.isdir(directory) and time.monotonic() < until:
        time.sleep(0.2)


def main(words: list[str]) -> None:
    """Do what the words say."""
    if words[0] == "guard":
        guard(words[1], float(words[2]), float(words[3]))
    else:
        asked = json.loads(words[1])
        print(json.dumps([asdict(one) for one in reap(asked["older_s"], asked["dry"], asked.get("run", ""))]))


if __name__ == "__main__":
    main(sys.argv[1:])
