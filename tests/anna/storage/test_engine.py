"""The engine of one seat: what is durable, what is refused, what a restart finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from anna.errors import Damaged, DataInUse, NotSupported
from anna.storage.engine import Engine
from anna.storage.records import Identity
from tests.anna.storage.seats import contents, crashed, in_child, recovered


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = Engine(tmp_path / "data", 0)
    yield made
    made.close()


def fill(engine: Engine, count: int = 3) -> None:
    for number in range(1, count + 1):
        engine.append(number, b"blob %d" % number)
    engine.commit()


def test_a_restart_finds_what_was_committed_and_stored(engine: Engine, tmp_path: Path) -> None:
    """D16, D17: files were invisible after a restart; the memory tier had none."""
    fill(engine)
    engine.put_cells([(b"b", b"2"), (b"a", b"1")])
    logs, cells, damage = recovered(crashed(tmp_path / "data", tmp_path / "copy"))
    assert logs == {1: b"blob 1", 2: b"blob 2", 3: b"blob 3"}
    assert cells == {b"a": b"1", b"b": b"2"}
    assert damage == []


def test_a_restart_does_not_find_what_was_only_appended(engine: Engine, tmp_path: Path) -> None:
    fill(engine)
    engine.append(4, b"not committed")
    logs, _, damage = recovered(crashed(tmp_path / "data", tmp_path / "copy"))
    assert (list(logs), damage) == ([1, 2, 3], [])


def test_commit_says_which_number_is_durable(engine: Engine) -> None:
    assert engine.commit() == 0
    engine.append(1, b"x")
    engine.append(2, b"y" * 200_000)
    assert (engine.pending_bytes, engine.commit(), engine.pending_bytes) == (200_001, 2, 0)
    assert engine.log_bytes == 200_001


@pytest.mark.parametrize("number", [0, 2, 7])
def test_a_gap_in_the_log_cannot_be_written(engine: Engine, number: int) -> None:
    with pytest.raises(ValueError, match=f"log number {number} does not follow 0"):
        engine.append(number, b"")


def test_the_log_goes_up_to_a_number_and_goes_on_after_it(engine: Engine, tmp_path: Path) -> None:
    fill(engine, 5)
    engine.truncate_logs(3)
    assert list(engine.logs()) == [(4, b"blob 4"), (5, b"blob 5")]
    engine.truncate_logs(99)
    assert (list(engine.logs()), engine.log_bytes) == ([], 0)
    engine.append(6, b"six")
    engine.commit()
    assert recovered(crashed(tmp_path / "data", tmp_path / "copy")) == ({6: b"six"}, {}, [])


def test_reading_the_log_while_it_is_written_sees_it_as_it_was_at_the_start(engine: Engine) -> None:
    fill(engine, 3)
    reading = engine.logs()
    first = next(reading)
    engine.append(4, b"blob 4")
    engine.commit()
    engine.truncate_logs(2)
    assert [number for number, _ in (first, *reading)] == [1, 2, 3]
    assert engine.damage == []


KEYS = [b"k", b"\0", b"\0" * 510, b"a" * 509, b"a" * 510, b"a" * 511, b"a" * 510 + b"b", b"z" * 4096, b"\xff" * 511]


def test_keys_of_every_length_have_cells_of_their_own(engine: Engine) -> None:
    """D16: the key was the name of a file."""
    cells = {key: b"cell %d" % i for i, key in enumerate(KEYS)}
    engine.put_cells(cells.items())
    assert {key: engine.cell(key) for key in KEYS} == cells
    assert dict(engine.cells()) == cells
    assert engine.cell(b"a" * 512) is None
    for key in KEYS:
        engine.drop(key)
    assert (list(engine.cells()), engine.check()) == ([], [])


def test_a_cell_replaces_the_one_before_and_drops_come_first(engine: Engine) -> None:
    engine.put_cells([(b"a", b"1"), (b"b", b"1"), (b"c", b"1")])
    engine.put_cells([(b"a", b"2")], drops=[b"a", b"b", b"absent"])
    assert contents(engine) == ({}, {b"a": b"2", b"c": b"1"})


def test_reading_all_cells_sees_them_as_they_were_at_the_start(engine: Engine) -> None:
    engine.put_cells([(b"a", b"1"), (b"b", b"1")])
    reading = engine.cells()
    first = next(reading)
    engine.put_cells([(b"b", b"2"), (b"c", b"2")])
    assert [first, *reading] == [(b"a", b"1"), (b"b", b"1")]
    assert engine.damage == []


def test_whose_data_it_is_survives(engine: Engine, tmp_path: Path) -> None:
    assert engine.identity is None
    engine.identify(Identity("payments", 2**64 - 1, 7))
    copy = Engine(crashed(tmp_path / "data", tmp_path / "copy"), 0)
    assert copy.identity == Identity("payments", 2**64 - 1, 7)
    copy.close()


def test_seats_are_apart(engine: Engine, tmp_path: Path) -> None:
    other = Engine(tmp_path / "data", 1)
    fill(other, 2)
    assert list(engine.logs()) == []
    other.close()


OPEN = "import sys, pathlib; from anna.storage.engine import Engine; Engine(pathlib.Path(sys.argv[1]), 0)"


def test_two_processes_never_share_a_seat(engine: Engine, tmp_path: Path) -> None:
    found = in_child(OPEN, tmp_path / "data")
    assert f"DataInUse: {tmp_path}/data/seat-0 is in use by another process" in found.stderr
    with pytest.raises(DataInUse):
        Engine(tmp_path / "data", 0)


def test_a_closed_seat_can_be_opened_again(tmp_path: Path) -> None:
    Engine(tmp_path, 0).close()
    Engine(tmp_path, 0).close()


@pytest.mark.parametrize(
    ("line", "error", "text"),
    [
        ("anna seat data, format 1\n", NotSupported, "has data of format 1; this version reads format 2"),
        ("anna seat data, fork", Damaged, "says 'anna seat data, fork', not the format"),
        ("", Damaged, "says '', not the format"),
    ],
)
def test_data_of_another_format_is_refused(tmp_path: Path, line: str, error: type[Exception], text: str) -> None:
    Engine(tmp_path, 0).close()
    (tmp_path / "seat-0" / "format").write_text(line)
    with pytest.raises(error, match=text):
        Engine(tmp_path, 0)
    assert (tmp_path / "seat-0" / "format").read_text() == line


@pytest.mark.parametrize("places", [["log"], ["cells"], ["log", "cells"]])
def test_files_that_are_gone_are_damage_and_not_a_new_start(tmp_path: Path, places: list[str]) -> None:
    """P16: never a silent start without data that was there."""
    engine = Engine(tmp_path, 0)
    fill(engine)
    engine.put_cells([(b"a", b"1")])
    engine.close()
    for place in places:
        (tmp_path / "seat-0" / place / "data.mdb").unlink()
    engine = Engine(tmp_path, 0)
    assert [str(damage) for damage in engine.damage] == [f"{place}: its files are gone" for place in places]
    engine.close()


def test_a_format_that_is_gone_is_damage(tmp_path: Path) -> None:
    engine = Engine(tmp_path, 0)
    fill(engine)
    engine.close()
    (tmp_path / "seat-0" / "format").unlink()
    engine = Engine(tmp_path, 0)
    assert [str(damage) for damage in engine.damage] == ["log: the seat's format is gone"]
    engine.close()


def test_a_first_start_that_ended_in_the_middle_is_begun_again(tmp_path: Path) -> None:
    Engine(tmp_path, 0).close()
    (tmp_path / "seat-0" / "format").unlink()
    (tmp_path / "seat-0" / "cells" / "data.mdb").unlink()
    engine = Engine(tmp_path, 0)
    assert (engine.damage, contents(engine), (tmp_path / "seat-0" / "format").exists()) == ([], ({}, {}), True)
    engine.close()


@pytest.mark.parametrize("size", [0, 4096])
def test_a_first_start_whose_power_was_cut_is_begun_again(tmp_path: Path, size: int) -> None:
    Engine(tmp_path, 0).close()
    (tmp_path / "seat-0" / "format").unlink()
    with open(tmp_path / "seat-0" / "log" / "data.mdb", "r+b") as file:
        file.truncate(size)
    engine = Engine(tmp_path, 0)
    assert (engine.damage, contents(engine)) == ([], ({}, {}))
    engine.close()


def test_nothing_is_written_beside_damage_until_it_is_set_aside(tmp_path: Path) -> None:
    engine = Engine(tmp_path, 0)
    fill(engine)
    engine.identify(Identity("c", 1, 1))
    engine.put_cells([(b"a", b"1")])
    engine.log.found("planted", 2)
    engine.append(4, b"four")
    with pytest.raises(Damaged, match="nothing is written beside damage: log 2: planted"):
        engine.commit()
    aside = engine.set_aside()
    assert (contents(engine), engine.refilling, engine.damage) == (({}, {}), True, [])
    engine.append(4, b"four again")
    assert engine.commit() == 4
    engine.close()
    engine = Engine(tmp_path, 0)
    assert (engine.refilling, engine.identity) == (True, Identity("c", 1, 1))
    engine.refilled()
    engine.close()
    engine = Engine(tmp_path, 0)
    assert (engine.refilling, engine.damage, contents(engine)) == (False, [], ({4: b"four again"}, {}))
    engine.close()
    assert (aside / "log" / "data.mdb").exists()


def test_data_that_cannot_be_opened_is_salvaged(tmp_path: Path) -> None:
    engine = Engine(tmp_path, 0)
    fill(engine)
    engine.close()
    (tmp_path / "seat-0" / "log" / "data.mdb").write_bytes(b"no data" * 10_000)
    with pytest.raises(Damaged):
        Engine(tmp_path, 0)
    Engine.salvage(tmp_path, 0)
    engine = Engine(tmp_path, 0)
    assert (engine.refilling, engine.damage, contents(engine)) == (True, [], ({}, {}))
    engine.close()
