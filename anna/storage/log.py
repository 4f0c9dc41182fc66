"""A seat's log: numbered blobs in groups, in files that are written over and over, and their directory in LMDB.

    log/data.mdb  segment-1  segment-2  ...

The one rule: a group is durable when `write` returns, and what was durable is either read back as it was written or
reported as damage by its numbers. Groups follow each other in a segment (`anna.storage.group`), numbers without a gap
through all segments. A segment is zeroed and synced when it is made, and used again when the log has dropped what it
holds: overwriting blocks that exist costs one flush of the disk, new ones also what the file system notes of them.

Which segments there are, of which length, the first number that is kept and whose data this is are records of an LMDB
environment, changed in its transactions. Where the log ends is found by reading: behind its last group no other is
whole. A group after a gap, a mark, or the head that the environment has says that more was durable; then what is
missing is damage.
Source: decision 0017, reliability P15, P16, P17.
"""

from __future__ import annotations

import mmap
import os
import threading
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from anna.config import LOG_SEGMENT_BYTES_MAX, LOG_SEGMENT_BYTES_MIN, LOG_SPARE_BYTES_MAX
from anna.errors import DiskFull, StorageFailed
from anna.storage.environment import NO_ROOM, Environment, sync_directory
from anna.storage.group import BLOCK_BYTES, blobs_in, group_bytes, groups_in, write_group
from anna.storage.records import (
    LOG_HEAD,
    LOG_SALT,
    LOG_WHO,
    Damage,
    Identity,
    identity_of,
    identity_record,
    segment_of,
    segment_record,
)
from anna.storage.seal import sealed, unsealed

SALT_BYTES: Final = 16
ZEROS: Final = mmap.mmap(-1, 1024 * 1024)
"""Zeros at a page's begin, as writes past the page cache want them."""


@dataclass(slots=True)
class Segment:
    """One file, with the numbers `first` to `last` in it; the next group goes to `end`."""

    number: int
    size: int
    end: int = 0
    first: int = 0
    last: int = 0


