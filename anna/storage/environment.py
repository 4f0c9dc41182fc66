"""One LMDB environment with what LMDB leaves to its user: noticing an old root, and what each error means.

LMDB has no checksums. It never crashed or lost a record in silence on flipped bits in pages (decision 0010);
what it cannot notice is a flipped bit in one of its two meta pages, after which the other one, one commit
older, would be taken for the newest. The one rule: every transaction writes a head that holds its own id, the
two metas are always one transaction apart, and an environment for which this does not hold is damaged.

LMDB says EIO when the disk gets full in the middle of a write. So room is taken before a transaction begins.

Errors: no room is DiskFull, and may be tried again, because a transaction that failed left nothing behind.
Anything else that the disk says under a write is StorageFailed, and the environment never writes again: after
a failed fsync the kernel may have dropped the pages and call the next fsync a success. Source: reliability P17.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lmdb
import lmdb.verify

from anna.config import STORED_BYTES_MAX
from anna.errors import Damaged, DiskFull, StorageFailed
from anna.storage.records import Damage, Head, head_of, head_record

DATA: Final = "data.mdb"
PAGE_BYTES: Final = 4096
META: Final = struct.Struct("<136xQQ")
"""Where a meta page of LMDB's 0.9 format holds its last page's number and its transaction's id."""

ROOM_STEP_BYTES: Final = 1024 * 1024
"""The file grows in steps of this."""

SLACK_PAGES: Final = 64
"""Pages of its trees that a transaction may take besides those of its records."""

verify: Callable[[str], list[object]] = lmdb.verify.verify

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def has_no_pages(path: Path) -> bool:
    """Tell whether a data file is not there; one that has not even its roots, as after a power cut, is removed."""
    if path.exists() and path.stat().st_size < 2 * PAGE_BYTES:
        path.unlink()
    return not path.exists()


def walked(directory: Path) -> list[str]:
    """Return what a walk over every page finds: order, reachability, free pages. Maps nothing; 3 s for 300 MiB."""
    try:
        return [str(finding) for finding in verify(str(directory / DATA))]
    except (lmdb.verify.VerifyError, OSError, struct.error, IndexError, ValueError) as error:
        return [str(error)]


def no_room(error: Exception) -> bool:
    """Tell whether an error says that the disk is full."""
    if isinstance(error, lmdb.DiskError | lmdb.MapFullError):
        return True
    codes = (getattr(error, "errno", None), getattr(error, "code", None))
    return any(code in NO_ROOM for code in codes) or (
        isinstance(error, lmdb.Error) and os.strerror(errno.ENOSPC) in str(error)
    )


