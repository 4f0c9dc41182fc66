"""What a worker of the disk tier does with its disk: its states are there, and in memory are those that are in use.

The one rule: a state leaves memory when a checkpoint has made it durable, and not before. So checkpoints here are many
and small: one is due when a part of the memory (MEMORY_UNKEPT_SHARE) holds what the last one lacks, and it writes the
keys that have changed since. What leaves when, and that it is what it was when it is back, is the core's business
(`anna.kvs.memory`).

A cell that is not as it was written is lost to this worker: its key is answered by the other owners, and comes back
from them. The worker goes on beside it if a walk over the file finds nothing else wrong, and ends otherwise.
Source: docs/decisions/0016; reliability P16.
"""

from __future__ import annotations

import logging
from time import monotonic_ns

from anna.allocator import give_back_from
from anna.config import MEMORY_MAPPED_BYTES, MEMORY_UNKEPT_SHARE
from anna.errors import Damaged
from anna.kvs.transactions import LOG_PREFIX
from anna.kvs.worker import Worker
from anna.logs import Event
from anna.storage.checkpoint import Cell, Checkpoint
from anna.storage.engine import Engine

log = logging.getLogger("anna.disktier")


class DiskTier:
    """The states of `worker` in `engine`, of which about `limit_bytes` are in memory. Before the worker has any key."""

    def __init__(self, worker: Worker, engine: Engine, limit_bytes: int) -> None:
        give_back_from(MEMORY_MAPPED_BYTES)
        self.worker, self.engine = worker, engine
        worker.store.hold_in(limit_bytes, self.fetch)
        assert worker.store.memory is not None
        self.memory = worker.store.memory
        self.is_damaged = False
        self._taken: dict[bytes, None] = {}

    def fetch(self, key: bytes) -> bytes | None:
        """Return the cells of `key`, None when they are not there as they were written."""
        try:
            return self.engine.cell(key)
        except Damaged as error:
            log.error("%s", error, extra=Event.of("damage", what=str(error)))
            self.is_damaged = True
            return None

    def restore(self) -> None:
        """Take up what the checkpoint has, at a start; the states stay where they are."""
        store, clock = self.worker.store, self.worker.clock
        for key, cells in self.engine.cells():
            if key.startswith(LOG_PREFIX) or not store.restore(key, cells, clock):
                self.worker.recover(cells)

    def make_room(self) -> None:
        """Take a checkpoint at once, if the log that is joined back at a start would not fit in memory."""
        if self.memory.unkept_bytes <= self.memory.limit_bytes // 2 or self.engine.damage:
            return
        checkpoint = Checkpoint()
        checkpoint.begin(0, self.worker.cells(self.take_keys()))
        while checkpoint.rest is not None:
            part = checkpoint.take()
            if part is not None:
                self.engine.put_cells(part.cells, part.drops)
                self.stored(part.cells)
                checkpoint.stored()

    @property
    def is_due(self) -> bool:
        """Whether so much has changed since the last checkpoint that the next is due."""
        return self.memory.unkept_bytes > self.memory.limit_bytes // MEMORY_UNKEPT_SHARE

    def take_keys(self) -> list[bytes]:
        """Begin a checkpoint: return the keys of which the last one lacks something."""
        self._taken = self.memory.take_unkept()
        return list(self._taken)

    def stored(self, cells: tuple[Cell, ...]) -> None:
        """A slice of the checkpoint is durable: what has not changed since may leave memory."""
        self.worker.kept([key for key, _ in cells], monotonic_ns())

    def failed(self) -> None:
        """The checkpoint was given up."""
        self.memory.note_again(self._taken)

    def mend(self) -> None:
        """Write on beside the cells that were found damaged. Some seconds. Raises Damaged when there is more."""
        self.is_damaged = False
        if not self.engine.forgive():
            raise Damaged(f"{self.engine.place}: {self.engine.damage[0]}, and more than single cells")
