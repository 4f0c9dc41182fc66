"""Embedded engines for a seat's log and checkpoint: LMDB, RocksDB and SQLite doing the same work on one disk.

The one rule: every commit that is counted was durable, and every engine is used as its own documentation says
it should be used for that. So the figures are those behind docs/decisions/0010 and 0017, and can be taken again on the
reader's disk. RocksDB takes part where `rocksdict` is installed. For commits our own log does, too, and LMDB with one
sync, which alone could lose a root to a power cut.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import lmdb

from anna.storage.log import Log
from bench.harness import Sample, Settings, interleave, latencies_us, percentile, rate
from bench.report import Report, Row

CELL_BYTES: Final = 100
CELLS: Final = 1_000_000
CELLS_QUICK: Final = 100_000
SLICE: Final = 8192
FILL_SLICE: Final = 65536
SHUFFLE: Final = 0x9E3779B97F4A7C15
COMMIT_BYTES: Final = (1 << 10, 100 << 10, 1 << 20)
MAP_BYTES: Final = 1 << 36
NUMBER: Final = struct.Struct(">Q")

Cells = list[tuple[bytes, bytes]]


class Contender(Protocol):
    """An engine under the load of one seat. `commit` and `put` are durable when they return."""

    def __init__(self, directory: Path) -> None: ...
    def commit(self, number: int, blob: bytes) -> None: ...
    def put(self, cells: Cells) -> None: ...
    def get(self, key: bytes) -> bytes | None: ...
    def cells(self) -> Iterable[tuple[bytes, bytes]]: ...
    def logs(self) -> Iterable[tuple[Any, bytes]]: ...
    def truncate(self, number: int) -> None: ...
    def close(self) -> None: ...


class Sqlite:
    """SQLite as the standard library brings it: WAL, synchronous=FULL, the log and the cells in a file each."""

    def __init__(self, directory: Path) -> None:
        self.log = self.database(directory / "log", "create table if not exists log(number integer primary key, blob)")
        self.table = self.database(
            directory / "cells", "create table if not exists cells(key blob primary key, cell) without rowid"
        )

    @staticmethod
    def database(path: Path, schema: str) -> sqlite3.Connection:
        found = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for line in ("page_size=4096", "journal_mode=wal", "synchronous=full", "cache_size=-65536"):
            found.execute(f"pragma {line}")
        found.execute(schema)
        return found

    def commit(self, number: int, blob: bytes) -> None:
        self.log.execute("insert into log values(?, ?)", (number, blob))

    def put(self, cells: Cells) -> None:
        self.table.execute("begin immediate")
        self.table.executemany("replace into cells values(?, ?)", cells)
        self.table.execute("commit")

    def get(self, key: bytes) -> bytes | None:
        row = self.table.execute("select cell from cells where key = ?", (key,)).fetchone()
        return row[0] if row else None

    def cells(self) -> Iterable[tuple[bytes, bytes]]:
        return self.table.execute("select key, cell from cells")

    def logs(self) -> Iterable[tuple[Any, bytes]]:
        return self.log.execute("select number, blob from log order by number")

    def truncate(self, number: int) -> None:
        self.log.execute("delete from log where number <= ?", (number,))

    def close(self) -> None:
        self.log.close()
        self.table.close()


class Lmdb:
    """LMDB, an environment each for the log and the cells, because an environment has one writer at a time."""

    def __init__(self, directory: Path) -> None:
        self.log = lmdb.open(str(directory / "log"), map_size=MAP_BYTES, max_dbs=0, readahead=False)
        self.table = lmdb.open(str(directory / "cells"), map_size=MAP_BYTES, max_dbs=0, readahead=False)

    def commit(self, number: int, blob: bytes) -> None:
        with self.log.begin(write=True) as transaction:
            transaction.put(NUMBER.pack(number), blob, append=True)

    def put(self, cells: Cells) -> None:
        with self.table.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(cells)

    def get(self, key: bytes) -> bytes | None:
        with self.table.begin() as transaction:
            found: bytes | None = transaction.get(key)
            return found

    def cells(self) -> Iterable[tuple[bytes, bytes]]:
        with self.table.begin() as transaction:
            yield from transaction.cursor()

    def logs(self) -> Iterable[tuple[Any, bytes]]:
        with self.log.begin() as transaction:
            yield from transaction.cursor()

    def truncate(self, number: int) -> None:
        with self.log.begin(write=True) as transaction, transaction.cursor() as cursor:
            while cursor.first() and NUMBER.unpack(cursor.key())[0] <= number:
                cursor.delete()

    def close(self) -> None:
        self.log.close()
        self.table.close()


class Rocks:
    """RocksDB: one database, a column family each for the log and the cells, every write with sync."""

    def __init__(self, directory: Path) -> None:
        rocks: Any = importlib.import_module("rocksdict")

        def options() -> Any:
            made = rocks.Options(raw_mode=True)
            made.create_if_missing(True)
            made.create_missing_column_families(True)
            made.set_compression_type(rocks.DBCompressionType.none())
            made.set_write_buffer_size(64 << 20)
            return made

        families = {"log": options(), "cells": options()}
        self.database = rocks.Rdict(str(directory / "rocks"), options(), column_families=families)
        self.log = self.database.get_column_family("log")
        self.table = self.database.get_column_family("cells")
        self.into_cells = self.database.get_column_family_handle("cells")
        self.batch = rocks.WriteBatch
        self.sync = rocks.WriteOptions()
        self.sync.sync = True

    def commit(self, number: int, blob: bytes) -> None:
        self.log.put(NUMBER.pack(number), blob, self.sync)

    def put(self, cells: Cells) -> None:
        batch = self.batch(raw_mode=True)
        batch.set_default_column_family(self.into_cells)
        for key, cell in cells:
            batch.put(key, cell)
        self.database.write(batch, self.sync)

    def get(self, key: bytes) -> bytes | None:
        found: bytes | None = self.table.get(key)
        return found

    def cells(self) -> Iterable[tuple[bytes, bytes]]:
        found: Iterable[tuple[bytes, bytes]] = self.table.items()
        return found

    def logs(self) -> Iterable[tuple[Any, bytes]]:
        found: Iterable[tuple[Any, bytes]] = self.log.items()
        return found

    def truncate(self, number: int) -> None:
        self.log.delete_range(NUMBER.pack(0), NUMBER.pack(number + 1), self.sync)

    def close(self) -> None:
        self.log.close()
        self.table.close()
        self.database.close()


class LmdbOneSync(Lmdb):
    """LMDB whose commit is followed by one sync of ours; what was torn then has to be found by reading everything."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.log.close()
        self.log = lmdb.open(str(directory / "log"), map_size=MAP_BYTES, max_dbs=0, readahead=False, sync=False)
        self.file = os.open(directory / "log" / "data.mdb", os.O_RDWR)

    def commit(self, number: int, blob: bytes) -> None:
        super().commit(number, blob)
        os.fdatasync(self.file)

    def close(self) -> None:
        os.close(self.file)
        super().close()


