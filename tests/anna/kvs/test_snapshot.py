"""A backup is the state at the end of one epoch, on every worker, while clients write on."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from anna.backup import backup
from anna.backupfile import BackupReader
from anna.config import BACKUP_PAGE_KEYS, EPOCH_US, SNAPSHOT_IDLE_US
from anna.errors import NoWorkers, SnapshotExpired, StaleReplica, UnavailableError
from anna.kvs.cells import read_cells
from anna.kvs.worker import Connection
from anna.lattices import REGISTRY, Counter, Set
from anna.messages import View, WorkerInfo
from tests.anna.frames import DELETE, MISSING, OK, PUT, WRONG_WORKER, put, request
from tests.anna.kvs.workers import EPOCH_NS, Workers, view_of

BACKUP, BEGIN, PAGE, END = 12, 1, 2, 3
ERRORS = {23: UnavailableError, 25: StaleReplica, 28: SnapshotExpired}


def epoch_of(stamp: int) -> int:
    return (stamp >> 10) // EPOCH_US


def step(epoch: int, place: int = 0) -> bytes:
    return struct.pack("<QQ", epoch, place)


class Simulated:
    """The workers of a test as a backup's source; `meanwhile` happens while it waits, and between its questions."""

    cluster = "test"

    def __init__(self, workers: Workers, meanwhile: Callable[[], None]) -> None:
        self.workers = workers
        self.meanwhile = meanwhile
        self.pauses = 0
        self.epochs: list[int] = []

    @property
    def view(self) -> View:
        return max((worker.view for worker in self.workers.workers.values()), key=lambda view: view.version)

    def epoch(self) -> int:
        if not all(worker.is_complete for worker in self.workers.workers.values()):
            self.workers.pass_epochs(10)
        self.epochs.append(max(worker.status()["epoch"] for worker in self.workers.workers.values()))
        return self.epochs[-1]

    def ask(self, worker: WorkerInfo, kind: int, payload: bytes) -> bytes:
        if worker.worker_id not in self.workers.workers:
            raise NoWorkers(f"{worker.worker_id} is gone")
        self.meanwhile()
        asked = request(BACKUP, b"", payload, type=kind)
        (answer,) = self.workers.ask(worker.worker_id, asked, connection=Connection())
        if answer.status != OK:
            raise ERRORS[answer.status](answer.payload.decode())
        return answer.payload

    def pause(self) -> bool:
        self.meanwhile()
        self.workers.pass_epochs()
        self.pauses += 1
        return self.pauses < 3000


class Writers:
    """Clients that write on, each seeing its own answers; what each key should hold is known by the stamps."""

    def __init__(self, workers: Workers, random: Random) -> None:
        self.workers = workers
        self.random = random
        self.seen = [0] * 4
        self.turn = [0] * 4
        self.history: list[tuple[int, bytes, object]] = []

    def write(self, client: int, data: Callable[[int], bytes]) -> int:
        """Write where the key is owned, by any of its owners; return the stamp of the write."""
        for ids in self.random.sample(sorted(self.workers.workers), len(self.workers.workers)):
            answers = self.workers.ask(ids, data(self.seen[client]), connection=Connection())
            if answers[0].status != WRONG_WORKER:
                assert answers[0].status in (OK, MISSING)
                self.seen[client] = max(self.seen[client], answers[0].stamp)
                return answers[0].stamp
        raise AssertionError("nobody takes the write")

    def transfer(self) -> None:
        """One client writes the same number to two keys, the second only after the first."""
        client = self.random.randrange(4)
        self.turn[client] += 1
        value = b"%d" % self.turn[client]
        for key in (b"first-%d" % client, b"second-%d" % client):
            stamp = self.write(client, lambda seen, key=key: put(key, value, stamp=seen, ack=1))  # type: ignore[misc]
            self.history.append((stamp, key, value))

    def change(self) -> None:
        """One client changes a register, a set or a counter, or deletes a register."""
        client, number = self.random.randrange(4), self.random.randrange(6)
        what = self.random.choice(("put", "delete", "set", "counter"))
        key, value = b"%s-%d" % (b"put" if what == "delete" else what.encode(), number), b"%d" % len(self.history)
        state = Set([len(self.history)]) if what == "set" else Counter(1) if what == "counter" else None
        if what == "put":
            stamp = self.write(client, lambda seen: put(key, value, stamp=seen, ack=1))
        elif what == "delete":
            stamp = self.write(client, lambda seen: request(DELETE, key, stamp=seen, ack=1))
            value = b""
        else:
            assert state is not None
            body, kind = state.encode(), state.NUMBER
            stamp = self.write(client, lambda seen: request(PUT, key, body, type=kind, stamp=seen, ack=1))
        self.history.append((stamp, key, value if state is None else what))

    def expected(self, epoch: int) -> dict[bytes, object]:
        """Return what each key holds at the end of an epoch: a value, a set's elements, or a count."""
        held: dict[bytes, object] = {}
        for index, (stamp, key, value) in sorted(enumerate(self.history), key=lambda entry: entry[1][0]):
            if epoch_of(stamp) > epoch:
                continue
            if value == "set":
                held[key] = held.get(key, frozenset()) | {index}  # type: ignore[operator]
            elif value == "counter":
                held[key] = held.get(key, 0) + 1  # type: ignore[operator]
            elif value == b"":
                held.pop(key, None)
            else:
                held[key] = value
        return held


