"""A seat's disk: the storage engine's contract, with everything that a disk may do to it.

The one rule: only what a commit has synced is there after a crash; of what came after, any prefix may be, and its
last record may be torn, which the checksum of a record tells. A full disk refuses an append and keeps what it has; a
failed sync is final for this opening of the disk (P17); a lying sync says that it has synced and has not. A wiped
disk is empty. A slice of a checkpoint is one transaction: stored whole or not at all. Source: reliability E, stage 3.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from zlib import crc32

from anna.storage.checkpoint import Slice
from tests.sim.schedule import MS, Schedule


@dataclass(slots=True)
class Record:
    """One appended blob, and the checksum that it was written with."""

    number: int
    blob: bytes
    checksum: int

    @property
    def whole(self) -> bool:
        """Whether it reads back as it was written."""
        return crc32(self.blob) == self.checksum


class Disk:
    """The log and the checkpoint of one seat."""

    def __init__(self, schedule: Schedule, draw: Random, latency: int = MS) -> None:
        self.latency = latency
        self.full = False
        self.failing = False
        self.lying = False
        self.slow_factor = 1
        self.commits = 0
        self.cells: dict[bytes, bytes] = {}
        """The checkpoint: the cell of each key."""
        self.last_number = 0
        """The greatest number of any batch, those that a checkpoint has replaced too."""
        self._schedule = schedule
        self._draw = draw
        self._records: list[Record] = []
        self._synced = 0
        self._truncated = 0
        """How many records have gone from the log's beginning."""
        self._opening = 0
        self._failed = False

    def append(self, number: int, blob: bytes) -> None:
        """Write a log blob, not durable yet. Raises OSError: ENOSPC when the disk is full, EIO after a failed sync."""
        if self._failed:
            raise OSError(errno.EIO, "an earlier sync failed")
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        self._records.append(Record(number, blob, crc32(blob)))

    def commit(self, done: Callable[[OSError | None], None]) -> None:
        """Make everything that was appended durable, then call `done`; with the error when the sync failed."""
        self._schedule.after(self._latency(), self._commit, self._truncated + len(self._records), self._opening, done)

    def _commit(self, count: int, opening: int, done: Callable[[OSError | None], None]) -> None:
        if opening != self._opening:
            return
        if self.failing or self._failed:
            self._failed = True
            done(OSError(errno.EIO, "the sync failed"))
            return
        self.commits += 1
        if not self.lying:
            self._synced = max(self._synced, count - self._truncated)
        self._schedule.note(f"synced {count} {self.lying}")
        done(None)

    @property
    def log_bytes(self) -> int:
        """Bytes of all batches in the log."""
        return sum(len(record.blob) for record in self._records)

    def store(self, part: Slice, done: Callable[[OSError | None], None]) -> None:
        """Make a slice of a checkpoint durable, then call `done`; with the error when that cannot be."""
        self._schedule.after(self._latency(), self._store, part, self._opening, done)

    def _store(self, part: Slice, opening: int, done: Callable[[OSError | None], None]) -> None:
        if opening != self._opening:
            return
        if self.full or self.failing or self._failed:
            self._failed |= not self.full
            done(OSError(errno.ENOSPC if self.full else errno.EIO, "the slice was not stored"))
            return
        for key in part.drops:
            self.cells.pop(key, None)
        self.cells.update(part.cells)
        done(None)

    def _latency(self) -> int:
        return (self.latency + int(self._draw.random() * self.latency)) * self.slow_factor

    def truncate(self, below: int) -> None:
        """Forget the log blobs up to number `below`: a durable checkpoint holds them."""
        self.last_number = max(self.last_number, below)
        gone = sum(record.number <= below for record in self._records[: self._synced])
        del self._records[:gone]
        self._synced -= gone
        self._truncated += gone

    def crash(self) -> None:
        """Lose power: of what was not synced a prefix stays, whose last record may be torn."""
        self._opening += 1
        self._failed = False
        kept = self._records[: self._synced]
        rest = self._records[self._synced :]
        if rest:
            kept += rest[: self._draw.randint(0, len(rest))]
            if len(kept) > self._synced and kept[-1].blob and self._draw.random() < 0.5:
                torn = kept[-1]
                kept[-1] = Record(torn.number, torn.blob[: self._draw.randrange(len(torn.blob))], torn.checksum)
        self._records = kept
        self._schedule.note(f"disk keeps {len(kept)} of {self._synced}+{len(rest)}")

    def kill(self) -> None:
        """Lose the process but not the machine: what was written reads back, synced or not."""
        self._opening += 1
        self._failed = False

    def wipe(self) -> None:
        """Lose everything."""
        self._opening += 1
        self._failed = False
        self._records = []
        self._synced = 0
        self.cells = {}
        self.last_number = 0

    def recover(self) -> list[tuple[int, bytes]]:
        """Return the blobs as a start finds them, in order; a torn tail is cut off."""
        whole: list[Record] = []
        for record in self._records:
            if not record.whole:
                break
            whole.append(record)
        self._records = whole
        self._synced = len(whole)
        self.last_number = max([self.last_number, *(record.number for record in whole)])
        return [(record.number, record.blob) for record in whole]

    def check(self) -> None:
        """Assert the disk's own invariants."""
        assert 0 <= self._synced <= len(self._records)
        assert all(record.whole for record in self._records[: self._synced])
