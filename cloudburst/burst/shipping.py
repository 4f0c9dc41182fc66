"""What is shipped to hosts: this distribution as it runs here and what it depends on, as one archive with a digest.
From a built file it is all that is in that: the application and what that depends on, too.

The one rule: equal files make equal bytes, so a host that has the digest has everything. Modules are compiled before,
because hosts that start together would all spend the same seconds on it, and what only debuggers read of shared objects
stays here (`loadable`). `archive` is all that others use, so that another way of packing can take its place.
Source: burst-systems §5.4; docs/decisions/0036, 0046, 0048.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import marshal
import os
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudburst.build import manifest
from cloudburst.build.sources import looks_like_a_secret
from cloudburst.burst.loadable import loadable
from cloudburst.errors import EnvironmentMismatch

OURS: Final = ("anna", "cloudburst", "demos")
DISTRIBUTION: Final = "cloudburst"
LEFT_OUT: Final = frozenset(("rich",))
"""Dependencies of commands that people type, which no host runs; they are half of all files."""
SHARED_OBJECT: Final = re.compile(r"\.so(\.\d+)*$")
FORMAT: Final = b"2"
"""Of what `pack` makes: an archive that was kept by an older one is made anew."""
NOT_SHIPPED: Final = frozenset((".pyx", ".pxd", ".c", ".pyi", ".h", ".cpp", ".pyc", ".a"))


@dataclass(frozen=True, slots=True)
class Archive:
    """A compressed tar file, and the SHA-256 of its bytes in hexadecimal digits."""

    path: Path
    digest: str
    size: int


def archive() -> Archive:
    """Return what is to be on every host, packed once and kept as long as no file changes. Raises EnvironmentMismatch.

    Takes about a second for each 10 MB the first time.
    """
    chosen = sorted(files())
    mark = hashlib.sha256(FORMAT + sys.version.encode())
    for name, path in chosen:
        about = path.stat()
        mark.update(f"{name}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    kept = cache() / "shipped" / f"{mark.hexdigest()[:32]}.tar.gz"
    if not kept.exists():
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = kept.with_suffix(f".{os.getpid()}")
        new.write_bytes(pack(chosen))
        new.rename(kept)
        for older in sorted(kept.parent.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)[:-2]:
            older.unlink(missing_ok=True)
    data = kept.read_bytes()
    return Archive(kept, hashlib.sha256(data).hexdigest(), len(data))


def cache() -> Path:
    """Return where what can be made again is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudburst"


def files() -> Iterator[tuple[str, Path]]:
    """Return the files of our packages and of what they depend on, or of a built file, with their names on the host."""
    if (packed := manifest.directory()) is not None:
        yield from _unpacked(packed)
        return
    root = Path(__file__).resolve().parents[2]
    for package in OURS:
        for path in (root / package).rglob("*"):
            if path.is_file() and _is_wanted(path) and not looks_like_a_secret(path):
                yield str(path.relative_to(root)), path
    for name in sorted(dependencies(DISTRIBUTION)):
        for entry in importlib.metadata.files(name) or ():
            path = Path(str(entry.locate()))
            if ".." not in entry.parts and path.is_file() and _is_wanted(path):
                yield str(entry), path


def _unpacked(packed: Path) -> Iterator[tuple[str, Path]]:
    """Return what a built file has been unpacked to, without its test data and what only people who type need."""
    root = packed.parent
    left_out = _left_out(manifest.parse((packed / manifest.MANIFEST).read_text()).requires)
    for path in root.rglob("*"):
        inside = path.relative_to(root)
        made = "__pycache__" in inside.parts or path.name == "RECORD" or inside.parts[0] in left_out
        if not made and inside.parts[:2] != (manifest.PACKED, manifest.TESTS) and path.is_file():
            yield str(inside), path


def _left_out(requires: Iterable[str]) -> set[str]:
    """Return the names of packages and modules that no host needs, unless an application might."""
    ours = set().union(LEFT_OUT, *map(dependencies, LEFT_OUT)) - dependencies(DISTRIBUTION)
    if requires:
        return set()  # what it requires may need them, too
    found = (entry.parts[0] for name in ours for entry in importlib.metadata.files(name) or ())
    return {name for name in found if name != ".."}


def _is_wanted(path: Path) -> bool:
    return path.suffix not in NOT_SHIPPED and "__pycache__" not in path.parts and path.name != "RECORD"


def dependencies(distribution: str) -> set[str]:
    """Return the names of what a distribution depends on, and what that does, without extras.

    Hosts have the same Python and platform, so what is for others only is what is not installed here. Raises
    EnvironmentMismatch when something is missing that is for all.
    """
    found: set[str] = set()
    for one in _wanted_by(distribution):
        name, marker = re.split(r"[^\w.-]", one, maxsplit=1)[0], one.partition(";")[2]
        if name in LEFT_OUT or re.search(r"\bextra\b", marker) or (marker and not _is_installed(name)):
            continue
        found |= {name, *dependencies(name)}
    return found


def _wanted_by(distribution: str) -> list[str]:
    try:
        return importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        mend = "pip install . in its repository" if distribution == DISTRIBUTION else f"pip install {distribution}"
        raise EnvironmentMismatch(f"{distribution!r} is not installed here, so it cannot be shipped: {mend}") from None


def _is_installed(name: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=name))


def pack(chosen: list[tuple[str, Path]]) -> bytes:
    """Return an archive of files by their names, with compiled modules; equal for equal files."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as squeezed,
        tarfile.open(fileobj=squeezed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, path in chosen:
            data = path.read_bytes()
            _add(tar, name, loadable(data) if SHARED_OBJECT.search(name) else data)
            if name.endswith(".py"):
                with suppress(SyntaxError, ValueError):  # some packages bring what is for another Python
                    _add(tar, *compiled(name, data))
    return packed.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size, about.mode = len(data), 0o600
    tar.addfile(about, io.BytesIO(data))


def compiled(name: str, source: bytes) -> tuple[str, bytes]:
    """Return the name and the bytes of a compiled module that is taken as it is, whatever its source's time."""
    code = marshal.dumps(compile(source, name, "exec", dont_inherit=True))
    flags = (0b01).to_bytes(4, "little")  # the hash of the source is there, and is not looked at
    head = importlib.util.MAGIC_NUMBER + flags + importlib.util.source_hash(source)
    return importlib.util.cache_from_source(name), head + code
