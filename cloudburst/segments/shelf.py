"""Where a node's segments are: files in memory that the node's processes make, map and remove, within bounds.

A segment is written once, under a name of its own, before anybody is told of it, and never changed: so what is mapped
never changes under its reader, and a removed name leaves every reader its bytes. What is over the node's bound of
memory, or would not leave enough of it to others, is written to a directory on disk instead, and mapped from there just
the same: results that nobody has fetched wait on disk, the latest first. Each client has a directory, which the node
makes when it joins and removes when it is gone: with all that it has made, and all that executors have made for it, and
whoever comes late finds no place to put it. So has each node on another host, for what is made for its clients, and the
porter, for what it fetches from there. `/dev/shm` is the memory; where there is none, the node's own directory.
The node has its directory on disk locked while it lives: what nobody has locked any more, because all of a node was
killed at once, the next node that starts on the machine removes, from disk and memory (`reaping.sweep`).
Source: DESIGN §6; decision records 0021, 0024.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import struct
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgpack

from cloudburst import config
from cloudburst.burst import reaping
from cloudburst.errors import NodeLost, NoRoom, ProtocolError
from cloudburst.segments.descriptors import VALUES, SegmentGone, pack_descriptor
from cloudburst.segments.layout import Parts
from cloudburst.segments.mapping import LEDGER_BYTES, Ledger, Mapping

if TYPE_CHECKING:
    from cloudburst.segments.held import Held

MEMORY: Final = Path("/dev/shm")
LEDGER: Final = "ledger"
SPILL: Final = "spill"
HEAD: Final = struct.Struct("<8xqQ")
"""Of the ledger: the count, its bound, the token."""
ABOUT: Final = struct.Struct("<H")
ABOUT_AT: Final = 64
"""Where in the ledger it says, behind its length, on which host this is, and where the node's porter is."""
HOST: Final = "CLOUDBURST_HOST"
"""What tells hosts apart that share a machine: segments of another one are not opened, though they could be."""
PIECES_MAX: Final = 512
"""Most pieces that are handed to the kernel at once; it takes 1,024."""

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM)

Piece = bytes | memoryview

_shelves: weakref.WeakValueDictionary[int, Shelf] = weakref.WeakValueDictionary()
_visited: dict[int, Shelf] = {}
"""Those of other nodes of this machine that have been opened, by their tokens; a few bytes each."""


def home_of(directory: Path, base: Path = MEMORY) -> Path:
    """Return where in memory the segments of the node of a directory are, if they are there."""
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return base / f"cloudburst-{os.getuid()}-{name}"


