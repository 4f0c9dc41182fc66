"""Backups: the state of all keys at one epoch, from the workers into a file, and from a file back into a cluster.

The one rule: a backup holds no write without those that its client had seen before. All workers keep the state at the
end of one epoch that lies ahead (`anna.kvs.snapshot`); when it is stable everywhere, each gives the keys that it is
the first owner of. Where a worker was asked too late, or the cluster changed meanwhile, all begin again with an epoch
further ahead.

A restore is a write of each key: what was written since the backup is joined with it, so a register written since
keeps its value, a set has the elements of both, and a key that was deleted since is there again. Source: DESIGN §4;
decision 0013.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from anna.asking import Line
from anna.backupfile import BackupReader, BackupWriter, Head
from anna.client import Client
from anna.config import EPOCH_US
from anna.errors import (
    AnnaError,
    ConnectionLost,
    NotSupported,
    NoWorkers,
    SnapshotExpired,
    StaleReplica,
)
from anna.kvs.cells import read_cells
from anna.kvs.clock import EPOCH_2020_S
from anna.lattices import REGISTRY, Lattice
from anna.messages import View, WorkerInfo
from anna.wire import BACKUP, BEGIN, END, PAGE

EPOCHS_AHEAD: Final = (3, 10, 30, 100, 300)
"""How far ahead a backup's epoch is, attempt by attempt: every worker must hear of it before it has ended."""

STABLE_WAIT_S: Final = 30.0
"""How long a backup waits until its epoch is stable: a node that died is waited for until it is dropped."""

_STEP: Final = struct.Struct("<QQ")


class Source(Protocol):
    """The workers of a cluster, as a backup asks them."""

    @property
    def view(self) -> View:
        """The workers as they are known now."""
        ...

    @property
    def cluster(self) -> str:
        """The cluster's name."""
        ...

    def epoch(self) -> int:
        """Learn the newest view, and return the greatest epoch that any worker is in."""
        ...

    def ask(self, worker: WorkerInfo, step: int, payload: bytes) -> bytes:
        """Return a worker's answer to one step of a backup. Raises AnnaError."""
        ...

    def pause(self) -> bool:
        """Let an epoch pass; False when the backup has waited for as long as it may."""
        ...


@dataclass(frozen=True, slots=True)
class Summary:
    """What a backup or a restore did. `epoch` is the backup's, `late` the keys that had outlived their time."""

    epoch: int
    keys: int
    size: int
    late: int = 0

    @property
    def unix_s(self) -> float:
        """The end of the epoch, in seconds since 1970."""
        return EPOCH_2020_S + (self.epoch + 1) * EPOCH_US / 1e6


def backup(source: Source, path: Path, told: Callable[[int, int], None] = lambda keys, size: None) -> Summary:
    """Write the state of all keys at one epoch to `path`; `told` hears the keys and bytes so far.

    Raises SnapshotExpired when the cluster changed in every attempt, UnavailableError when another backup is under way.
    """
    expired: AnnaError
    for ahead in EPOCHS_AHEAD:
        epoch = source.epoch() + ahead
        view = source.view
        try:
            with BackupWriter(path, Head(source.cluster, epoch, len(view.workers), time.time())) as file:
                keys = 0
                for cells in _cells(source, view, epoch):
                    file.write(cells)
                    keys += len(read_cells(cells))
                    told(keys, len(cells))
                end = file.finish(keys)
                return Summary(epoch, end.keys, end.size)
        except (SnapshotExpired, ConnectionLost) as error:
            expired = error
        finally:
            _let_go(source, view, epoch)
    raise expired


def _cells(source: Source, view: View, epoch: int) -> Iterator[bytes]:
    """Yield the cells of all keys at the end of `epoch`. Raises SnapshotExpired when a worker lost them."""
    for worker in view.workers:
        _ask(source, view, worker, BEGIN, epoch)
    for worker in view.workers:
        place, cells = _ask_when_stable(source, view, worker, epoch, 0)
        yield cells
        while place:
            place, cells = _ask_when_stable(source, view, worker, epoch, place)
            yield cells