def contents(path: Path) -> dict[bytes, object]:
    """Return what a backup holds of each key, each key once."""
    reader = BackupReader(path)
    end = reader.check()
    held: dict[bytes, object] = {}
    for block in reader.blocks():
        for key, number, _, _, _, _, payload in read_cells(block):
            assert key not in held, f"{key!r} is there twice"
            state = REGISTRY[number].decode(payload)
            held[key] = payload[17:] if number == 1 else state.value
    assert end.keys == len(held)
    return held


@pytest.mark.parametrize("seed", range(12))
def test_a_backup_is_what_every_key_held_at_the_end_of_one_epoch(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    workers = Workers(view_of(3, factor=random.choice((1, 2, 3)), workers=random.choice((1, 2))))
    writers = Writers(workers, random)
    workers.lose = lambda source, target, frame: random.random() < 0.3

    def meanwhile() -> None:
        for _ in range(random.randrange(4)):
            random.choice((writers.transfer, writers.change))()
        if random.random() < 0.3:
            workers.pass_epochs()

    for _ in range(20):
        meanwhile()
    summary = backup(Simulated(workers, meanwhile), tmp_path / "b")
    held = contents(tmp_path / "b")
    assert held == writers.expected(summary.epoch)
    for client in range(4):
        first, second = (int(str(held.get(b"%s-%d" % (name, client), b"0"), "ascii")) for name in (b"first", b"second"))
        assert second <= first, "a write without the one that its client made before it"
    assert writers.expected(summary.epoch) != writers.expected(summary.epoch + 10_000), "nothing was written meanwhile"
    workers.check()


def test_a_backup_begins_again_when_a_node_joins_meanwhile(tmp_path: Path) -> None:
    workers = Workers(view_of(2, factor=2))
    writers = Writers(workers, Random(1))
    for _ in range(50):
        writers.transfer()
    joined = False

    def meanwhile() -> None:
        nonlocal joined
        if source.pauses == 2 and not joined:
            joined = True
            workers.start(3)
            workers.pass_epochs(60)

    source = Simulated(workers, meanwhile)
    summary = backup(source, tmp_path / "b")
    assert (joined, len(source.epochs) > 1, len(source.view.workers)) == (True, True, 3)
    assert contents(tmp_path / "b") == writers.expected(summary.epoch)


def test_an_epoch_that_has_ended_is_refused_and_so_is_a_second_backup() -> None:
    workers = Workers(view_of(1))
    (ids,) = workers.workers
    now = workers.workers[ids].status()["epoch"]

    def ask(kind: int, epoch: int) -> tuple[int, bytes]:
        (answer,) = workers.ask(ids, request(BACKUP, b"", step(epoch), type=kind))
        return answer.status, answer.payload

    assert ask(BEGIN, now - 1) == (28, b"epoch %d has ended here, %d runs" % (now - 1, now))
    assert ask(PAGE, now + 3)[0] == 28
    assert ask(BEGIN, now + 3)[0] == OK
    assert ask(BEGIN, now + 4) == (23, b"another backup is under way, of epoch %d" % (now + 3))
    assert ask(PAGE, now + 3)[0] == 25
    workers.pass_epochs(6)
    assert ask(PAGE, now + 3)[0] == OK
    assert ask(END, now + 3)[0] == OK
    assert ask(PAGE, now + 3)[0] == 28


def test_a_backup_that_nobody_asks_for_ends_by_itself() -> None:
    workers = Workers(view_of(1))
    (ids,) = workers.workers
    epoch = workers.workers[ids].status()["epoch"] + 3
    workers.ask(ids, request(BACKUP, b"", step(epoch), type=BEGIN))
    workers.pass_epochs(SNAPSHOT_IDLE_US // EPOCH_US)
    assert workers.workers[ids].status()["snapshot"] == epoch
    workers.now += 2 * EPOCH_NS
    workers.pass_epochs(1)
    assert workers.workers[ids].status()["snapshot"] == 0


def test_a_key_that_expires_during_a_backup_is_in_it_with_its_time(tmp_path: Path) -> None:
    workers = Workers(view_of(1))
    (ids,) = workers.workers
    body = struct.pack("<QQQ", 400_000, 0, 0) + b"\x06v"  # lives for 0.4 s
    workers.ask(ids, request(PUT, b"k", body, type=1, flags=8))
    waited = 0

    def meanwhile() -> None:
        nonlocal waited
        if source.pauses == 1 and not waited:
            waited = 1
            workers.pass_epochs(60)

    source = Simulated(workers, meanwhile)
    backup(source, tmp_path / "b")
    (cell,) = [cell for block in BackupReader(tmp_path / "b").blocks() for cell in read_cells(block)]
    assert (cell[0], cell[5] > 0) == (b"k", True)
    workers.pass_epochs(1)
    assert workers.workers[ids].status()["keys"] == 0


def test_more_keys_than_a_page_has_come_page_by_page(tmp_path: Path) -> None:
    workers = Workers(view_of(1, workers=2))
    count = 2 * BACKUP_PAGE_KEYS + 500
    for number in range(count):
        for ids in workers.workers:
            workers.ask(ids, put(b"%d" % number, b"v"), connection=Connection())
    summary = backup(Simulated(workers, lambda: None), tmp_path / "b")
    assert (summary.keys, len(contents(tmp_path / "b"))) == (count, count)


@pytest.mark.parametrize("payload", [b"", b"x" * 15, b"x" * 17])
def test_a_malformed_step_is_answered_and_changes_nothing(payload: bytes) -> None:
    workers = Workers(view_of(1))
    (ids,) = workers.workers
    (answer,) = workers.ask(ids, request(BACKUP, b"", payload, type=BEGIN))
    assert answer.status == 21
    (answer,) = workers.ask(ids, request(BACKUP, b"", step(1), type=9))
    assert answer.status == 19
    workers.check()
