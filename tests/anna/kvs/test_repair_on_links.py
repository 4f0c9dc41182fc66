"""Repair on links: whatever becomes of frames, and of ends that are forgotten, stores become equal."""

from __future__ import annotations

from random import Random
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from anna import config
from anna.kvs.link import Frame, Link
from anna.kvs.repair import Repair
from tests.anna.kvs.test_repair import Book, books

STEP: Final = 5_000_000
SEEDS: Final = st.integers(0, 2**32)


class Worker:
    """One end as a worker drives it: a book, the link to its peer, and repair on it."""

    def __init__(self, mine: int, peer: int, versions: dict[bytes, int]) -> None:
        self.mine, self.peer = mine, peer
        self.book = Book(versions)
        self.sessions = 0
        self.version = 1
        self.begin()

    def begin(self) -> None:
        """The peer came into the view, or came back to it."""
        self.sessions += 1
        self.link = Link(self.mine, self.peer, self.sessions)
        self.repair = Repair()
        self.adopt(self.version)

    def adopt(self, version: int) -> None:
        """Go on to a newer view."""
        self.version = version
        self.repair.start(version, 7, self.book.scan, self.book.cell)

    def receive(self, frame: Frame, now: int) -> None:
        for body in self.link.receive(frame, now):
            self.book.take(self.repair.hear(body))
        if self.link.broken:
            self.sessions += 1
            self.link = self.link.successor(self.sessions)
            self.repair.again()

    def poll(self, now: int) -> list[Frame]:
        room = config.LINK_WINDOW_BYTES - self.link.queued_bytes
        for body in self.repair.poll(min(room, 1500), 10):
            self.link.send(body)
        self.link.check()
        self.repair.check()
        return self.link.poll(now)

    @property
    def is_done(self) -> bool:
        return self.repair.sent_done and self.repair.heard_done and self.link.idle


class Wire:
    """Two workers, and the frames between them."""

    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.now = 0
        self.loss = 0.2
        mine, theirs = books(dice, dice.choice([0, 5, 80]), dice.choice([0.0, 0.1, 1.0]))
        self.workers = [Worker(1, 2, mine), Worker(2, 1, theirs)]
        self.frames: list[tuple[int, bytes]] = []

    def step(self) -> None:
        self.now += STEP
        for end, worker in enumerate(self.workers):
            for frame in worker.poll(self.now):
                copies = 0 if self.dice.random() < self.loss else self.dice.choice((1, 1, 1, 2))
                self.frames += [(1 - end, frame)] * copies
        for _ in range(self.dice.randint(0, len(self.frames)) if self.loss else len(self.frames)):
            end, frame = self.frames.pop(self.dice.randrange(len(self.frames)) if self.loss else 0)
            self.workers[end].receive(frame, self.now)

    def trouble(self) -> None:
        """Let one end go on to a newer view, or forget the other."""
        worker = self.dice.choice(self.workers)
        if self.dice.random() < 0.5:
            worker.adopt(worker.version + 1)
        else:
            worker.begin()

    def settle(self) -> None:
        """No more trouble: both have the newest view, and frames arrive. It must end within seconds."""
        self.loss = 0.0
        newest = max(worker.version for worker in self.workers)
        for worker in self.workers:
            if worker.version < newest:
                worker.adopt(newest)
        healed_at = self.now
        while not all(worker.is_done for worker in self.workers):
            self.step()
            assert self.now < healed_at + 10_000_000_000, "repair does not end"


@settings(max_examples=400)
@given(SEEDS)
def test_stores_become_equal_whatever_happened_on_the_way(seed: int) -> None:
    """D13: a loss, a restart of the exchange or a peer that was given up costs time, and never an update."""
    dice = Random(seed)
    wire = Wire(dice)
    for _ in range(dice.randint(0, 80)):
        wire.step()
        if dice.random() < 0.08:
            wire.trouble()
    wire.settle()
    mine, theirs = wire.workers
    assert mine.book.versions == theirs.book.versions
    assert mine.repair.complete
    assert theirs.repair.complete
    assert mine.repair.round == theirs.repair.round
