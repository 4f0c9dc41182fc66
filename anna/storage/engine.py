"""A seat's data: a numbered log and a table of cells, in one directory.

    seat-3/format  lock  ballast  reading  refill  log/  cells/  damaged-1/

The log is made durable by `commit`; cells, which are in an LMDB environment, are durable when `put_cells` returns.
They are apart so that a checkpoint never makes a commit wait. The one rule: what was reported as durable is either
read back as it was written or reported as damage, by number or key; beside damage nothing is written until what could
be saved was read and the rest `set_aside`.

Files are mapped, so a length that a flipped bit made to reach beyond the end, or a sector that cannot be read,
ends the process instead of raising. Hence `reading` is there until everything has been read once; a start that
finds it, because the one before ended in the middle, walks over all pages with ordinary reads before it maps any.
Source: docs/decisions/0010 and 0017, reliability P15, P16, P17, D16, D17.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Final

from anna.config import BALLAST_BYTES, CHECKPOINT_SLICE_BYTES
from anna.errors import Damaged, DataInUse, DiskFull, NotSupported
from anna.storage.environment import DATA, NO_ROOM, PAGE_BYTES, Environment, sync_directory, walked
from anna.storage.log import Log
from anna.storage.records import CELLS_HEAD, Damage, Head, Identity, cell_of, cell_record, name_of

FORMAT: Final = 2
FORMAT_LINE: Final = re.compile(r"anna seat data, format ([0-9]{1,9})\n")

Cell = tuple[bytes, bytes]


def seat_directory(directory: Path, seat: int) -> Path:
    """Return where the data of `seat` is."""
    return directory / f"seat-{seat}"


class Engine:
    """The open data of one seat. `append` and reads may come from any thread; writes from one at a time each.

    `damage` lists what was found so far: at the opening, and by every read. `full` is True from the moment
    that the ballast was given up until there is room for it again: accept no more durable writes meanwhile.
    `refilling` is True from `set_aside` until `refilled`: what is here is not all that was there.
    """

    def __init__(self, directory: Path, seat: int, *, ballast_bytes: int = BALLAST_BYTES) -> None:
        """Open or make the data of `seat` below `directory`.

        Raises DataInUse, NotSupported (a newer format), DiskFull, and Damaged when it cannot be opened at all;
        `Engine.salvage` then sets it aside.
        """
        self.place = seat_directory(directory, seat)
        self.place.mkdir(parents=True, exist_ok=True)
        sync_directory(directory)
        self.full, self.ballast_bytes = False, ballast_bytes
        self.writes = threading.Lock()
        self.pending: list[tuple[int, bytes]] = []
        self.pending_bytes = 0
        self.lock = locked(self.place)
        try:
            self.open()
            self.regain()
        except BaseException:
            os.close(self.lock)
            raise

    def open(self) -> None:
        """Open both environments, with care when the last one to do so did not live to read them.

        The file `format` is made last: where it is, both environments were.
        """
        is_made = is_of_our_format(self.place)
        if (self.place / "reading").exists():
            look_with_care(self.place)
        self.unread = {"log", "cells"}
        (self.place / "reading").touch()
        self.log = Log(self.place / "log")
        try:
            self.table = Environment(self.place / "cells", CELLS_HEAD)
        except BaseException:
            self.log.close()
            raise
        self.refilling = (self.place / "refill").exists()
        if is_made:
            for part in (self.log, self.table):
                if part.is_new:
                    part.found("its files are gone")
        elif not self.damage and self.log.is_untouched and self.table.head == Head(1, entries=1):
            write_format(self.place)
        else:
            self.log.found("the seat's format is gone")
        self.appended = self.log.last

    @property
    def damage(self) -> list[Damage]:
        """What was found so far that is not as it was written."""
        return self.log.damage + self.table.damage

    @property
    def log_bytes(self) -> int:
        """How many bytes the blobs of the log have."""
        return self.log.size

    @property
    def log_disk_bytes(self) -> int:
        """How much of the disk they take, about: a commit has whole blocks."""
        return self.log.disk_bytes

    @property
    def identity(self) -> Identity | None:
        """Whose data this is, None when nobody said so yet."""
        return self.log.identity

    def read_to_the_end(self, place: str) -> None:
        """Note that all of the log or all of the cells has been read."""
        self.unread.discard(place)
        if not self.unread:
            (self.place / "reading").unlink(missing_ok=True)

    # the log

    def append(self, number: int, blob: bytes) -> None:
        """Let the next `commit` write `blob`; numbers follow each other without a gap."""
        with self.writes:
            if number != self.appended + 1:
                raise ValueError(f"log number {number} does not follow {self.appended}")
            self.pending.append((number, blob))
            self.pending_bytes += len(blob)
            self.appended = number

    def commit(self) -> int:
        """Make durable what was appended; return the greatest number that is durable.

        Raises DiskFull when there was not even the ballast's room: nothing that was pending is durable, and it
        stays pending for the next commit. Raises StorageFailed, now and ever after, when the disk failed.
        """
        with self.writes:
            taken = self.pending[:]
        if taken:
            number, blobs = taken[0][0], [blob for _, blob in taken]
            try:
                self.log.write(number, blobs)
            except DiskFull:
                if not self.give_up_ballast():
                    raise
                self.log.write(number, blobs)
            with self.writes:
                del self.pending[: len(taken)]
                self.pending_bytes -= sum(map(len, blobs))
        return self.log.last

    @property
    def is_marked(self) -> bool:
        """Whether there is nothing to `mark`."""
        return self.log.is_marked

    def mark(self) -> None:
        """Write down that what was committed was, when nothing else is to be done; then no damage of it looks torn."""
        self.log.mark()

    def logs(self) -> Iterator[tuple[int, bytes]]:
        """Return the durable blobs in order of their numbers; what is missing or damaged was noted and is left out."""
        yield from self.log.blobs()
        self.read_to_the_end("log")

    def truncate_logs(self, up_to: int) -> None:
        """Drop the blobs with numbers to `up_to`, durably. Call it when cells that hold their effect are durable."""
        self.log.drop(min(up_to, self.log.last))

    # the cells

    def put_cells(self, cells: Iterable[Cell], drops: Iterable[bytes] = ()) -> None:
        """Drop and then store cells in one durable transaction; a cell replaces the one under the same key.

        Sorted by key they take half the time. Raises DiskFull, without touching the ballast, and StorageFailed.
        """
        records = sorted(cell_record(key, cell) for key, cell in cells)
        size = sum(len(name) + len(record) for name, record in records)
        with self.table.writing(pages=2 * size // PAGE_BYTES) as transaction:
            for key in drops:
                transaction.delete(name_of(key))
            with transaction.cursor() as cursor:
                cursor.putmulti(records)

    def drop(self, key: bytes) -> None:
        """Drop the cell of `key`, durably."""
        self.put_cells((), (key,))

    def cell(self, key: bytes) -> bytes | None:
        """Return the cell of `key`, None when there is none. Raises Damaged when it is not as it was written."""
        name = name_of(key)
        with self.table.reading() as transaction:
            record = transaction.get(name)
            if record is None:
                return None
            found = cell_of(name, record)
        if found is None or found[0] != key:
            self.table.found("it is not as it was written", key)
            raise Damaged(f"{self.place}: the cell of {key!r} is not as it was written")
        return found[1]

    def cells(self) -> Iterator[Cell]:
        """Return all cells by name; what is missing or damaged is noted and left out. 1 µs for each of 100 B.

        Writers go on meanwhile; the iterator sees the cells as they were when it began.
        """
        if (yield from cells_in(self.table)):
            self.read_to_the_end("cells")

    # the whole

    def identify(self, identity: Identity) -> None:
        """Say durably whose data this is."""
        self.log.identify(identity)

    def check(self) -> list[Damage]:
        """Read everything, walk over every page, and return all damage. About 4 s for a million cells."""
        for _ in self.logs():
            pass
        for _ in self.cells():
            pass
        for part in (self.log, self.table):
            for finding in walked(part.directory):
                part.found(finding)
        return self.damage

    def set_aside(self, *, copied: bool = False) -> Path:
        """Put log and cells beside and begin empty, `refilling`; return where they are. Log numbers go on.

        Call it when everything that could be read was read. The data is not all there until `refilled`. With `copied`
        begin with those cells that are as they were written, for whoever does not hold all of them in memory.
        """
        last, identity = self.log.last, self.identity
        self.log.close()
        old = self.table
        aside = put_aside(self.place)
        try:
            self.open()
            if copied:
                for part in slices_of(cells_in(old)):
                    self.put_cells(part)
        finally:
            old.close()
        if last or identity:
            self.log.begin_at(last + 1)
        if identity is not None:
            self.identify(identity)
        self.appended = last
        self.pending, self.pending_bytes = [], 0
        return aside

    def refilled(self) -> None:
        """Say that what was set aside has been replaced, from memory or from replicas, and is durable."""
        (self.place / "refill").unlink(missing_ok=True)
        sync_directory(self.place)
        self.refilling = False

    def forgive(self) -> bool:
        """Write on beside cells that were found damaged, if a walk over every page finds nothing else; tell whether so.

        They stay damaged until they are written anew, and the next opening finds them again. About 3 s for 300 MiB.
        """
        if any(damage.which is None for damage in self.table.damage) or walked(self.table.directory):
            return False
        self.table.damage.clear()
        return True

    @staticmethod
    def salvage(directory: Path, seat: int) -> Path:
        """Set aside data that could not even be opened; return where it is. It opens empty and `refilling`."""
        place = seat_directory(directory, seat)
        lock = locked(place)
        try:
            return put_aside(place)
        finally:
            os.close(lock)

    def close(self) -> None:
        """Close the data; what was appended and not committed is gone."""
        self.log.close()
        self.table.close()
        (self.place / "reading").unlink(missing_ok=True)
        os.close(self.lock)

    # room on the disk

    def give_up_ballast(self) -> bool:
        """Give the room that was held back to the commits that were accepted; tell whether there was any."""
        self.full = True
        try:
            (self.place / "ballast").unlink()
        except FileNotFoundError:
            return False
        return True

    def regain(self) -> bool:
        """Hold back room again; tell whether that went well, after which the seat is not full any more."""
        path = self.place / "ballast"
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(handle, 0, self.ballast_bytes)
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            path.unlink(missing_ok=True)
            self.full = True
            return False
        self.full = False
        return True


def cells_in(table: Environment) -> Generator[Cell, None, bool]:
    """Yield the cells of an environment by name, noting there what is damaged; return whether the end was reached."""
    count = 1
    try:
        with table.reading() as transaction:
            expected = transaction.stat(table.main)["entries"]
            for name, record in transaction.cursor():
                if name == CELLS_HEAD:
                    continue
                count += 1
                found = cell_of(name, record)
                if found is None:
                    table.found("it is not as it was written", name)
                else:
                    yield found
    except Damaged:
        return False
    if count != expected:
        table.found(f"{count:,} records of {expected:,} are there")
    return True


def slices_of(cells: Iterator[Cell]) -> Iterator[list[Cell]]:
    """Yield cells in slices of about CHECKPOINT_SLICE_BYTES."""
    part: list[Cell] = []
    size = 0
    for key, cell in cells:
        part.append((key, cell))
        size += len(key) + len(cell)
        if size >= CHECKPOINT_SLICE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def locked(place: Path) -> int:
    """Return the lock of a seat's directory, held until it is closed."""
    lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if error.errno != errno.EWOULDBLOCK:
            raise
        raise DataInUse(f"{place} is in use by another process") from error
    return lock


