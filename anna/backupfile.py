"""A backup's file: the cells of all keys at one epoch, in blocks, and at the end how many there are.

The one rule: a file is whole or refused. Every part is sealed (`anna.storage.seal`) under its number, so a part that
is not as it was written, or not where, is told; a file without its end was never finished. It is written beside its
name and takes it when the disk has all of it. Nothing of a file is used before all of it was read once (`check`).

    "anna backup\\n" | part 0: head | parts 1…n: cells | last part: end
    part   u32 bytes that follow | u64 seal under the part's number | content
    head   msgpack {format, cluster, epoch, workers, created}
    end    msgpack {keys, bytes, blocks}

Integers are little-endian, cells are as in `anna.kvs.cells`. A part without content is the end's mark: it comes
before the end.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import msgpack

from anna.config import FRAME_BYTES_MAX
from anna.errors import Damaged, NotSupported
from anna.storage.seal import SEAL_BYTES, sealed, unsealed

FORMAT: Final = 1
"""The newest form of the file that this version writes and reads."""

MAGIC: Final = b"anna backup\n"
_LENGTH: Final = struct.Struct("<I")
_NUMBER: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Head:
    """Of which cluster a backup is, and of which epoch; `created` is in seconds since 1970."""

    cluster: str
    epoch: int
    workers: int
    created: float
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class End:
    """How much a backup holds: `size` is the bytes of the cells."""

    keys: int
    size: int
    blocks: int


class BackupWriter:
    """Writes the file at `path`, which is there only after `finish`; as a context, it leaves nothing else."""

    def __init__(self, path: Path, head: Head) -> None:
        self._path = path
        self._beside = path.with_name(path.name + ".part")
        self._file: IO[bytes] = open(self._beside, "wb")  # noqa: SIM115
        self._parts = 0
        self._size = 0
        self._file.write(MAGIC)
        self._append(msgpack.packb(asdict(head)))

    def write(self, cells: bytes) -> None:
        """Append one block of cells; of none, nothing."""
        if cells:
            self._append(cells)
            self._size += len(cells)

    def finish(self, keys: int) -> End:
        """Make the file durable under its name."""
        end = End(keys, self._size, self._parts - 1)
        self._append(b"")
        self._append(msgpack.packb(asdict(end)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._beside, self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return end

    def _append(self, content: bytes) -> None:
        record = sealed(_NUMBER.pack(self._parts), content)
        self._file.write(_LENGTH.pack(len(record)))
        self._file.write(record)
        self._parts += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._beside.unlink(missing_ok=True)


class BackupReader:
    """Reads the file at `path`. Raises Damaged, or NotSupported for a newer format, with the numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        with open(path, "rb") as file:
            self.head = self._read_head(file)

    def check(self) -> End:
        """Read all of the file; return what it says that it holds."""
        blocks = size = 0
        end: End | None = None
        for content in self._parts():
            if isinstance(content, End):
                end = content
            else:
                blocks, size = blocks + 1, size + len(content)
        assert end is not None
        if (end.blocks, end.size) != (blocks, size):
            raise Damaged(
                f"{self.path} says that it has {end.blocks:,} blocks of {end.size:,} bytes together; "
                f"it has {blocks:,} of {size:,}"
            )
        return end

    def blocks(self) -> Iterator[bytes]:
        """Yield the cells, block by block."""
        for content in self._parts():
            if isinstance(content, bytes):
                yield content

    def _parts(self) -> Iterator[bytes | End]:
        with open(self.path, "rb") as file:
            self._read_head(file)
            number = 1
            while content := self._read_part(file, number):
                yield content
                number += 1
            yield End(**self._fields(self._read_part(file, number + 1), {"keys", "size", "blocks"}))
            if rest := file.read(1):
                raise Damaged(f"{self.path} goes on after its end, at byte {file.tell() - len(rest):,}")

    def _read_head(self, file: IO[bytes]) -> Head:
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            raise Damaged(f"{self.path} is no backup: it begins with {magic!r}")
        content = self._read_part(file, 0)
        format = self._fields(content, {"format"})["format"]
        if format > FORMAT:
            raise NotSupported(f"{self.path} has format {format}; this version reads up to {FORMAT}")
        return Head(**self._fields(content, {"format", "cluster", "epoch", "workers", "created"}))

    def _fields(self, content: bytes, names: set[str]) -> dict[str, Any]:
        """Return the named fields of a head or an end; a newer format may have more."""
        fields = msgpack.unpackb(content)
        if not isinstance(fields, dict) or not names <= fields.keys():
            raise Damaged(f"{self.path}: a head or an end lacks one of {', '.join(sorted(names))}")
        return {name: fields[name] for name in names}

    def _read_part(self, file: IO[bytes], number: int) -> bytes:
        place = file.tell()
        prefix = file.read(_LENGTH.size)
        length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else 0
        if not SEAL_BYTES <= length <= FRAME_BYTES_MAX + SEAL_BYTES:
            raise Damaged(f"{self.path} is cut or damaged at byte {place:,} of {self.size:,} (part {number:,})")
        record = file.read(length)
        content = unsealed(_NUMBER.pack(number), record) if len(record) == length else None
        if content is None:
            missing = length - len(record)
            why = f"{missing:,} of its {length:,} bytes are missing" if missing else "its checksum differs"
            raise Damaged(f"{self.path}, part {number:,} at byte {place:,} of {self.size:,}: {why}")
        return content