class Log:
    """The open log in `directory`. One thread writes at a time. `first` to `last` are the numbers that are kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.roots = Environment(directory, LOG_HEAD)
        self.segments: dict[int, Segment] = {}
        self.spare: list[Segment] = []
        self.current: Segment | None = None
        self.file = -1
        self.sizes = array("Q")
        self.is_marked = True
        self.preparing: threading.Thread | None = None
        self.prepared: Segment | None = None
        self.first, self.last = self.roots.head.first, self.roots.head.last
        self.size = 0
        self.salt = b""
        self.identity: Identity | None = None
        try:
            self.read_roots()
            self.find_groups()
        except BaseException:
            self.close_files()
            self.roots.close()
            raise

    @property
    def damage(self) -> list[Damage]:
        """What was found so far that is not as it was written."""
        return self.roots.damage

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was ever written into it."""
        return self.last == 0 and self.identity is None and not any(self.directory.glob("segment-*"))

    @property
    def is_new(self) -> bool:
        """Whether there was no environment when it was opened."""
        return self.roots.is_new

    @property
    def disk_bytes(self) -> int:
        """How much of the disk the kept blobs take, about."""
        return sum(segment.end for segment in self.segments.values() if segment.last >= self.first)

    def found(self, why: str, which: int | bytes | None = None) -> None:
        """Note damage."""
        self.roots.found(why, which)

    # opening

    def read_roots(self) -> None:
        """Read salt, identity and segments from the environment; make the salt of a new one."""
        if self.roots.damage:
            return
        with self.roots.reading() as transaction:
            records = [(bytes(name), bytes(record)) for name, record in transaction.cursor()]
        for name, record in records:
            if name == LOG_SALT:
                self.salt = unsealed(name, record) or b""
            elif name == LOG_WHO:
                self.identity = identity_of(record)
                if self.identity is None:
                    self.found("whose data this is, is not as it was written")
            elif name != LOG_HEAD:
                found = segment_of(name, record)
                if found is None:
                    self.found("what is known of a segment is not as it was written")
                else:
                    self.segments[found[0]] = Segment(*found)
        if not self.salt and (self.segments or self.last or self.identity):
            self.found("its salt is gone")
        elif not self.salt:
            self.salt = os.urandom(SALT_BYTES)
            with self.roots.writing() as transaction:
                transaction.put(LOG_SALT, sealed(LOG_SALT, self.salt))

    def find_groups(self) -> None:
        """Find every whole group, and by their numbers what is missing; be ready to go on behind the last one."""
        groups: list[tuple[int, list[int], int, Segment]] = []
        for segment in self.segments.values():
            content = self.content_of(segment)
            for place, size, first, _ in groups_in(content, self.salt, self.first):
                groups.append((first, [len(blob) for blob in blobs_in(content, place)], place + size, segment))
        lengths: dict[int, int] = {}
        expected = self.first
        for first, sizes, end, segment in sorted(groups, key=lambda group: (group[0], len(group[1]))):
            if first > expected:
                self.missing(expected, first - 1)
            expected = max(expected, first + len(sizes))
            if sizes:
                lengths.update(zip(range(first, expected), sizes, strict=False))
                if segment.last < self.first:
                    segment.first = first
                segment.end, segment.last = end, first + len(sizes) - 1
                self.current = segment
        if expected <= self.roots.head.last:
            self.missing(expected, self.roots.head.last)
        self.last = max(expected - 1, self.roots.head.last)
        self.sizes = array("Q", (lengths.get(number, 0) for number in range(self.first, self.last + 1)))
        self.size = sum(self.sizes)
        self.spare = [segment for segment in self.segments.values() if segment.last < self.first]
        if not self.damage:
            self.forget_strays()
            self.go_on()

    def go_on(self) -> None:
        """Be ready to write behind the last group.

        What is whole may never have been synced, if the process was killed in between.
        """
        if self.current is None:
            return
        self.is_marked = False
        self.open_current()
        try:
            os.fdatasync(self.file)
        except OSError as error:
            raise self.failing(error) from error

    def missing(self, first: int, last: int) -> None:
        """Note that numbers are gone, whose groups are not as they were written."""
        if last - first < 16:
            for number in range(first, last + 1):
                self.found("it is missing or not as it was written", number)
        else:
            self.found(f"numbers {first:,} to {last:,} are missing or not as they were written")

    def content_of(self, segment: Segment) -> bytes:
        """Return all bytes of a segment, noting when they cannot be had; ordinary reads do not end the process."""
        try:
            content = self.path_of(segment).read_bytes()
        except OSError as error:
            self.found(f"segment {segment.number} cannot be read: {error.strerror}")
            return b""
        if len(content) != segment.size:
            self.found(f"segment {segment.number} has {len(content):,} bytes of {segment.size:,}")
        return content

    def forget_strays(self) -> None:
        """Remove the file of a segment that was never used: who made it ended before it was noted."""
        known = {self.path_of(segment) for segment in self.segments.values()}
        for path in self.directory.glob("segment-*"):
            if path not in known and not self.is_new:
                path.unlink()

    # reading

    def blobs(self) -> Iterator[tuple[int, bytes]]:
        """Return the kept blobs in order of their numbers, as they were when it began."""
        begin, last = self.first, self.last
        kept = [segment for segment in self.segments.values() if segment.last >= begin]
        for segment in sorted(kept, key=lambda segment: segment.first):
            content = self.content_of(segment)
            for place, _, first, _ in groups_in(content, self.salt, begin):
                for number, blob in enumerate(blobs_in(content, place), first):
                    if begin <= number <= last:
                        yield number, blob

    # writing

    def write(self, first: int, blobs: list[bytes]) -> None:
        """Make a group of blobs durable, of which the first has number `first`.

        Raises DiskFull when there is no room for it, after which it may be tried again, and StorageFailed.
        """
        self.roots.must_be_sound()
        try:
            segment = self.segment_for(group_bytes(blobs))
            written = write_group(self.file, segment.end, self.salt, first, blobs)
        except DiskFull:
            raise
        except OSError as error:
            raise self.failing(error) from error
        except StorageFailed as error:
            self.roots.failed = f"{self.directory}: {error}; nothing is written here any more"
            raise StorageFailed(self.roots.failed) from error
        segment.first = segment.first or first
        segment.end += written
        segment.last = self.last = first + len(blobs) - 1
        self.sizes.extend(map(len, blobs))
        self.size += sum(map(len, blobs))
        self.is_marked = False
        if self.preparing is None and not self.spare and 2 * segment.end > segment.size:
            self.prepare()

    def mark(self) -> None:
        """Write down that everything until now was durable, when there is time: unsynced, and to be written over."""
        segment, has_to = self.current, not (self.is_marked or self.roots.failed or self.damage)
        self.is_marked = True
        if not has_to or segment is None or segment.end + BLOCK_BYTES > segment.size:
            return
        try:
            write_group(self.file, segment.end, self.salt, self.last + 1, [], sync=False)
        except OSError as error:
            raise self.failing(error) from error

    def drop(self, up_to: int) -> None:
        """Drop the blobs with numbers to `up_to`, durably; segments without any other are used again."""
        if up_to < self.first:
            return
        with self.roots.writing(lambda head: replace(head, first=up_to + 1, last=self.last)):
            pass
        count = up_to + 1 - self.first
        self.size -= sum(self.sizes[:count])
        del self.sizes[:count]
        self.first = up_to + 1
        for segment in self.segments.values():
            if segment.last <= up_to and segment is not self.current and segment not in self.spare:
                self.spare.append(segment)
        while sum(segment.size for segment in self.spare) > LOG_SPARE_BYTES_MAX:
            self.remove(self.spare.pop())

    def begin_at(self, number: int) -> None:
        """Let the next blob have `number`; nothing was written yet."""
        with self.roots.writing(lambda head: replace(head, first=number, last=number - 1)):
            pass
        self.first, self.last = number, number - 1

    def identify(self, identity: Identity) -> None:
        """Say durably whose data this is."""
        with self.roots.writing() as transaction:
            transaction.put(LOG_WHO, identity_record(identity))
        self.identity = identity

    # segments

    def path_of(self, segment: Segment) -> Path:
        """Return where a segment's file is."""
        return self.directory / f"segment-{segment.number}"

    def segment_for(self, size: int) -> Segment:
        """Return the segment that the next group goes to: the current one, one that is used again, or a new one."""
        if self.current is not None and self.file >= 0 and self.current.end + size <= self.current.size:
            return self.current
        self.take_prepared()
        for segment in self.spare:
            if segment.size >= size:
                self.spare.remove(segment)
                break
        else:
            segment = self.new_segment(size)
        full, self.current = self.current, segment
        segment.first = segment.end = 0
        self.open_current()
        if full is not None and full.last < self.first:
            self.spare.append(full)
        return segment

    def open_current(self) -> None:
        assert self.current is not None
        self.close_files()
        self.file = os.open(self.path_of(self.current), os.O_RDWR | os.O_CLOEXEC)

    def new_segment(self, size: int) -> Segment:
        """Make a segment as long as all others together, within limits; as short as can be where room is short."""
        usual = self.next_segment()
        try:
            segment = self.made(replace(usual, size=max(usual.size, size)))
        except DiskFull:
            segment = self.made(replace(usual, size=size))
        self.note(segment)
        return segment

    def next_segment(self) -> Segment:
        """Return the segment that would be made next."""
        together = sum(segment.size for segment in self.segments.values())
        size = min(max(together, LOG_SEGMENT_BYTES_MIN), LOG_SEGMENT_BYTES_MAX)
        return Segment(max(self.segments, default=0) + 1, size)

    def note(self, segment: Segment) -> None:
        """Let a segment that was made be one of the log's."""
        name, record = segment_record(segment.number, segment.size)
        with self.roots.writing() as transaction:
            transaction.put(name, record)
        self.segments[segment.number] = segment

    def prepare(self) -> None:
        """Let another thread make the next segment before the current one is full: commits need not wait for it."""
        segment = self.next_segment()

        def make() -> None:
            with suppress(DiskFull, StorageFailed):  # the next commit that needs it will find out
                self.prepared = self.made(segment)

        self.preparing = threading.Thread(target=make, name="log-ahead", daemon=True)
        self.preparing.start()

    def take_prepared(self) -> None:
        """Let the segment that was made ahead be used."""
        if self.preparing is None:
            return
        self.preparing.join()
        segment, self.preparing, self.prepared = self.prepared, None, None
        if segment is not None:
            self.note(segment)
            self.spare.append(segment)

    def made(self, segment: Segment) -> Segment:
        """Make a segment's file: with all its blocks, all zero, all durable."""
        path = self.path_of(segment)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, segment.size)
            write_zeros(path, segment.size)
            os.fsync(file)
            sync_directory(self.directory)
        except OSError as error:
            path.unlink()
            raise self.failing(error) from error
        finally:
            os.close(file)
        return segment

    def remove(self, segment: Segment) -> None:
        """Give back a segment's room."""
        name, _ = segment_record(segment.number, segment.size)
        with self.roots.writing() as transaction:
            transaction.delete(name)
        del self.segments[segment.number]
        self.path_of(segment).unlink()

    def failing(self, error: OSError) -> DiskFull | StorageFailed:
        """Return what an error means: no room, or the end of all writing."""
        if error.errno in NO_ROOM:
            return DiskFull(f"{self.directory}: {error}")
        self.roots.failed = f"{self.directory}: {error}; nothing is written here any more"
        return StorageFailed(self.roots.failed)

    def close_files(self) -> None:
        """Close the current segment's file, and give back the memory that caches it: nobody will read it soon."""
        if self.file >= 0:
            os.posix_fadvise(self.file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(self.file)
            self.file = -1

    def close(self) -> None:
        """Note durably how far the log has come, and close it."""
        if self.preparing is not None:
            self.preparing.join()
        if self.prepared is not None:
            self.path_of(self.prepared).unlink()
        self.preparing = self.prepared = None
        try:
            if self.last > self.roots.head.last and self.roots.failed is None and not self.damage:
                with self.roots.writing(lambda head: replace(head, last=self.last)):
                    pass
        except (DiskFull, StorageFailed):
            pass  # the end is found by reading, too
        finally:
            self.close_files()
            self.roots.close()


def write_zeros(path: Path, size: int) -> None:
    """Write zeros over a file of whole blocks; past the page cache where that is possible: nobody will read them."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:  # the file system has no such way
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        place = 0
        while place < size:
            place += os.pwrite(file, memoryview(ZEROS)[: size - place], place)
    finally:
        os.close(file)