class Shelf:
    """The segments of one life of a node, `token`, in the directory `path`; `find` opens it, and `make` makes it."""

    def __init__(self, path: Path, token: int) -> None:
        self.path = path
        self.token = token
        self.host = self.porter = self.address = ""
        """`porter`: its socket, for this node's processes; `address`: where other hosts reach it. "" for none."""
        with open(path / LEDGER, "rb+") as file:
            self.bytes_max, found = HEAD.unpack(file.read(HEAD.size))
            self._ledger = Ledger(file.fileno())
        self._look_for_porter()
        if found != token:
            raise FileNotFoundError(f"{path} is of another life of the node")
        self.unopened: weakref.WeakSet[Held] = weakref.WeakSet()
        """What this process holds and has not mapped yet."""
        self._numbers = 0
        _shelves[token] = self

    @classmethod
    def find(cls, directory: Path, token: int) -> Shelf:
        """Return the shelf of the node that runs in `directory`. Raises NodeLost when it is gone."""
        known = _shelves.get(token)
        if known is not None:
            known._look_for_porter()  # it may have been opened before there was one, by what this was forked from
            return known
        for path in (home_of(directory), directory / "segments"):
            with contextlib.suppress(FileNotFoundError):
                return cls(path, token)
        raise NodeLost(f"the node in {directory} has no segments: it has ended")

    @classmethod
    def at(cls, token: int, path: str) -> Shelf | None:
        """Return the shelf at `path`, of any node of this machine; None when it cannot be seen from here."""
        known = _shelves.get(token)
        if known is not None:
            return known
        try:
            if os.lstat(path).st_uid != os.getuid():
                return None
            for gone in [token for token, shelf in _visited.items() if not shelf.path.exists()]:
                del _visited[gone]
            found = cls(Path(path), token)
        except OSError:
            return None
        if found.host != os.environ.get(HOST, ""):
            return None
        _visited[token] = found
        return found

    @classmethod
    def make(cls, directory: Path, token: int, base: Path = MEMORY) -> Shelf:
        """Make the shelf of a node that starts, empty, in place of what another left there."""
        path = home_of(directory, base)
        spill = Path(os.environ.get("CLOUDBURST_SPILL") or _disk()) / f"{path.name}{reaping.SPILLED}"
        reaping.sweep(spill.parent)
        lock = _locked(spill)  # whoever has that has the one in memory, too
        _remove(path, spill)
        _remove(directory / "segments", spill)
        try:
            os.mkdir(path, 0o700)
        except OSError:
            path = directory / "segments"
            os.mkdir(path, 0o700)
        os.symlink(spill, path / SPILL)
        free = os.statvfs(path)
        bound = int(os.environ.get("CLOUDBURST_SEGMENT_BYTES") or free.f_bavail * free.f_frsize * config.MEMORY_SHARE)
        with open(path / LEDGER, "wb") as file:
            head = HEAD.pack(bound, token).ljust(ABOUT_AT, b"\0")
            file.write((head + _pack_about(os.environ.get(HOST, ""), "", "")).ljust(LEDGER_BYTES, b"\0"))
        made = cls(path, token)
        weakref.finalize(made, os.close, lock)
        made.admit(VALUES)
        return made

    @property
    def places(self) -> tuple[str, str]:
        """The directories that those who use it need: in memory, and on disk."""
        return str(self.path), os.readlink(self.path / SPILL)

    def _look_for_porter(self) -> None:
        with contextlib.suppress(FileNotFoundError), open(self.path / LEDGER, "rb") as file:
            file.seek(ABOUT_AT)
            self.host, self.porter, self.address = _unpack_about(file.read(LEDGER_BYTES - ABOUT_AT))

    def show_porter(self, porter: str, address: str) -> None:
        """Say, to those who open this from now on, where the node's porter is."""
        self.porter, self.address = porter, address
        with open(self.path / LEDGER, "rb+") as file:
            file.seek(ABOUT_AT)
            file.write(_pack_about(self.host, porter, address))

    # -- clients

    def admit(self, client: int) -> None:
        """Make the place of a client's segments."""
        os.mkdir(self.path / f"{client:x}", 0o700)

    def dismiss(self, client: int) -> None:
        """Remove a client's segments; whoever has one mapped keeps it."""
        away = self.path / f"x{client:x}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path / f"{client:x}", away)  # nothing new is made in it from here on
        for place in (away, self.path / SPILL / f"{client:x}"):
            shutil.rmtree(place, ignore_errors=True)
        self._ledger.correct(sum(size for _, size in self._entries()))

    # -- making

    def argument_name(self, client: int) -> str:
        """Return a new name for what a client sends."""
        self._numbers += 1
        return f"{client:x}/a{os.getpid():x}.{self._numbers:x}"

    def put(self, name: str, parts: Parts) -> bytes:
        """Write a segment; return its descriptor. Raises NoRoom, with the numbers, and SegmentGone."""
        return self.write(name, parts.pieces(), parts.size_bytes)

    def write(self, name: str, pieces: Sequence[Piece], size: int) -> bytes:
        """Write the segment of these pieces, `size` bytes in all, in memory or else on disk.

        Raises NoRoom, and SegmentGone when the client that it is for has left.
        """
        try:
            written = self._write_in_memory(name, pieces, size) or self._write_on_disk(name, pieces, size)
        except FileExistsError:  # of an attempt whose answer was lost
            self.remove(name)
            written = self._write_in_memory(name, pieces, size) or self._write_on_disk(name, pieces, size)
        if written:
            return pack_descriptor(self.token, name, size, self.path, self.address)
        raise self._no_room(size)

    def _no_room(self, size: int) -> NoRoom:
        disk = self.path / SPILL
        return NoRoom(
            f"there is no room for a value of {size:,} bytes: this node's segments have {self._ledger.bytes:,} of"
            f" {self.bytes_max:,} bytes of memory, {_free(self.path):,} are free there, and {_free(disk):,} on disk"
        )

    def _write_in_memory(self, name: str, pieces: Sequence[Piece], size: int) -> bool:
        if not self._ledger.take(size, self.bytes_max):
            return False
        written = False
        try:
            if _leaves(self.path, size, config.MEMORY_LEFT_SHARE):
                written = _written(self.path / name, pieces)
        finally:
            if not written:
                self._ledger.give(size)
        return written

    def _write_on_disk(self, name: str, pieces: Sequence[Piece], size: int) -> bool:
        place = self.path / SPILL / name
        if not _leaves(self.path / SPILL, size, config.DISK_LEFT_SHARE):
            return False
        place.parent.mkdir(0o700, exist_ok=True)
        written = _written(place, pieces)
        if not (self.path / name).parent.is_dir():  # its client was dismissed meanwhile
            shutil.rmtree(place.parent, ignore_errors=True)
            raise SegmentGone(name)
        return written

    def write_value(self, key: int, number: int, value: bytes) -> bytes | None:
        """Keep the value of a key, in memory only; return its descriptor, None when there is no room."""
        name = f"{VALUES:x}/v{key:x}.{number:x}"
        if self._write_in_memory(name, (value,), len(value)):
            return pack_descriptor(self.token, name, len(value), self.path)
        return None

    def receive(self, name: str, size: int) -> Incoming:
        """Return a segment that is to be filled piece by piece. Raises NoRoom, SegmentGone."""
        if self._ledger.take(size, self.bytes_max):
            incoming = None
            try:
                if _leaves(self.path, size, config.MEMORY_LEFT_SHARE):
                    incoming = Incoming.begin(self, name, size, self.path / name)
            finally:
                if incoming is None:
                    self._ledger.give(size)
            if incoming is not None:
                return incoming
        place = self.path / SPILL / name
        if _leaves(self.path / SPILL, size, config.DISK_LEFT_SHARE):
            place.parent.mkdir(0o700, exist_ok=True)
            incoming = Incoming.begin(self, name, size, place)
            if incoming is not None:
                return incoming
        raise self._no_room(size)

    # -- reading

    def open(self, name: str, size: int) -> int:
        """Return a descriptor of the file of a segment, to be closed. Raises SegmentGone, ProtocolError."""
        for place in (self.path / name, self.path / SPILL / name):
            try:
                fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            if os.fstat(fd).st_size == size:
                return fd
            os.close(fd)
            raise ProtocolError(f"segment {name} has not the {size:,} bytes that its descriptor says")
        raise SegmentGone(name)

    def map(self, name: str, size: int, populate: bool = True) -> memoryview:
        """Return the bytes of a segment, mapped; `populate`: they will be read soon.

        Raises SegmentGone, and OSError when it cannot be mapped.
        """
        fd = self.open(name, size)
        try:
            return memoryview(Mapping(fd, size, populate and size <= config.POPULATE_BYTES_MAX))
        finally:
            os.close(fd)

    # -- removing

    def remove(self, name: str) -> None:
        """Remove a segment, if it is there; who has it mapped keeps it."""
        place = self.path / name
        try:
            size = os.stat(place).st_size
            os.unlink(place)
            self._ledger.give(size)
        except FileNotFoundError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path / SPILL / name)

    def remove_of(self, node: int, client: int) -> None:
        """Remove what lies here for one client of a node on another host."""
        for base in (self.path, self.path / SPILL):
            for one in self._listed(base / f"{node:x}"):
                if one.startswith(f"d{client:x}."):
                    self.remove(f"{node:x}/{one}")

    def _entries(self) -> Iterator[tuple[str, int]]:
        """Yield (name, bytes) of what is in memory."""
        for client in self._listed(self.path):
            if client != SPILL and os.path.isdir(self.path / client):
                for one in self._listed(self.path / client):
                    with contextlib.suppress(FileNotFoundError):
                        yield f"{client}/{one}", os.stat(self.path / client / one).st_size

    @staticmethod
    def _listed(path: Path) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    @property
    def bytes(self) -> int:
        """How many bytes of segments are in memory, as they are counted."""
        return self._ledger.bytes

    def names(self) -> list[str]:
        """Return the names of all segments, those on disk too."""
        spilled = self.path / SPILL
        on_disk = [f"{client}/{one}" for client in self._listed(spilled) for one in self._listed(spilled / client)]
        return [*(name for name, _ in self._entries()), *on_disk]

    def remove_all(self) -> None:
        """Remove everything, unless it belongs to another life of the node by now."""
        try:
            with open(self.path / LEDGER, "rb") as file:
                if HEAD.unpack(file.read(HEAD.size))[1] == self.token:
                    _remove(self.path)
        except FileNotFoundError:
            pass

    def part(self) -> None:
        """Map what this process holds and has not yet opened: the node may end."""
        for held in list(self.unopened):
            with contextlib.suppress(NodeLost, OSError):
                held.view()


