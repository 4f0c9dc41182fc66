"""A process's log and checkpoints on its seat's disk, driven as the real driver drives them.

The one rule: a batch is told to the core as logged only when the disk has said so; the log goes, up to a number, only
when a whole checkpoint that began at that number is stored. What to take when is the core's
(`anna.storage.checkpoint`); here is only how long a disk takes for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anna.kvs.worker import Worker
from anna.storage.checkpoint import Checkpoint
from tests.sim.disk import Disk
from tests.sim.schedule import MS

if TYPE_CHECKING:
    from tests.sim.process import Process

FULL_PAUSE_NS = 50 * MS
"""How long a process waits before it tries a full disk again."""

SLICE_BYTES = 1000
STEP_KEYS = 4
"""Slices and steps of a checkpoint are small, so that much happens between them."""


class Durability:
    """What one process has under way to its disk. `log_bytes_min` is how long a log has to be for a checkpoint."""

    def __init__(self, process: Process, disk: Disk, log_bytes_min: int) -> None:
        self.process = process
        self.schedule = process.cluster.schedule
        self.disk = disk
        self.checkpoint = Checkpoint(log_bytes_min, SLICE_BYTES, STEP_KEYS)
        self.committing = False
        self.retrying = False
        self.appended: int | None = None
        self.unwritten: list[tuple[int, bytes]] = []

    def recover(self, worker: Worker) -> None:
        """Join back what the disk has, and log from there on."""
        batches = self.disk.recover()
        if self.disk.cells:
            worker.recover(b"".join(self.disk.cells.values()))
        for _, cells in batches:
            worker.recover(cells)
        worker.open_log(1 + self.disk.last_number)

    def carry_on(self) -> None:
        """Append what the core wants to be logged, and take the next step of a checkpoint."""
        self._log(self.process.worker.log_out())
        self._step()

    # -- the log

    def _log(self, batches: list[tuple[int, bytes]]) -> None:
        """Append batches; what the disk has no room for is tried again, and meanwhile nothing more is accepted."""
        worker = self.process.worker
        self.unwritten += batches
        while self.unwritten:
            number, cells = self.unwritten[0]
            try:
                self.disk.append(number, cells)
            except OSError:
                worker.log_is_full(True)
                if not self.retrying:
                    self.retrying = True
                    self.schedule.after(FULL_PAUSE_NS, self.process.run, self._retry)
                break
            worker.log_is_full(False)
            self.unwritten.pop(0)
            self.appended = number
            if self.process.cluster.planted("unsynced-log"):
                worker.logged(number, self.process.node.clock.monotonic())
        if self.appended is not None and not self.committing:
            self._commit()

    def _retry(self) -> None:
        self.retrying = False

    def _commit(self) -> None:
        assert self.appended is not None
        number, self.appended = self.appended, None
        self.committing = True
        self.disk.commit(lambda error: self.process.run(self._committed, number, error))

    def _committed(self, number: int, error: OSError | None) -> None:
        self.committing = False
        if error is not None:
            self._failed()
            return
        self.process.worker.logged(number, self.process.node.clock.monotonic())
        if self.appended is not None:
            self._commit()

    def _failed(self) -> None:
        self.process.node.kill(self.process.seat)

    # -- checkpoints

    def _step(self) -> None:
        worker, checkpoint = self.process.worker, self.checkpoint
        if checkpoint.due(self.disk.log_bytes, worker.store.size_bytes) and not self.disk.full:
            self.schedule.note(f"checkpoint up to {worker.logged_number}")
            checkpoint.begin(worker.logged_number, worker.cells())
        for key in worker.take_forgotten():
            checkpoint.forget(key)
        part = checkpoint.take()
        if part is not None:
            self.disk.store(part, lambda error: self.process.run(self._stored, error))

    def _stored(self, error: OSError | None) -> None:
        if error is None:
            up_to = self.checkpoint.stored()
            if up_to is not None:
                self.schedule.note(f"checkpoint stored up to {up_to}")
                self.disk.truncate(up_to)
        elif self.disk.full:
            self.checkpoint.failed()
        else:
            self._failed()
