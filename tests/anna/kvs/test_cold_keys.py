"""Workers whose states are on their disks alone answer, join, compare and forget as those with all in memory do."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from anna import LWW, Counter, ORSet, Set
from anna.backup import backup
from anna.backupfile import BackupReader
from anna.kvs.cells import read_cells
from anna.kvs.worker import Connection, Worker
from anna.lattices import REGISTRY, Lattice
from tests.anna.frames import DELETE, GET, MISSING, OK, PUT, SUBSCRIBE, Reply, items, multi_get, put, register, request
from tests.anna.kvs.test_snapshot import Simulated
from tests.anna.kvs.workers import EPOCH_NS, STALE, Workers, view_of

OVERLOADED, CHANGED, DAMAGED = 22, 26, 29
MEMORY, COMPARE, EXPIRES = 1, 4, 8
LONG = "x" * 1000
ALL = 1 << 40


class Disk:
    """The checkpoint of one worker."""

    def __init__(self, worker: Worker, limit_bytes: int = 1 << 20) -> None:
        self.worker = worker
        self.cells: dict[bytes, bytes] = {}
        worker.store.hold_in(limit_bytes, self.cells.get)
        assert worker.store.memory is not None
        self.memory = worker.store.memory

    def chill(self, now: int) -> int:
        """Take a checkpoint, and let all states leave that may; return how many are cold."""
        self.checkpoint(now)
        self.memory.cool(1 << 20, ALL)
        return self.memory.cold_count

    def checkpoint(self, now: int) -> None:
        cells = dict(self.worker.cells(list(self.memory.take_unkept())))
        self.cells.update(cells)
        self.worker.kept(cells, now)

    def damage(self, key: bytes) -> None:
        self.cells[key] = self.cells[key][:-1] + bytes([self.cells[key][-1] ^ 1])


def cold_workers(nodes: int, factor: int = 1, limit_bytes: int = 1 << 20) -> tuple[Workers, dict[int, Disk]]:
    workers = Workers(view_of(nodes, factor))
    return workers, {ids: Disk(worker, limit_bytes) for ids, worker in workers.workers.items()}


def ask(workers: Workers, ids: int, data: bytes) -> Reply:
    (answer,) = workers.ask(ids, data, connection=Connection())
    return answer


def write(workers: Workers, ids: int, key: bytes, state: Lattice) -> None:
    assert ask(workers, ids, request(PUT, key, state.encode(), type=state.NUMBER, ack=MEMORY)).status == OK


def read(workers: Workers, ids: int, key: bytes) -> Lattice:
    answer = ask(workers, ids, request(GET, key))
    assert answer.status == OK, answer
    return REGISTRY[answer.type].decode(answer.payload)


def test_cold_keys_are_read_written_compared_deleted_and_outlived_like_others() -> None:
    cold, disks = cold_workers(1)
    warm = Workers(view_of(1))
    answers: list[list[object]] = []
    for workers in (cold, warm):

        def step(data: bytes, workers: Workers = workers) -> Reply:
            if workers is cold:
                disks[100].chill(workers.now)
            return ask(workers, 100, data)

        stamp = step(put(b"a", LONG.encode())).stamp
        found: list[object] = [step(request(GET, b"a")), step(put(b"a", LONG.encode() + b"2"))]
        found.append(step(request(GET, b"a")))
        compare = request(PUT, b"a", struct.pack("<Q", stamp) + register(b"3"), type=1, flags=COMPARE)
        found.append(step(compare).status)
        for word in ("w" * 500, "v" * 500):
            found.append(step(request(PUT, b"set", ORSet([word]).encode(), type=ORSet.NUMBER)))
        found.append(step(request(PUT, b"count", Counter(5).encode(), type=Counter.NUMBER)))
        found.append(step(request(PUT, b"set", Counter(5).encode(), type=Counter.NUMBER)))
        found.append(step(multi_get(b"a", b"set", b"count", b"none")))
        life = struct.pack("<Q", 50_000) + register(LONG.encode())
        found.append(step(request(PUT, b"short", life, type=1, flags=EXPIRES)))
        found.append(step(request(GET, b"short")))
        found.append(step(request(DELETE, b"a")))
        found.append(step(request(SUBSCRIBE, b"set")))
        workers.pass_epochs(8)
        found += [step(request(GET, key)) for key in (b"a", b"short", b"set")]
        workers.check()
        answers.append(found)
    assert answers[0] == answers[1]
    assert CHANGED in answers[0]
    assert disks[100].memory.loads > 5


def test_a_delta_is_joined_into_a_key_that_is_cold_at_the_other_owner() -> None:
    workers, disks = cold_workers(2, factor=2)
    write(workers, 100, b"k", Set([LONG]))
    write(workers, 100, b"r", LWW(LONG))
    workers.pass_epochs(5)
    assert [disk.chill(workers.now) for disk in disks.values()] == [2, 2]
    write(workers, 200, b"k", Set(["other"]))
    workers.pass_epochs(5)
    assert read(workers, 100, b"k") == read(workers, 200, b"k") == Set([LONG, "other"])
    workers.check()


def test_a_register_that_left_before_its_epoch_ended_is_sent_all_the_same() -> None:
    workers, disks = cold_workers(2, factor=2)
    write(workers, 100, b"r", LWW(LONG))
    assert disks[100].chill(workers.now) == 1
    workers.pass_epochs(2)
    assert read(workers, 200, b"r").value == LONG


def test_workers_that_hold_the_same_find_it_equal_without_the_disk_and_send_nothing() -> None:
    workers, disks = cold_workers(2, factor=2)
    for number in range(20):
        write(workers, 100, b"r%d" % number, LWW(LONG))
        write(workers, 100, b"s%d" % number, Set([LONG]))
    for key, number, state in ((b"re", 1, register(LONG.encode())), (b"se", Set.NUMBER, Set([LONG]).encode())):
        life = struct.pack("<Q", 60_000_000)
        assert ask(workers, 100, request(PUT, key, life + state, type=number, flags=EXPIRES, ack=MEMORY)).status == OK
    workers.pass_epochs(5)
    assert disks[100].chill(workers.now) == 42
    loads = disks[100].memory.loads
    sent = sent_by_repair(workers, 100) + sent_by_repair(workers, 200)
    for worker in workers.workers.values():
        worker.replication.compare_again()
    workers.pass_epochs(10)
    assert (disks[100].memory.loads, sent_by_repair(workers, 100) + sent_by_repair(workers, 200)) == (loads, sent)


def sent_by_repair(workers: Workers, ids: int) -> int:
    """Return how many cells a worker has sent in comparisons."""
    return sum(repair.progress.cells_sent for repair in workers.workers[ids].replication.repairs.values())


def test_a_node_that_joins_is_given_cold_keys_and_they_stay_cold() -> None:
    workers, disks = cold_workers(2, factor=2)
    for number in range(30):
        write(workers, 100, b"k%d" % number, Set([LONG, number]))
    workers.pass_epochs(5)
    assert [disk.chill(workers.now) for disk in disks.values()] == [30, 30]
    workers.stop(200)
    ids = workers.start(3)
    workers.pass_epochs(450)
    assert [read(workers, ids, b"k%d" % number) for number in range(30)] == [Set([LONG, n]) for n in range(30)]
    assert disks[100].memory.cold_count == 30
    workers.check()


def test_a_backup_has_cold_keys_as_they_were_at_its_epoch(tmp_path: Path) -> None:
    workers, disks = cold_workers(1)
    for number in range(10):
        write(workers, 100, b"k%d" % number, LWW(LONG + str(number)))
    disks[100].chill(workers.now)
    backup(Simulated(workers, lambda: None), tmp_path / "all")
    reader = BackupReader(tmp_path / "all")
    rows = [row for block in reader.blocks() for row in read_cells(block)]
    found = {key: REGISTRY[number].decode(state).value for key, number, *_, state in rows}
    assert found == {b"k%d" % number: LONG + str(number) for number in range(10)}
    assert disks[100].memory.cold_count == 10


def test_a_backup_without_what_was_lost_is_none(tmp_path: Path) -> None:
    workers, disks = cold_workers(1)
    write(workers, 100, b"k", LWW(LONG))
    disks[100].chill(workers.now)
    disks[100].damage(b"k")
    source = Simulated(workers, lambda: None)
    epoch = source.epoch() + 3
    step = struct.pack("<QQ", epoch, 0)
    assert ask(workers, 100, request(12, b"", step, type=1)).status == OK
    workers.pass_epochs(8)
    for _ in range(2):
        assert ask(workers, 100, request(12, b"", step, type=2)).status == DAMAGED


@pytest.mark.parametrize("state", [LWW(LONG), Set([LONG])], ids=lambda state: type(state).__name__)
def test_a_damaged_value_is_not_served_and_comes_back_from_the_other_owner(state: Lattice) -> None:
    """P16: what was changed on the disk is noticed while it is in use, too."""
    workers, disks = cold_workers(2, factor=2)
    write(workers, 100, b"k", state)
    workers.pass_epochs(5)
    expected = read(workers, 200, b"k")
    assert disks[100].chill(workers.now) == 1
    disks[100].damage(b"k")
    assert ask(workers, 100, request(GET, b"k")).status == STALE
    assert items(ask(workers, 100, multi_get(b"k")).payload) == [(STALE, 0, b"")]
    workers.pass_epochs(10)
    assert read(workers, 100, b"k") == expected
    assert workers.workers[100].store.lost == {}
    workers.check()


def test_a_damaged_value_that_nobody_else_has_is_said_so_until_it_is_written_or_deleted() -> None:
    workers, disks = cold_workers(1)
    for key in (b"r", b"s", b"t"):
        write(workers, 100, key, LWW(LONG) if key == b"r" else Set([LONG]))
    disks[100].chill(workers.now)
    for key in (b"r", b"s", b"t"):
        disks[100].damage(key)
        assert ask(workers, 100, request(GET, key)).status == DAMAGED
    add = request(PUT, b"s", Set(["one"]).encode(), type=Set.NUMBER)
    assert ask(workers, 100, add).status == DAMAGED, "a part of a set was taken for the whole"
    assert ask(workers, 100, put(b"r", b"new")).status == OK
    assert ask(workers, 100, request(GET, b"r")).payload.endswith(b"new")
    assert ask(workers, 100, request(DELETE, b"s")).status == OK
    assert ask(workers, 100, request(GET, b"s")).status == MISSING
    assert ask(workers, 100, add).status == OK
    assert ask(workers, 100, request(GET, b"t")).status == DAMAGED
    assert workers.workers[100].status()["lost"] == 1
    workers.check()


def test_an_older_write_from_elsewhere_does_not_stand_in_for_what_was_lost() -> None:
    workers, disks = cold_workers(2, factor=2)
    workers.lose = lambda source, target, frame: True
    write(workers, 200, b"r", LWW("older"))
    workers.now += EPOCH_NS
    write(workers, 100, b"r", LWW(LONG))
    disks[100].chill(workers.now)
    disks[100].damage(b"r")
    assert ask(workers, 100, request(GET, b"r")).status == STALE
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(40)
    assert ask(workers, 100, request(GET, b"r")).status == STALE
    assert read(workers, 200, b"r").value == "older"


def test_who_writes_faster_than_the_disk_waits_for_it_and_is_refused_only_beyond_the_limit() -> None:
    workers, disks = cold_workers(1, limit_bytes=20_000)
    client = Connection()
    count = 0
    while workers.ask(100, put(b"k%d" % count, b"v" * 700), connection=client):
        count += 1
        assert count < 30, "nobody has to wait"
    answered = count
    count += 1
    assert disks[100].memory.resident_bytes < 20_000
    while not disks[100].memory.is_full:
        assert workers.ask(100, put(b"k%d" % count, b"v" * 700), connection=client) == []
        count += 1
    refused = ask(workers, 100, put(b"more", b"v"))
    assert (refused.status, b"this worker may take 20,000" in refused.payload) == (OVERLOADED, True)
    assert ask(workers, 100, request(GET, b"more")).status == MISSING
    workers.pass_epochs(3)
    assert workers.released(100) == []
    disks[100].checkpoint(workers.now)
    assert [reply.status for reply in workers.released(100)] == [OK] * (count - answered)
    assert ask(workers, 100, put(b"more", b"v")).status == OK
    assert all(ask(workers, 100, request(GET, b"k%d" % number)).status == OK for number in range(count))
    workers.check()


def test_a_worker_without_room_confirms_no_deltas_and_gets_them_again() -> None:
    workers, disks = cold_workers(2, factor=2, limit_bytes=20_000)
    for number in range(40):
        write(workers, 100, b"k%d" % number, LWW("v" * 1200))
        disks[100].chill(workers.now)
        workers.pass_epochs(1)
    workers.pass_epochs(50)
    assert (len(workers.workers[100].store), disks[200].memory.is_full) == (40, True)
    assert len(workers.workers[200].store) < 25
    for _ in range(8):
        disks[200].chill(workers.now)
        workers.pass_epochs(60)
    assert len(workers.workers[200].store) == 40
    assert read(workers, 200, b"k39").value == "v" * 1200
    workers.check()
