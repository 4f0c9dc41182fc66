"""The first program on a host: it sees to it that what is shipped is there, and becomes the agent.

The one rule: it needs nothing but Python, and imports nothing of ours: it is sent as text. Nothing is used before the
digest of what came is as was said; it is unpacked beside its place, and moved there at once, so it is there whole or
not at all. It speaks lines of JSON: what it is told comes from standard input, in lock-step. Source: decision 0036.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Any, Final

PROGRAM: Final = "from cloudburst.burst.agent import main; main()"


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
            tar.extractall(new, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(new)
        new.rename(place)
    except OSError:
        if not place.is_dir():  # somebody else was quicker
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def main() -> None:
    """Take what is missing, and become the agent; end when the input does."""
    asked = json.loads(sys.stdin.buffer.readline() or b"{}")
    if not asked:
        return
    place = home() / asked["digest"]
    say(soabi=sysconfig.get_config_var("SOABI"), version=sys.version.split()[0], have=place.is_dir())
    size = int(sys.stdin.buffer.readline() or b"-1")
    if size < 0:
        return
    if size:
        data = sys.stdin.buffer.read(size)
        if len(data) < size:
            return
        try:
            unpack(data, asked["digest"])
        except (OSError, ValueError) as fault:
            say(fault=f"what was shipped could not be put into {home()}: {fault}")
            return
    # What is shipped comes before what is installed there, for all that the agent starts, too.
    os.environ |= {"PYTHONPATH": str(place), "PYTHONNOUSERSITE": "1"}
    os.execv(sys.executable, [sys.executable, "-P", "-c", PROGRAM])


if __name__ == "__main__":
    main()