class OurLog(Lmdb):
    """The log of `anna.storage`, seals included. It has no cells."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.ours = Log(directory / "ours")

    def commit(self, number: int, blob: bytes) -> None:
        self.ours.write(self.ours.last + 1, [blob])

    def close(self) -> None:
        self.ours.close()
        super().close()


CONTENDERS: Final[dict[str, tuple[type[Contender], str]]] = {
    "LMDB": (Lmdb, "lmdb"),
    "RocksDB": (Rocks, "rocksdict"),
    "SQLite": (Sqlite, "sqlite3"),
    "one-sync LMDB": (LmdbOneSync, "lmdb"),
    "our log": (OurLog, "lmdb"),
}
LOGS: Final = ("one-sync LMDB", "our log")
"""Who takes part in commits only."""


def fresh(directory: Path, name: str) -> Contender:
    """Return an empty engine in a directory of its own."""
    place = directory / f"{name}-{time.monotonic_ns()}"
    place.mkdir()
    return CONTENDERS[name][0](place)


def key_of(number: int) -> bytes:
    """Return the key of cell `number`, in an order that has nothing to do with the numbers'."""
    return b"key:%020d" % (number * SHUFFLE % (1 << 64))


def slices(count: int, size: int = SLICE) -> Iterator[Cells]:
    """Return `count` cells of CELL_BYTES in slices of `size`, in no order."""
    value = random.Random(1).randbytes(CELL_BYTES)
    for start in range(0, count, size):
        yield [(key_of(i), value) for i in range(start, min(start + size, count))]


def commits(directory: Path, settings: Settings, size: int, name: str) -> Sample:
    """Measure durable commits of one blob each, one after the other."""
    engine, blob, numbers = fresh(directory, name), os.urandom(size), iter(range(1, 1 << 40))
    taken: list[float] = []

    def one() -> int:
        start = time.perf_counter_ns()
        engine.commit(next(numbers), blob)
        taken.append((time.perf_counter_ns() - start) / 1000)
        return 1

    busy = time.process_time()
    figure = rate(one, settings.seconds)
    busy = time.process_time() - busy
    engine.close()
    taken.sort()
    return Sample(figure, percentile(taken, 0.5), percentile(taken, 0.99), f"{1e6 * busy / len(taken):.0f}")


def counted(seconds: float) -> float:
    """Return how many turns of an empty loop this thread makes a second."""
    turns, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        turns += 1
    return turns / seconds


def left_to_others(directory: Path, settings: Settings, name: str) -> Sample:
    """Measure what share of its speed another thread keeps while one commits 100 KiB blobs without a pause."""
    engine, blob, stop = fresh(directory, name), os.urandom(100 << 10), threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            engine.commit(number, blob)

    alone = counted(settings.seconds)
    thread = threading.Thread(target=work)
    thread.start()
    busy = counted(settings.seconds)
    stop.set()
    thread.join()
    engine.close()
    return Sample(100 * busy / alone)