def is_of_our_format(place: Path) -> bool:
    """Tell whether a seat's directory has data of our format, False when it has none. Raises NotSupported, Damaged."""
    path = place / "format"
    if not path.exists():
        return False
    line = path.read_bytes().decode(errors="replace")
    match = FORMAT_LINE.fullmatch(line)
    if match is None:
        raise Damaged(f"{path} says {line!r}, not the format")
    if int(match[1]) != FORMAT:
        raise NotSupported(f"{place} has data of format {int(match[1])}; this version reads format {FORMAT}")
    return True


def write_format(place: Path) -> None:
    """Note our format in a seat's directory, durably, and all at once."""
    partly = place / "format.new"
    with open(partly, "w") as file:
        file.write(f"anna seat data, format {FORMAT}\n")
        file.flush()
        os.fsync(file.fileno())
    partly.rename(place / "format")
    sync_directory(place)


def look_with_care(place: Path) -> None:
    """Raise Damaged when a walk over the pages of log or cells finds any. About 3 s for a million cells."""
    for name in ("log", "cells"):
        if (place / name / DATA).exists() and (findings := walked(place / name)):
            raise Damaged(f"{place / name}: {findings[0]} (and {len(findings) - 1} more)")


def put_aside(place: Path) -> Path:
    """Move log and cells of a seat into a new directory in it, and mark the seat as not whole."""
    number = 1
    while (aside := place / f"damaged-{number}").exists():
        number += 1
    (place / "refill").touch()
    (place / "reading").unlink(missing_ok=True)
    aside.mkdir()
    sync_directory(place)
    for name in ("format", "log", "cells"):
        if (place / name).exists():
            (place / name).rename(aside / name)
    sync_directory(place)
    return aside