class Incoming:
    """A segment that is being filled: nobody is told of it before it is whole, and none is left that never was."""

    def __init__(self, shelf: Shelf, name: str, size: int, fd: int) -> None:
        self._shelf, self._name, self._size, self._fd = shelf, name, size, fd

    @classmethod
    def begin(cls, shelf: Shelf, name: str, size: int, place: Path) -> Incoming | None:
        """Make the file, with all the room that it needs; None when there is not so much. Raises SegmentGone."""
        fd = _create(place)
        try:
            os.posix_fallocate(fd, 0, size)
            return cls(shelf, name, size, fd)
        except OSError as fault:
            os.close(fd)
            os.unlink(place)
            if fault.errno in NO_ROOM:
                return None
            raise

    def write(self, data: memoryview, at: int) -> None:
        """Put these bytes there."""
        while data:
            written = os.pwrite(self._fd, data, at)
            data, at = data[written:], at + written

    def finish(self) -> bytes:
        """Return the descriptor: it is whole."""
        os.close(self._fd)
        return pack_descriptor(self._shelf.token, self._name, self._size, self._shelf.path)

    def abandon(self) -> None:
        """Leave nothing."""
        os.close(self._fd)
        self._shelf.remove(self._name)


def _pack_about(host: str, porter: str, address: str) -> bytes:
    about: bytes = msgpack.packb([host, porter, address])
    return ABOUT.pack(len(about)) + about


