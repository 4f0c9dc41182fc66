"""Disks that can lose power, be full, and lie: ext4 on a file, mounted through a loop device.

The one rule: what a disk keeps through a power cut is what is in its image at that moment and nothing else. The image
is copied while every process that writes is frozen; what the kernel had not written there by then is lost, as when
the power goes. The journal is committed each 300 s only, so that between syncs the kernel does not save what nobody
asked it to. Whatever was mounted is unmounted and its loop device detached when the `with` block ends. Source:
reliability.md 0 (power cut without device mapper) and E, stage 7.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.lab.hosts import Host, run

SHIM_SOURCE: Final = Path(__file__).parent / "faultshim.c"
PROGRAMS: Final = ("mkfs.ext4", "mount", "umount", "losetup")
MIB: Final = 1024 * 1024


class Disk:
    """One ext4 file system of `size_mib`, mounted at `path` while the `with` block of `disk` lasts."""

    def __init__(self, place: Path, size_mib: int) -> None:
        self.path = place / "disk"
        self._image = place / "image"
        self._loop: str | None = None
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(size_mib * MIB)
        # A journal of the smallest size leaves a small disk its room; tables are made now, not behind our back later.
        eager = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-J", "size=4", "-E", eager, str(self._image))

    def mount(self) -> None:
        """Make the disk's files be at `path`."""
        found = subprocess.run(
            ["losetup", "--find", "--show", str(self._image)], check=True, capture_output=True, text=True, timeout=20
        )
        self._loop = found.stdout.strip()
        run("mount", "-t", "ext4", "-o", "commit=300,nodiscard,noatime", self._loop, str(self.path))

    def unmount(self) -> None:
        """Detach the disk; everything that was written is then in its image. Nothing to do when it is not mounted."""
        if self._loop is not None:
            if os.path.ismount(self.path):
                run("umount", str(self.path))
            run("losetup", "--detach", self._loop)
            self._loop = None

    def snapshot(self) -> Path:
        """Return a copy of what the disk has kept by now. Its writers must be frozen, or the copy may be torn."""
        copy = self._image.with_name("copy")
        run("cp", "--sparse=always", str(self._image), str(copy))
        return copy

    def return_to(self, snapshot: Path) -> None:
        """Mount what the disk had kept when `snapshot` was made; everything since is lost."""
        self.unmount()
        os.replace(snapshot, self._image)
        self.mount()

    def free_bytes(self) -> int:
        """Return how much more can be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Leave so much room and no more, until `drain`."""
        taken = self.free_bytes() - leave_bytes
        with (self.path / "ballast").open("wb") as ballast, contextlib.suppress(OSError):
            while taken > 0:
                os.posix_fallocate(ballast.fileno(), ballast.tell(), min(taken, MIB))
                ballast.seek(min(taken, MIB), os.SEEK_CUR)
                taken = self.free_bytes() - leave_bytes

    def drain(self) -> None:
        """Give back what `fill` took."""
        (self.path / "ballast").unlink(missing_ok=True)


def cut_power(*machines: tuple[Host, Disk]) -> None:
    """Cut the power of all these hosts at one moment, and let their disks come back with what they had kept.

    No process of the hosts is left; starting them again is the caller's. The moment is the freeze of the last of them.
    """
    for host, _ in machines:
        host.freeze()
    kept = [disk.snapshot() for _, disk in machines]
    for host, _ in machines:
        host.crash()
    for (_, disk), snapshot in zip(machines, kept, strict=True):
        disk.return_to(snapshot)


def why_not() -> str | None:
    """Return why no disk can be made here, or None."""
    if os.getuid() != 0:
        return "only root can mount"
    missing = [program for program in PROGRAMS if shutil.which(program, path=f"{os.environ['PATH']}:/sbin") is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@contextlib.contextmanager
def disk(place: Path, size_mib: int = 64) -> Iterator[Disk]:
    """Give a new, empty, mounted disk, whose image and mount point are in the empty directory `place`."""
    made = Disk(place, size_mib)
    try:
        made.mount()
        yield made
    finally:
        made.unmount()


FIELDS: Final = ("fsync_errno", "fsync_lie", "write_errno", "torn", "after_bytes", "writes", "syncs", "lied", "bytes")
_FIELD: Final = struct.Struct("<q")


class Shim:
    """Faults of the files below one directory, in the processes that were started with `environment`.

    Faults are switched at run time, in all of these processes at once. Not seen: memory maps that are written back
    without msync, files that are opened relative to a directory, and system calls made without libc.
    """

    def __init__(self, library: Path, control: Path, below: Path) -> None:
        control.write_bytes(bytes(mmap.PAGESIZE))
        with control.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAULTSHIM_CONTROL": str(control),
            "FAULTSHIM_BELOW": str(below.resolve()),
        }

    def refuse_syncs(self, code: int = errno.EIO) -> None:
        """Let every sync fail with this code; what it was to sync stays unsynced."""
        self._set("fsync_errno", code)

    def lie_about_syncs(self) -> None:
        """Let every sync succeed at once and do nothing."""
        self._set("fsync_lie", 1)

    def refuse_writes(self, code: int, after_bytes: int = 0) -> None:
        """Let writes fail with this code once so many bytes more have been written; the write in between is short."""
        self._set("after_bytes", self.count("bytes") + after_bytes)
        self._set("write_errno", code)

    def tear_write(self, after_bytes: int) -> None:
        """Let the process end in the middle of the write that passes so many bytes more."""
        self._set("after_bytes", self.count("bytes") + after_bytes)
        self._set("torn", 1)

    def behave(self) -> None:
        """Switch every fault off; what was lied about is not made good."""
        for name in FIELDS[:5]:
            self._set(name, 0)

    def count(self, what: str) -> int:
        """Return how many `writes`, `syncs`, `lied` (syncs) and `bytes` of the files below there were."""
        found: int = _FIELD.unpack_from(self._page, FIELDS.index(what) * _FIELD.size)[0]
        return found

    def _set(self, name: str, value: int) -> None:
        _FIELD.pack_into(self._page, FIELDS.index(name) * _FIELD.size, value)

    def close(self) -> None:
        """Give up the control page; processes that have it keep its last state."""
        self._page.close()


def build_shim(place: Path) -> Path:
    """Compile the shim into `place`; return the library. Raises CalledProcessError."""
    library = place / "faultshim.so"
    compiler = os.environ.get("CC", "cc")
    run(compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SHIM_SOURCE), "-ldl")
    return library