class Environment:
    """A directory with one LMDB file, whose head is the record called `head_name`.

    `damage` says why it cannot be trusted, and is empty when nothing was found. One thread writes at a time;
    others may read meanwhile.
    """

    def __init__(self, directory: Path, head_name: bytes) -> None:
        self.directory, self.place, self.head_name = directory, directory.name, head_name
        self.failed: str | None = None
        self.damage: list[Damage] = []
        directory.mkdir(exist_ok=True)
        self.is_new = has_no_pages(directory / DATA)
        if not self.is_new:
            self.look_at_metas()
        try:
            self.lmdb = lmdb.open(str(directory), map_size=STORED_BYTES_MAX, readahead=False, lib_version=0)
        except (lmdb.Error, OSError, OverflowError) as error:
            if no_room(error):
                raise DiskFull(f"{directory}: {error}") from error
            raise Damaged(f"{directory}: {error}") from error
        self.file = os.open(directory / DATA, os.O_RDWR | os.O_CLOEXEC)
        self.room = os.fstat(self.file).st_size
        self.head = Head()
        try:
            self.begin()
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Read the head, or write the first one."""
        if self.is_new:
            sync_directory(self.directory)
            with self.writing():
                pass
        else:
            self.look_at_head()

    def look_at_metas(self) -> None:
        """Find damage in the ids of the two meta pages; both are 0 before the first transaction.

        A file that was cut off gets zeros for what is gone, so that reading them is damage like any other.
        """
        with open(self.directory / DATA, "rb") as file:
            pages = [file.read(PAGE_BYTES), file.read(PAGE_BYTES)]
        metas = [META.unpack_from(page) for page in pages]
        ids = [transaction for _, transaction in metas]
        if ids != [0, 0] and (abs(ids[0] - ids[1]) != 1 or max(ids) % 2 != ids.index(max(ids))):
            self.found(f"its two roots are of transactions {ids[0]} and {ids[1]}")
        wanted = (metas[ids.index(max(ids))][0] + 1) * PAGE_BYTES
        if wanted > STORED_BYTES_MAX:
            raise Damaged(f"{self.directory}: its root says that it has {wanted:,} bytes")
        if wanted > (self.directory / DATA).stat().st_size:
            os.truncate(self.directory / DATA, wanted)  # touching what is not there would end the process
            if findings := walked(self.directory):
                raise Damaged(f"{self.directory}: it was cut off: {findings[0]}")

    def look_at_head(self) -> None:
        """Read the head, and find damage when it is not that of the last transaction."""
        try:
            with self.reading() as transaction:
                number, record = transaction.id(), transaction.get(self.head_name)
                head = head_of(self.head_name, record) if record is not None else None
                entries = transaction.stat(self.main)["entries"]
        except Damaged:
            return
        if number == 0 and record is None:  # it ended before its first transaction: nothing was ever stored
            with self.writing():
                pass
        elif head is None:
            self.found("its head is damaged" if record is not None else "it has no head")
        elif (head.transaction, head.entries) != (number, entries):
            self.head = head
            self.found(
                f"its head is of transaction {head.transaction} with {head.entries:,} records, "
                f"its root of transaction {number} with {entries:,}"
            )
        else:
            self.head = head

    @property
    def main(self) -> Any:
        """The environment's one table."""
        return self.lmdb.open_db()

    def found(self, why: str, which: int | bytes | None = None) -> None:
        """Note damage."""
        damage = Damage(self.place, which, why)
        if damage not in self.damage:
            self.damage.append(damage)

    def head_in(self, transaction: lmdb.Transaction[bytes]) -> Head:
        """Return the head of a snapshot, the last one that was known where it is damaged."""
        record = transaction.get(self.head_name)
        return (head_of(self.head_name, record) if record is not None else None) or self.head

    def must_be_sound(self) -> None:
        """Raise StorageFailed after the disk failed, Damaged when damage was found."""
        if self.failed is not None:
            raise StorageFailed(self.failed)
        if self.damage:
            raise Damaged(f"{self.directory}: nothing is written beside damage: {self.damage[0]}")

    @contextmanager
    def writing(
        self, change: Callable[[Head], Head] = lambda head: head, pages: int = 0
    ) -> Iterator[lmdb.Transaction[bytes]]:
        """Run the block in a transaction that is durable at the block's end; `change` gives the new head.

        Room is taken for `pages` pages of records.

        Raises DiskFull, after which nothing of it happened and it may be tried again, and StorageFailed, after
        which it may have happened and nothing is written here again.
        """
        self.must_be_sound()
        transaction = None
        try:
            self.take_room(pages)
            transaction = self.lmdb.begin(write=True)
            yield transaction
            entries = transaction.stat(self.main)["entries"]
            changed = change(self.head)
            new = transaction.get(self.head_name) is None
            head = Head(transaction.id(), changed.first, changed.last, entries + new)
            transaction.put(self.head_name, head_record(self.head_name, head))
            ending, transaction = transaction, None
            ending.commit()
        except (lmdb.Error, OSError) as error:
            raise self.meaning(error) from error
        finally:
            if transaction is not None:
                transaction.abort()
        self.head = head

    def take_room(self, pages: int) -> None:
        """Let the file have room for `pages` more pages and some for its trees, whatever else fills the disk."""
        used = (self.lmdb.info()["last_pgno"] + 1) * PAGE_BYTES
        wanted = used + (pages + SLACK_PAGES) * PAGE_BYTES
        if wanted > self.room:
            wanted += -wanted % ROOM_STEP_BYTES
            os.posix_fallocate(self.file, 0, wanted)
            self.room = wanted

    def meaning(self, error: Exception) -> DiskFull | StorageFailed:
        """Return what an error under a write means; anything but a full disk ends all writing.

        An EIO on a disk without room is taken for a full one: more pages changed than room was taken for. Trying
        it again is safe, because it writes every page again, and none was part of what is durable.
        """
        if no_room(error) or (os.strerror(errno.EIO) in str(error) and self.disk_is_full()):
            return DiskFull(f"{self.directory}: {error}")
        self.failed = f"{self.directory}: {error}; nothing is written here any more"
        return StorageFailed(self.failed)

    def disk_is_full(self) -> bool:
        """Tell whether less room is left than a transaction may need for its trees."""
        found = os.fstatvfs(self.file)
        return found.f_bavail * found.f_frsize < SLACK_PAGES * PAGE_BYTES

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        """Run the block on a snapshot; what LMDB finds broken in it is noted and raised as Damaged."""
        try:
            with self.lmdb.begin() as transaction:
                yield transaction
        except (lmdb.Error, OverflowError) as error:
            self.found(str(error))
            raise Damaged(f"{self.directory}: {error}") from error

    def close(self) -> None:
        """Close the files."""
        self.lmdb.close()
        os.close(self.file)
