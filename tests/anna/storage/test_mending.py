"""What is done beside damage that was found on real files: single cells are forgiven, the rest is set aside."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from anna.disktier import DiskTier
from anna.durability import Durability
from anna.errors import Damaged
from anna.kvs.cells import read_cells
from anna.kvs.clock import Clock
from anna.kvs.worker import Connection, Worker
from anna.storage.engine import Engine
from anna.storage.records import Damage, Identity
from tests.anna.frames import GET, OK, put, replies, request
from tests.anna.kvs.test_cold_keys import DAMAGED
from tests.anna.kvs.workers import STALE, WALL_US, Workers, view_of

PAGE_BYTES = 4096
OWNER = Identity("anna", 3, 4)
CELLS = {b"k%03d" % number: b"the cell of %03d " % number * 20 for number in range(300)}


def flip(directory: Path, content: bytes) -> None:
    """Change a bit of what stands in the file of the cells after `content`, everywhere."""
    path = directory / "seat-0" / "cells" / "data.mdb"
    stored = path.read_bytes()
    assert content in stored
    path.write_bytes(stored.replace(content, content[:-1] + bytes([content[-1] ^ 1])))


def damaged(directory: Path, *keys: bytes) -> Engine:
    """Return an engine that holds CELLS, of which those of `keys` are not as they were written."""
    engine = Engine(directory, 0)
    engine.put_cells(CELLS.items())
    engine.close()
    for key in keys:
        flip(directory, CELLS[key])
    return Engine(directory, 0)


def test_single_cells_that_are_damaged_are_forgiven_and_the_others_are_read_and_written_on(tmp_path: Path) -> None:
    engine = damaged(tmp_path, b"k007", b"k100")
    for key in (b"k007", b"k100"):
        with pytest.raises(Damaged, match="is not as it was written"):
            engine.cell(key)
    assert [damage.which for damage in engine.damage] == [b"k007", b"k100"]
    assert engine.forgive()
    assert engine.damage == []
    engine.put_cells([(b"k007", b"new")])
    assert (engine.cell(b"k007"), engine.cell(b"k008")) == (b"new", CELLS[b"k008"])
    engine.close()
    again = Engine(tmp_path, 0)
    left = dict(again.cells())
    assert left == {key: cell for key, cell in {**CELLS, b"k007": b"new"}.items() if key != b"k100"}
    assert [damage.which for damage in again.check()] == [b"k100"], "what was forgiven is not mended"
    again.close()


def test_damage_that_is_more_than_single_cells_is_not_forgiven(tmp_path: Path) -> None:
    engine = damaged(tmp_path, b"k007")
    with pytest.raises(Damaged):
        engine.cell(b"k007")
    engine.table.found("a page is not where it was")
    before = engine.damage
    assert not engine.forgive()
    assert engine.damage == before
    engine.close()


def test_a_page_that_is_no_page_any_more_is_not_forgiven(tmp_path: Path) -> None:
    engine = damaged(tmp_path, b"k007")
    with pytest.raises(Damaged):
        engine.cell(b"k007")
    path = tmp_path / "seat-0" / "cells" / "data.mdb"
    stored = bytearray(path.read_bytes())
    place = stored.index(CELLS[b"k200"]) // PAGE_BYTES * PAGE_BYTES
    stored[place : place + 16] = bytes(16)
    path.write_bytes(stored)
    assert not engine.forgive()
    engine.close()


@pytest.mark.parametrize("copied", [True, False])
def test_what_is_set_aside_is_begun_from_with_what_is_whole_if_it_is_asked_for(tmp_path: Path, copied: bool) -> None:
    engine = damaged(tmp_path, b"k007")
    engine.append(1, b"a batch")
    engine.commit()
    engine.identify(OWNER)
    assert len(dict(engine.cells())) == len(CELLS) - 1
    aside = engine.set_aside(copied=copied)
    whole = {key: cell for key, cell in CELLS.items() if key != b"k007"}
    assert dict(engine.cells()) == (whole if copied else {})
    assert (engine.damage, engine.refilling, engine.identity) == ([], True, OWNER)
    engine.append(2, b"the next")
    engine.commit()
    assert dict(engine.logs()) == {2: b"the next"}
    assert (aside / "cells" / "data.mdb").exists()
    engine.close()
    again = Engine(tmp_path, 0)
    assert again.refilling
    again.refilled()
    again.close()
    last = Engine(tmp_path, 0)
    assert (last.refilling, last.check()) == (False, [])
    last.close()


# -- the disk tier on real files

LONG = b"a value that leaves memory " * 20


def worker_of(engine: Engine, limit_bytes: int) -> tuple[Worker, DiskTier]:
    worker = Worker(view_of(1), 0, Clock(WALL_US, 5_000_000))
    return worker, DiskTier(worker, engine, limit_bytes)


def test_a_log_that_does_not_fit_in_memory_is_taken_to_the_disk_while_it_is_joined_back(tmp_path: Path) -> None:
    """Each batch may fill memory: what a start cannot hold has to leave before the next."""
    source = Workers(view_of(1)).workers[100]
    source.open_log(1)
    engine = Engine(tmp_path, 0)
    limit = 100_000
    now = 5_000_000_000
    for number in range(1, 9):
        frames = b"".join(put(b"k%d-%d" % (number, key), LONG) for key in range(60))
        source.receive(Connection(), frames, now)
        ((_, cells),) = source.log_out()
        source.logged(number, now)
        engine.append(number, cells)
    engine.commit()
    worker, tier = worker_of(engine, limit)
    most = 0
    for _, blob in engine.logs():
        worker.recover(blob)
        tier.make_room()
        most = max(most, tier.memory.unkept_bytes)
    assert most <= limit // 2, "what is not on the disk may not fill memory"
    assert len(worker.store) == 480
    assert tier.memory.resident_bytes < 2.5 * limit
    assert 0 < len(dict(engine.cells())) <= 480
    for key, cells in engine.cells():
        assert [row[0] for row in read_cells(cells)] == [key]
    worker.open_log(9)
    (answer,) = replies(worker.receive(Connection(), request(GET, b"k1-0"), now))
    assert answer.payload.endswith(LONG)
    worker.check()
    engine.close()


def test_what_fits_in_memory_is_left_there_and_nothing_is_written_over_damage(tmp_path: Path) -> None:
    engine = Engine(tmp_path, 0)
    worker, tier = worker_of(engine, 1_000_000)
    worker.open_log(1)
    worker.receive(Connection(), put(b"k", LONG), 5_000_000_000)
    tier.make_room()
    assert dict(engine.cells()) == {}
    small, tight = worker_of(engine, 500)
    small.open_log(1)
    small.receive(Connection(), put(b"k", LONG), 5_000_000_000)
    engine.table.found("something")
    tight.make_room()
    assert dict(engine.cells()) == {}
    engine.table.damage.clear()
    tight.make_room()
    assert list(dict(engine.cells())) == [b"k"]
    engine.close()


def cold_durability(directory: Path, worker: Worker, limit_bytes: int) -> Durability:
    """Return the durability of a worker of the disk tier, with what its files have."""
    durability = Durability(worker, directory, 0, lambda: None, limit_bytes)
    durability.recover()
    return durability


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_cold_value_that_its_file_has_otherwise_is_not_served_and_the_worker_goes_on(
    tmp_path: Path, nodes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """P16: a bit of a value in the file changes while the worker runs."""
    first = Engine(tmp_path, 0)
    maker = Workers(view_of(1)).workers[100]
    for number in range(5):
        maker.receive(Connection(), put(b"k%d" % number, LONG + b"%d" % number), 5_000_000_000)
    first.put_cells(maker.cells())
    first.close()
    workers = Workers(view_of(nodes, factor=nodes))
    durability = cold_durability(tmp_path, workers.workers[100], 100_000)
    assert durability.tier is not None
    assert durability.tier.memory.cold_count == 5
    flip(tmp_path, LONG + b"3")
    with caplog.at_level(logging.ERROR, "anna.disktier"):
        for number in range(5):
            (answer,) = workers.ask(100, request(GET, b"k%d" % number), connection=Connection())
            assert answer.status == ((DAMAGED if nodes == 1 else STALE) if number == 3 else OK), number
    assert "the cell of b'k3' is not as it was written" in caplog.text
    assert durability.tier.is_damaged
    durability.tier.mend()
    assert (durability.tier.is_damaged, durability.engine.damage) == (False, [])
    (answer,) = workers.ask(100, put(b"k3", b"new", ack=1), connection=Connection())
    assert answer.status == OK
    durability.engine.close()


def test_a_worker_whose_file_is_broken_beyond_single_values_does_not_go_on(tmp_path: Path) -> None:
    engine = Engine(tmp_path, 0)
    _, tier = worker_of(engine, 100_000)
    engine.table.found("a page is not where it was")
    with pytest.raises(Damaged, match="a page is not where it was, and more than single cells"):
        tier.mend()
    assert [type(damage) for damage in engine.damage] == [Damage]
    engine.close()