def checkpoint(directory: Path, count: int, name: str) -> Sample:
    """Measure storing `count` cells key by key, in durable slices."""
    engine = fresh(directory, name)
    prepared = list(slices(count))
    start = time.perf_counter()
    for cells in prepared:
        engine.put(cells)
    figure = count / (time.perf_counter() - start)
    engine.close()
    return Sample(figure)


def checkpoint_in_blobs(directory: Path, count: int, name: str) -> Sample:
    """Measure storing `count` cells as blobs of 256 KiB."""
    engine = fresh(directory, name)
    blob = os.urandom(256 << 10)
    start = time.perf_counter()
    for number in range(1, 2 + count * (CELL_BYTES + 24) // len(blob)):
        engine.commit(number, blob)
    figure = count / (time.perf_counter() - start)
    engine.close()
    return Sample(figure)


def filled(directory: Path, count: int, name: str) -> Path:
    """Return the directory of a closed engine with `count` cells and as many bytes of log."""
    place = directory / f"{name}-filled"
    place.mkdir()
    engine = CONTENDERS[name][0](place)
    for number, cells in enumerate(slices(count, FILL_SLICE), 1):
        engine.put(cells)
        engine.commit(number, b"".join(key + cell for key, cell in cells))
    engine.close()
    return place


def recovery(place: Path, name: str) -> Sample:
    """Measure opening and reading every cell."""
    start = time.perf_counter()
    engine = CONTENDERS[name][0](place)
    for _ in engine.cells():
        pass
    figure = time.perf_counter() - start
    engine.close()
    return Sample(figure)


def log_recovery(place: Path, name: str) -> Sample:
    """Measure opening and reading every blob of the log."""
    start = time.perf_counter()
    engine = CONTENDERS[name][0](place)
    for _ in engine.logs():
        pass
    figure = time.perf_counter() - start
    engine.close()
    return Sample(figure)


def random_gets(place: Path, settings: Settings, count: int, name: str) -> Sample:
    """Measure getting cells by key, in no order."""
    engine, pick = CONTENDERS[name][0](place), random.Random(2)

    def one() -> int:
        for _ in range(100):
            assert engine.get(key_of(pick.randrange(count))) is not None
        return 100

    figure = rate(one, settings.seconds)
    taken = latencies_us(lambda: engine.get(key_of(pick.randrange(count))), settings.latencies)
    engine.close()
    return Sample(figure, percentile(taken, 0.5), percentile(taken, 0.99))


def random_puts(place: Path, settings: Settings, count: int, name: str) -> Sample:
    """Measure overwriting cells by key, 100 of them in each durable commit, in no order."""
    engine, pick, value = CONTENDERS[name][0](place), random.Random(3), os.urandom(CELL_BYTES)

    def one() -> int:
        engine.put([(key_of(pick.randrange(count)), value) for _ in range(100)])
        return 100

    figure = rate(one, settings.seconds)
    engine.close()
    return Sample(figure)


def stored_bytes(place: Path) -> float:
    """Return the MiB that the files below `place` take on the disk."""
    return sum(file.stat().st_blocks * 512 for file in place.rglob("*") if file.is_file()) / 2**20


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure the engines that are installed."""
    report.heading("Engines: commits that are durable, checkpoints, recovery, random access")
    able = [name for name in CONTENDERS if settings.wants(name) and importlib.util.find_spec(CONTENDERS[name][1])]
    names = [name for name in able if name not in LOGS]
    for name in CONTENDERS.keys() - set(able):
        report.skip(name, f"{CONTENDERS[name][1]} is not installed, or not among --only")
    count = CELLS_QUICK if settings.quick else CELLS
    directory = settings.directory

    def row(title: str, unit: str, take: Callable[[str], Sample], rounds: int, who: Sequence[str] = names) -> Row:
        turns = {name: partial(take, name) for name in who}
        return Row("engines", title, unit, interleave(rounds, turns))

    for size in COMMIT_BYTES:
        take = partial(commits, directory, settings, size)
        yield row(f"commit of {size >> 10} KiB", "ops/s", take, settings.rounds, able)
    take = partial(left_to_others, directory, settings)
    yield row("speed kept by a thread beside commits", "%", take, settings.rounds, able)
    few = 1 if settings.quick else 2
    yield row(f"checkpoint of {count:,} cells by key", "ops/s", partial(checkpoint, directory, count), few)
    yield row("the same in blobs of 256 KiB", "ops/s", partial(checkpoint_in_blobs, directory, count), few)
    places = {name: filled(directory, count, name) for name in names}
    sizes = {name: (Sample(stored_bytes(place)),) for name, place in places.items()}
    yield Row("engines", "size of cells and log", "MiB", sizes)
    yield row(f"recovery of {count:,} cells", "s", lambda name: recovery(places[name], name), few)
    yield row("recovery of as many bytes of log", "s", lambda name: log_recovery(places[name], name), few)
    yield row("get by key", "ops/s", lambda name: random_gets(places[name], settings, count, name), settings.rounds)
    yield row("put by key", "ops/s", lambda name: random_puts(places[name], settings, count, name), settings.rounds)