def _unpack_about(data: bytes) -> tuple[str, str, str]:
    size = ABOUT.unpack_from(data)[0]
    if not size:  # an older release wrote it
        return "", "", ""
    host, porter, address = msgpack.unpackb(data[ABOUT.size : ABOUT.size + size])
    return str(host), str(porter), str(address)


def _locked(spill: Path) -> int:
    """Make a node's directory on disk; return a lock on it, which is held as long as that is open."""
    os.makedirs(spill.parent, 0o700, exist_ok=True)
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(spill, 0o700)
        with contextlib.suppress(FileNotFoundError):
            return reaping.held(spill)


def _remove(path: Path, kept: Path | None = None) -> None:
    """Remove a directory of segments, if it is this user's, and the one on disk that it leads to; `kept` is emptied."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            with contextlib.suppress(OSError):
                spill = Path(os.readlink(path / SPILL))
                for one in (spill,) if spill != kept else spill.iterdir():
                    shutil.rmtree(one)
            shutil.rmtree(path)


def _written(place: Path, pieces: Sequence[Piece]) -> bool:
    """Write a new file; False, and nothing is left, when there is no room for it."""
    fd = _create(place)
    try:
        rest = [piece for piece in pieces if len(piece)]
        while rest:
            sent = os.writev(fd, rest[:PIECES_MAX])
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if sent:
                rest[0] = memoryview(rest[0])[sent:]
        return True
    except BaseException as fault:
        with contextlib.suppress(OSError):
            os.unlink(place)
        if isinstance(fault, OSError) and fault.errno in NO_ROOM:
            return False
        raise
    finally:
        os.close(fd)


def _create(place: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(place, flags, 0o600)
    except FileNotFoundError:
        raise SegmentGone(place.name) from None


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _leaves(path: Path, size: int, share: float) -> bool:
    """Whether enough of a file system is left free with `size` bytes more."""
    found = os.statvfs(path)
    return (found.f_bavail * found.f_frsize) - size >= found.f_blocks * found.f_frsize * share


def _disk() -> str:
    import tempfile

    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()
