"""What makes one worker's writes outlive its process: its seat's log and checkpoints, beside its event loop.

The one rule: nothing is told to a client as durable before the disk has it, and a worker whose disk failed stops:
what it would say from then on could not be kept. The log is committed by a thread (`anna.storage.committer`); a
checkpoint is written slice by slice in another, while the worker goes on. What a start finds damaged is put aside and
comes back from the other owners, or, where there are none, the start is refused. Source: decisions 0010, 0017;
reliability P2, P15, P16, P17.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Final

from anna.config import CHECKPOINT_PAUSE_S, GATHER_S, LOG_RETRY_S, SWITCH_INTERVAL_S
from anna.disktier import DiskTier
from anna.errors import Damaged, DiskFull
from anna.kvs.worker import Worker
from anna.logs import Event
from anna.storage.checkpoint import Checkpoint, Slice
from anna.storage.committer import Committer
from anna.storage.engine import Engine
from anna.storage.gather import Gather
from anna.storage.order import in_order

log = logging.getLogger("anna.durability")

RECOVERED_BYTES: Final = 1 << 20
"""How many bytes of cells are joined back at once."""


class Durability:
    """The log and the checkpoints of `worker`'s seat in `directory`. `failed` is called when the disk has failed.

    With `memory_bytes` the worker is of the disk tier, and has no more than about that in memory.
    """

    def __init__(
        self,
        worker: Worker,
        directory: Path,
        seat: int,
        failed: Callable[[], None],
        memory_bytes: int | None = None,
    ) -> None:
        self.worker = worker
        self.checkpoint = Checkpoint()
        self._failed = failed
        self._committer: Committer | None = None
        self._ordering: asyncio.Future[list[bytes]] | None = None
        self._storing: asyncio.Future[None] | None = None
        self._stepping: asyncio.TimerHandle | None = None
        self.gather = Gather()
        self._gathering: asyncio.TimerHandle | None = None
        self.released: Callable[[], None] = lambda: None
        try:
            self.engine = Engine(directory, seat)
        except Damaged as error:
            aside = Engine.salvage(directory, seat)
            log.error("%s; put aside as %s", error, aside, extra=Event.of("damage", what=str(error)))
            self.engine = Engine(directory, seat)
        self.tier = None if memory_bytes is None else DiskTier(worker, self.engine, memory_bytes)

    def recover(self) -> None:
        """Join back what is on disk. Raises Damaged when a part is missing and no other worker could have it."""
        begun = monotonic_ns()
        count = 0
        if self.tier is not None:
            self.tier.restore()
        else:
            for cells in runs_of(cell for _, cell in self.engine.cells()):
                self.worker.recover(cells)
        for _, blob in self.engine.logs():
            self.worker.recover(blob)
            count += 1
            if self.tier is not None:
                self.tier.make_room()
        if self.engine.damage:
            for damage in self.engine.damage:
                log.error("damaged: %s", damage, extra=Event.of("damage", what=str(damage)))
            if len(self.worker.view.workers) == 1 or self.worker.view.copies_asked == 1:
                what = f"{self.engine.place} lacks data that was there"
                raise Damaged(f"{what}, and no other worker has it: {self.engine.damage[0]}")
            aside = self.engine.set_aside(copied=self.tier is not None)
            log.error("put aside as %s; the other owners have what is missing", aside)
        self.worker.open_log(self.engine.appended + 1)
        keys, seconds = len(self.worker.store), (monotonic_ns() - begun) / 1e9
        told = Event.of("recovery", keys=keys, batches=count, seconds=round(seconds, 3))
        log.info("%d keys are back (%d batches of the log) after %.2f s", keys, count, seconds, extra=told)

    def begin(self) -> None:
        """Begin to commit, in the running loop.

        The threads of log and checkpoint are in the interpreter briefly and often: the loop and they take turns soon.
        """
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._committer = Committer(self.engine, asyncio.get_running_loop(), self)

    def commit(self) -> None:
        """Let the thread commit what the worker wants to be durable, when those who are awaited have written."""
        assert self._committer is not None
        if self._gathering is not None:
            if not self.gather.is_enough(self.worker.waiting):
                return
            self._gathering.cancel()
            self._gathering = None
            self.gather.end(in_vain=False)
        for number, cells in self.worker.log_out():
            self._committer.submit(number, cells)

    def tick(self) -> None:
        """Commit what nobody waits for, and take the next step of a checkpoint."""
        self.commit()
        if self._stepping is None:
            self._go_on()

    def _go_on(self) -> None:
        """Begin a checkpoint that is due, and take the next step of the one that is under way."""
        refill = self.engine.refilling and self.worker.is_complete and self.checkpoint.rest is None
        if self._ordering is None and (refill or (self._is_due() and not self.engine.full)):
            self._begin_checkpoint()
        self._step()

    def _is_due(self) -> bool:
        """Whether the log is longer than what a checkpoint writes, or memory is needed for something else."""
        if self.tier is None:
            return self.checkpoint.due(self.engine.log_disk_bytes, self.worker.store.size_bytes)
        return self.checkpoint.rest is None and (self.tier.is_due or self.checkpoint.due(self.engine.log_disk_bytes, 0))

    def _begin_checkpoint(self) -> None:
        number = self.worker.logged_number
        keys = self.worker.store.keys_now() if self.tier is None else self.tier.take_keys()
        size = self.engine.log_bytes
        told = Event.of("checkpoint", keys=len(keys), log_bytes=size)
        level = logging.INFO if self.tier is None else logging.DEBUG  # several a second there, under load
        log.log(level, "checkpoint: %d keys, the log has %d bytes", len(keys), size, extra=told)
        self._ordering = asyncio.get_running_loop().run_in_executor(None, in_order, keys)
        self._ordering.add_done_callback(partial(self._ordered, number))

    def _ordered(self, number: int, ordering: asyncio.Future[list[bytes]]) -> None:
        """The keys that were here with the log's blob `number` are in order: copy their cells."""
        self._ordering = None
        if not ordering.cancelled():
            self.checkpoint.begin(number, self.worker.cells(ordering.result()))
            self._step()

    def _step(self) -> None:
        for key in self.worker.take_forgotten():
            self.checkpoint.forget(key)
        if self._storing is not None:
            return
        loop = asyncio.get_running_loop()
        if self.tier is not None and self.tier.is_damaged:
            self._storing = loop.run_in_executor(None, self.tier.mend)
            self._storing.add_done_callback(self._stored)
            return
        part = self.checkpoint.take()
        if part is None:
            if self.checkpoint.gathering:
                self._go_on_after(CHECKPOINT_PAUSE_S)
            return
        self._storing = loop.run_in_executor(None, self.engine.put_cells, part.cells, part.drops)
        self._storing.add_done_callback(self._stored)

    def _go_on_after(self, seconds: float) -> None:
        """Go on by itself: who waits for room writes nothing that would have it looked at again."""

        def go_on() -> None:
            self._stepping = None
            self._go_on()

        if self._stepping is None:
            self._stepping = asyncio.get_running_loop().call_later(seconds, go_on)

    def _stored(self, storing: asyncio.Future[None]) -> None:
        """A slice is durable, or could not be made so."""
        self._storing = None
        if storing.cancelled():
            return
        error = storing.exception()
        if isinstance(error, DiskFull):
            log.warning("no room for a checkpoint: %s", error)
            self._give_up_checkpoint()
            self._refuse_rather_than_wait()
        elif isinstance(error, Damaged) and self.tier is not None and self.tier.is_damaged:
            self._give_up_checkpoint()  # a reader found damage meanwhile, and beside it nothing is written
        elif error is not None:
            self.failed(error)
        else:
            if self.checkpoint.taken is not None:  # and not that damage was judged
                self._slice_stored(self.checkpoint.taken)
            self._go_on_after(CHECKPOINT_PAUSE_S)

    def _give_up_checkpoint(self) -> None:
        self.checkpoint.failed()
        if self.tier is not None:
            self.tier.failed()
            self._go_on_after(LOG_RETRY_S)

    def _refuse_rather_than_wait(self) -> None:
        """The disk has no room: who waits until memory has some would wait for ever."""
        if self.tier is not None:
            self.worker.log_is_full(True)
            self.worker.release_held()
            self.released()

    def _slice_stored(self, part: Slice) -> None:
        """Let what is durable leave memory, and the log go when that was the last slice."""
        if self.tier is not None:
            self.worker.log_is_full(self.engine.full)
            self.tier.stored(part.cells)
            self.released()
        if (up_to := self.checkpoint.stored()) is not None:
            assert self._committer is not None
            self._committer.truncate(up_to)
            if self.engine.refilling:
                self.engine.refilled()

    # what the thread tells

    def logged(self, number: int) -> None:
        """The batches to `number` are durable: answer who waited, and go on with what has come meanwhile."""
        waited = self.worker.waiting
        self.worker.logged(number, monotonic_ns())
        answered = waited - self.worker.waiting
        if self._gathering is None and self.gather.begin(waited, answered):
            self._gathering = asyncio.get_running_loop().call_later(GATHER_S, self._gathered)
        elif self.worker.log_wanted:
            self.commit()
        self.released()

    def _gathered(self) -> None:
        self._gathering = None
        self.gather.end(in_vain=True)
        self.commit()

    def full(self, is_full: bool) -> None:
        """The disk is full, or is not any more."""
        if is_full:
            log.error("the disk is full: durable writes are refused until there is room", extra=Event.of("disk-full"))
        else:
            log.info("the disk has room again", extra=Event.of("disk-again"))
        self.worker.log_is_full(is_full)

    def failed(self, error: BaseException) -> None:
        """Stop: nothing can be made durable any more."""
        log.error("the log cannot be trusted any more: %s", error, extra=Event.of("storage-failed", why=str(error)))
        self._failed()

    async def close(self) -> None:
        """Make durable what can be, and close the files."""
        if self._committer is not None:
            for number, cells in self.worker.log_out():
                self._committer.submit(number, cells)
            await self._committer.close()
        if self._storing is not None:
            self._storing.remove_done_callback(self._stored)
            await asyncio.wait([self._storing])
        for timer in (self._stepping, self._gathering):
            if timer is not None:
                timer.cancel()
        if self._ordering is not None:
            self._ordering.cancel()
        self.engine.close()


def runs_of(cells: Iterator[bytes]) -> Iterator[bytes]:
    """Yield cells joined to runs of about RECOVERED_BYTES."""
    run: list[bytes] = []
    size = 0
    for cell in cells:
        run.append(cell)
        size += len(cell)
        if size >= RECOVERED_BYTES:
            yield b"".join(run)
            run, size = [], 0
    if run:
        yield b"".join(run)