def _ask_when_stable(source: Source, view: View, worker: WorkerInfo, epoch: int, place: int) -> tuple[int, bytes]:
    while True:
        try:
            return _ask(source, view, worker, PAGE, epoch, place)
        except StaleReplica as error:
            if not source.pause():
                raise SnapshotExpired(f"worker {worker.worker_id:016x}: {error}") from None


def _ask(
    source: Source, view: View, worker: WorkerInfo, step: int, epoch: int, place: int = 0
) -> tuple[int, bytes]:
    """Return (where to go on, cells) of one worker's answer; all must have the view that the backup began with."""
    answer = source.ask(worker, step, _STEP.pack(epoch, place))
    digest, rest = _STEP.unpack_from(answer)
    if digest != view.digest:
        raise SnapshotExpired(f"worker {worker.worker_id:016x} has another view than {view.version}")
    return rest, answer[_STEP.size :]


def _let_go(source: Source, view: View, epoch: int) -> None:
    """Tell the workers that the epoch is not wanted any more; they find out by themselves, only later."""
    for worker in view.workers:
        with contextlib.suppress(AnnaError):
            source.ask(worker, END, _STEP.pack(epoch, 0))


# -- restore


def restore(
    client: Client,
    reader: BackupReader,
    ack: str | int | None = None,
    told: Callable[[int, int], None] = lambda keys, size: None,
) -> Summary:
    """Join a backup into a cluster, block by block, after all of it was checked; `told` hears of each block.

    The client must be one of the system's, to write reserved keys. Raises Damaged before anything is written.
    """
    end = reader.check()
    keys = late = 0
    for block in reader.blocks():
        states = []
        now_us = int((time.time() - EPOCH_2020_S) * 1e6)
        for key, number, _, _, _, expires, payload in read_cells(block):
            if expires == 0:
                states.append((key, _state_of(number, payload)))
            elif expires > now_us:
                client.put(key, _state_of(number, payload), ack=ack, ttl=(expires - now_us) / 1e6)
                keys += 1
            else:
                late += 1
        if states:
            client.mput(states, ack=ack)
        keys += len(states)
        told(keys + late, len(block))
    return Summary(reader.head.epoch, keys, end.size, late)


def _state_of(number: int, payload: bytes) -> Lattice:
    kind = REGISTRY.get(number)
    if kind is None:
        raise NotSupported(f"the backup has a state of lattice type {number}, which this version does not know")
    return kind.decode(payload)


# -- the workers of a real cluster


class ClusterSource:
    """The workers that `client` knows, each at a stream of its own."""

    def __init__(self, client: Client) -> None:
        self.cluster = ""
        self._client = client
        self._lines: dict[int, Line] = {}
        self._pauses = 0

    @property
    def view(self) -> View:
        """The workers as they are known now."""
        return self._client.view

    def epoch(self) -> int:
        """Learn the newest view, and return the greatest epoch of any worker. Raises NoWorkers unless all answer."""
        self._pauses = 0
        self._client.refresh(time.monotonic_ns() + int(self._client.timeout * 1e9))
        epochs: list[int] = []
        for figures in self._client.status():
            if "error" in figures:
                raise NoWorkers(f"worker {figures['place']} does not answer: {figures['error']}")
            self.cluster = figures.get("cluster", "")
            epochs.append(figures["epoch"])
        return max(epochs)

    def ask(self, worker: WorkerInfo, step: int, payload: bytes) -> bytes:
        """Return a worker's answer to one step of a backup. Raises AnnaError."""
        line = self._lines.get(worker.worker_id)
        if line is None:
            line = self._lines[worker.worker_id] = Line(worker.addresses, self._client.timeout, self._client.keys)
        try:
            return line.ask(BACKUP, payload, step)
        except ConnectionLost:
            self._lines.pop(worker.worker_id).close()
            raise

    def pause(self) -> bool:
        """Let an epoch pass; False after STABLE_WAIT_S of them."""
        time.sleep(EPOCH_US / 1e6)
        self._pauses += 1
        return self._pauses * EPOCH_US / 1e6 < STABLE_WAIT_S

    def close(self) -> None:
        """End the streams."""
        for line in self._lines.values():
            line.close()
