"""The first program on a host: it sees to it that what is shipped is there, and becomes the agent.

The one rule: it needs nothing but Python, and imports nothing of ours: it is sent as text. Nothing is used before the
digest of what came is as was said; it is unpacked beside its place, and moved there at once, so it is there whole or
not at all. It speaks lines of JSON: what it is told comes from standard input, in lock-step. Source: decision 0036.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import sys
import sysconfig
import tarfile
import time
from pathlib import Path
from typing import Any, Final

PROGRAM: Final = "from cloudburst.burst.agent import main; main()"
KEPT: Final = 3
"""So many are kept, those that were used last; and others, as long as they are in use."""
LOCK: Final = ".in-use"
UNFINISHED_S: Final = 3600.0
"""What somebody has begun to unpack, and not ended after so long, is nobody's."""


def say(**said: Any) -> None:
    """Say one thing."""
    os.write(1, json.dumps(said).encode() + b"\n")


def home() -> Path:
    """Return where what was shipped is kept, by digest."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudburst"


def unpack(data: bytes, digest: str) -> None:
    """Put what came in its place. Raises ValueError when it is not what was said."""
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise ValueError(f"what came has the SHA-256 {found}, and not {digest}")
    place = home() / digest
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = place.with_name(f"{digest}.{os.getpid()}")
    try:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as tar:
            # No filter looks at each member: these are the bytes that were asked for, and for each of a thousand
            # files it would ask for the true path of every directory above.
            known = hasattr(tarfile, "data_filter")
            tar.extractall(new, filter="fully_trusted") if known else tar.extractall(new)
        new.rename(place)
    except OSError:
        if not place.is_dir():  # somebody else was quicker
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def taken(place: Path) -> int | None:
    """Return a lock on what is there: it stays as long as that is open, in whatever process. None when nothing is."""
    try:
        lock = os.open(place / LOCK, os.O_RDONLY | os.O_CREAT, 0o600)
    except OSError:
        return None
    fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        there = os.path.samestat(os.stat(place / LOCK), os.fstat(lock))
    except OSError:
        there = False  # it was moved away before it was locked
    if not there:
        os.close(lock)
        return None
    with contextlib.suppress(OSError):  # where nothing can be written, nothing is removed
        os.utime(place)
    return lock


def prune() -> None:
    """Remove what is old and in nobody's use. It is moved away first, so that nobody begins to use half of it."""
    ages = {}
    for path in home().iterdir():
        with contextlib.suppress(OSError):  # another one is at it
            ages[path] = time.time() - path.lstat().st_mtime
    for path, age_s in ages.items():
        if re.match(r"[0-9a-f]{64}\.", path.name) and age_s > UNFINISHED_S:
            shutil.rmtree(path, ignore_errors=True)
    whole = sorted((path for path in ages if re.fullmatch("[0-9a-f]{64}", path.name)), key=lambda path: ages[path])
    for path in whole[KEPT:]:
        with contextlib.suppress(OSError):  # it is in use, or another one has removed it
            _remove(path)


def _remove(path: Path) -> None:
    lock = os.open(path / LOCK, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = path.with_name(f"{path.name}.old-{os.getpid()}")
        path.rename(gone)
    finally:
        os.close(lock)
    shutil.rmtree(gone, ignore_errors=True)


def put(data: bytes, digest: str) -> int:
    """Put what came in its place, remove what is old; return a lock on it. Raises OSError, ValueError."""
    place = home() / digest
    lock = None
    while lock is None:  # unless somebody takes it for old in between
        unpack(data, digest)
        lock = taken(place)
    prune()
    return lock


def main() -> None:
    """Take what is missing, and become the agent; end when the input does."""
    asked = json.loads(sys.stdin.buffer.readline() or b"{}")
    if not asked:
        return
    place = home() / asked["digest"]
    lock = taken(place)
    say(soabi=sysconfig.get_config_var("SOABI"), version=sys.version.split()[0], have=lock is not None)
    size = int(sys.stdin.buffer.readline() or b"-1")
    if size < 0:
        return
    if size:
        data = sys.stdin.buffer.read(size)
        if len(data) < size:
            return
        try:
            lock = put(data, asked["digest"])
        except (OSError, ValueError) as fault:
            say(fault=f"what was shipped could not be put into {home()}: {fault}")
            return
    if lock is not None:
        os.set_inheritable(lock, True)  # the agent has it for as long as it lives
    # What is shipped comes before what is installed there, for all that the agent starts, too.
    os.environ |= {"PYTHONPATH": str(place), "PYTHONNOUSERSITE": "1"}
    os.execv(sys.executable, [sys.executable, "-P", "-c", PROGRAM])


if __name__ == "__main__":
    main()
