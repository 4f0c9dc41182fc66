"""The rules of sessions on a model of a store: clocks that differ by more than an epoch, caches that lag, transactions
of two functions on two nodes, interleaved at random. The judge finds nothing, and then each rule that is broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from anna.config import EPOCH_US
from anna.lattices import LWW
from cloudburst.consistency import travel
from cloudburst.consistency.faults import PLANTED
from cloudburst.consistency.levels import CAUSAL, READ_ATOMIC, REPEATABLE, Level
from cloudburst.consistency.session import Past, Session, Snapshot, epoch_of, writer_in_store, writer_of
from cloudburst.judge.reading import read
from cloudburst.judge.verdict import Verdict, judge
from cloudburst.judge.writing import Writer

WORKERS, CACHES, CLIENTS, KEYS = 3, 3, 4, 8
VIEW = 7
SKEW_US = (0, 25_000, -25_000)
TRANSACTIONS = 250


class Store:
    """Workers with clocks of their own, each key at one; what is committed up to the stable epoch can be read there."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now_us = 1_000_000
        self.stamps = [0] * WORKERS
        self.written: dict[bytes, list[LWW]] = {}
        self.lags = [0] * CACHES

    def tick(self, worker: int, after: int) -> int:
        """Return a worker's next stamp, which is later than `after`."""
        self.stamps[worker] = max(self.stamps[worker], after, self.clock(worker)) + 1
        return self.stamps[worker]

    def clock(self, worker: int) -> int:
        return max(self.stamps[worker], self.now_us + SKEW_US[worker] << 10)

    @property
    def stable(self) -> int:
        """The newest epoch that all workers have behind them."""
        return min(epoch_of(self.clock(worker)) for worker in range(WORKERS)) - 1

    def pass_time(self) -> None:
        self.now_us += self.random.randrange(500, 4000)
        self.lags = [self.random.randrange(0, 3) for _ in self.lags]

    def begin(self, cache: int, least: int) -> Snapshot:
        """Return the epoch at which a session begins at a cache; one that must be later is waited for."""
        while self.stable - self.lags[cache] < least:
            self.pass_time()
        return Snapshot(self.stable - self.lags[cache], VIEW)

    def at(self, key: bytes, epoch: int) -> LWW | None:
        """Return what a key held at the end of an epoch."""
        held = [one for one in self.written.get(key, ()) if epoch_of(one.stamp) <= epoch]
        return max(held, key=lambda one: (one.stamp, one.writer), default=None)

    def commit(self, writes: dict[bytes, LWW], writer: int, after: int) -> int:
        """Have all owners propose a stamp, and write at the greatest."""
        stamp = max(self.tick(key[-1] % WORKERS, after) for key in writes)
        for key, one in writes.items():
            self.stamps[key[-1] % WORKERS] = max(self.stamps[key[-1] % WORKERS], stamp)
            self.written.setdefault(key, []).append(LWW(one.value, stamp, writer))
        return stamp


class Client:
    """Does transactions of two functions, one after the other."""

    def __init__(self, number: int, store: Store, level: Level, history: Writer) -> None:
        self.number, self.store, self.level, self.history = number, store, level, history
        self.past = Past()
        self.made = 0

    def function(self, state: Session, cache: int, done: list[tuple[str, str, str | None]]) -> None:
        """Read two keys, and write one of them or another."""
        random, at = self.store.random, state.snapshot.epoch
        if "own-epoch" in PLANTED:
            at = self.store.begin(cache, 0).epoch
        keys = [b"key %d" % random.randrange(KEYS) for _ in range(2)]
        if random.random() < 0.3:
            keys.append(b"new %d" % (self.store.now_us // 40_000))
        for key in keys:
            held = self.store.at(key, at)
            if held is None and "forget-absent" in PLANTED:
                held = self.store.at(key, 1 << 60)
            found = state.value(key, held)
            done.append(("read", key.decode(), None if found is None else found.value))
        if random.random() < 0.7:
            self.made += 1
            state.put(keys[-1], LWW.of(f"{self.number}-{self.made}"))
            done.append(("write", keys[-1].decode(), f"{self.number}-{self.made}"))

    def transaction(self, name: int) -> Iterator[None]:
        """Do one, pausing wherever others may go on."""
        done: list[tuple[str, str, str | None]] = []
        state = self.past.next(self.level, writer_of(self.number + 1, name))
        state.begin(self.store.begin(self.store.random.randrange(CACHES), state.snapshot.epoch))
        for function in range(2):
            state.check()
            self.function(state, self.store.random.randrange(CACHES), done)
            yield
            state = travel.unpack(travel.pack(state), writer_of(self.number + 1, 1000 * name + function))
        stamp = None
        if state.buffered:
            identity = b"%08d%08d" % (self.number, name)
            writer = writer_in_store(identity)
            requests = {key: own.requests()[1] for key, own in state.buffered.items()}
            stamp = self.store.commit(requests, writer, state.after)  # type: ignore[arg-type]
            state.committed(stamp, writer)
        self.past.learn(state)
        self.history.write(f"client {self.number}", done, commit=stamp)


def judged(path: Path, level: Level, seed: int) -> Verdict:
    random = Random(seed)
    store = Store(random)
    with Writer(path) as history:
        clients = [Client(number, store, level, history) for number in range(CLIENTS)]
        running = {client: client.transaction(0) for client in clients}
        for name in range(1, TRANSACTIONS * 3):
            store.pass_time()
            client = random.choice(clients)
            if next(running[client], "over") == "over":
                running[client] = client.transaction(name)
    return judge(read(path))


@pytest.mark.parametrize("level", [REPEATABLE, READ_ATOMIC, CAUSAL], ids=lambda level: level.name)
def test_the_model_keeps_what_each_level_promises(tmp_path: Path, level: Level) -> None:
    for seed in range(5):
        verdict = judged(tmp_path / f"{seed}", level, seed)
        assert len(verdict.facts.transactions) > TRANSACTIONS / 2
        assert verdict.held(level.name)
        if level is READ_ATOMIC:
            assert not verdict.held("causal"), "sessions that carry nothing go back"


@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        ("own-epoch", "repeatable"), ("forget-absent", "repeatable"), ("forget-epoch", "monotonic-reads"),
        ("forget-own", "read-your-writes"), ("no-dependencies", "causal"),
    ],
)  # fmt: skip
def test_the_judge_notices_each_rule_that_is_broken(tmp_path: Path, fault: str, broken: str) -> None:
    PLANTED.add(fault)
    try:
        verdicts = [judged(tmp_path / f"{seed}", CAUSAL, seed) for seed in range(5)]
    finally:
        PLANTED.clear()
    assert any(verdict.found[broken] for verdict in verdicts)


def test_the_model_has_clocks_that_differ_by_more_than_two_epochs() -> None:
    assert max(SKEW_US) - min(SKEW_US) > 2 * EPOCH_US
