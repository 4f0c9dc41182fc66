"""Random histories of an engine with crashes, compared with two dictionaries.

A crash is a copy of the files between two operations, opened instead of the original: what a killed process
leaves. Power cuts, which lose what was not synced, are in test_disk.py.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from anna.storage.engine import Engine
from anna.storage.records import Identity
from tests.anna.storage.seats import IN_MEMORY, Cells, Logs, contents

KEYS = st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from([b"l" * 509, b"l" * 510, b"l" * 511, b"l" * 4096]))
CELLS = st.dictionaries(KEYS, st.binary(max_size=40), max_size=20)
BLOBS = st.one_of(st.binary(max_size=40), st.integers(1, 30_000).map(lambda size: b"b" * size))


class Seat(RuleBasedStateMachine):
    """`logs` and `cells` are durable, `appended` is not yet."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="seat-", dir=IN_MEMORY))
        self.lives = 0
        self.engine = Engine(self.root / "0", 0)
        self.logs: Logs = {}
        self.appended: Logs = {}
        self.cells: Cells = {}
        self.last = 0
        self.identity: Identity | None = None

    @rule(blob=BLOBS)
    def append(self, blob: bytes) -> None:
        self.last += 1
        self.engine.append(self.last, blob)
        self.appended[self.last] = blob

    @rule()
    def commit(self) -> None:
        assert self.engine.commit() == self.last
        self.logs |= self.appended
        self.appended = {}

    @rule(back=st.integers(0, 4))
    def truncate(self, back: int) -> None:
        self.engine.truncate_logs(self.last - back)
        self.logs = {number: blob for number, blob in self.logs.items() if number > self.last - back}

    @rule(cells=CELLS, drops=st.lists(KEYS, max_size=3))
    def put(self, cells: Cells, drops: list[bytes]) -> None:
        self.engine.put_cells(cells.items(), drops)
        self.cells = {key: cell for key, cell in self.cells.items() if key not in drops} | cells

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        assert self.engine.cell(key) == self.cells.get(key)

    @rule(generation=st.integers(0, 9))
    def identify(self, generation: int) -> None:
        self.identity = Identity("cluster", 1, generation)
        self.engine.identify(self.identity)

    @rule(stays_open=st.booleans())
    def crash(self, stays_open: bool) -> None:
        if not stays_open:
            self.engine.close()
        copy = self.root / str(self.lives + 1)
        shutil.copytree(self.root / str(self.lives), copy)
        if stays_open:
            self.engine.close()
        shutil.rmtree(self.root / str(self.lives))
        self.lives += 1
        self.engine = Engine(copy, 0)
        self.last -= len(self.appended)
        self.appended = {}
        assert self.engine.identity == self.identity

    @invariant()
    def gives_out_what_is_durable(self) -> None:
        assert contents(self.engine) == (self.logs, self.cells)
        assert self.engine.log_bytes == sum(map(len, self.logs.values()))
        assert self.engine.damage == []

    def teardown(self) -> None:
        assert self.engine.check() == []
        self.engine.close()
        shutil.rmtree(self.root)


TestSeat = Seat.TestCase
TestSeat.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
