"""Histories under a seed: a cache that loses streams, memory and owners says what was there at an epoch, or refuses."""

from __future__ import annotations

import struct
from collections import Counter as Counts
from random import Random

import pytest
from xxhash import xxh64_intdigest

from anna.commits import Commit, Verdict, Write
from anna.wire import UNAVAILABLE
from tests.anna.frames import MISSING, OK, WRONG_WORKER, Reply, items, register, request
from tests.anna.kvs.test_epochs import Clients, decoded, get_at
from tests.anna.kvs.workers import STALE, view_of
from tests.cloudburst.cache.stores import EXPIRED, GET_AT, MGET_AT, PIN, Store

KEYS = [b"%s-%d" % (what, number) for what in (b"put", b"set", b"count", b"orset") for number in range(3)]


class History:
    """Clients that write at the workers, and one that reads at epochs through the cache, whose bytes are late."""

    def __init__(self, seed: int, view: object = None, commits: float = 0.15) -> None:
        self.commits = commits
        random = self.random = Random(seed)
        view = view or view_of(3, factor=random.choice((1, 2, 3)), workers=random.choice((1, 2)))
        bytes_max = random.choice((1_500, 6_000, 1 << 20))
        self.store = Store(view, skew_us=2_000, bytes_max=bytes_max)  # type: ignore[arg-type]
        self.clients = Clients(self.store, random)
        for _ in range(20):
            self.clients.write()
        self.asked: list[tuple[int, list[bytes], tuple[int, int]]] = []
        self.committing: list[tuple[Commit, list[bytes], int]] = []
        self.known: list[tuple[int, int]] = []
        self.told: dict[tuple[bytes, tuple[int, int]], object] = {}
        self.counts: Counts[str] = Counts()

    def ask(self) -> None:
        """Ask the cache for an epoch, or for keys at one that it has given, or one nearby."""
        random = self.random
        what = random.random()
        if what < 0.3 or not self.known:
            least = struct.pack("<Q", self.known[-1][0] + random.randrange(3)) if self.known and what < 0.1 else b""
            self.asked.append((PIN, [], (0, 0)))
            self.store.send(request(PIN, b"", struct.pack("<QQ", 0, 30_000_000) + least))
            return
        epoch, view = random.choice(self.known[-4:]) if random.random() < 0.8 else random.choice(self.known)
        at = epoch + random.choice((0, 0, 0, 0, -1, -2, 1, 2)), view
        if what < 0.33:
            self.asked.append((PIN, [], at))
            self.store.send(request(PIN, b"", struct.pack("<QQ", at[0], 30_000_000)))
        elif what < 0.8:
            key = random.choice(KEYS)
            self.asked.append((GET_AT, [key], at))
            self.store.send(request(GET_AT, key, struct.pack("<QQ", *at)))
        else:
            keys = random.sample(KEYS, 3)
            self.asked.append((MGET_AT, keys, at))
            names = b"".join(struct.pack("<H", len(key)) + key for key in keys)
            self.store.send(request(MGET_AT, b"", struct.pack("<QQI", *at, len(keys)) + names))

    def commit(self) -> None:
        """Write some registers together, through the cache."""
        mark = len(self.clients.history) + 100_000
        keys = [b"put-%d" % number for number in self.random.sample(range(3), 2)]
        commit = Commit(b"%016d" % mark, [Write(key, 1, register(b"%d" % mark)) for key in keys], mark)
        self.committing.append((commit, keys, mark))
        self.clients.history.append(((0, False, 0), b"", None))  # so that the next has another mark
        self.ask_for_commit(commit)

    def ask_for_commit(self, commit: Commit) -> None:
        unknown = commit.verdict is Verdict.UNKNOWN
        (message,) = commit.ask(lambda key: 1) if unknown else commit.begin(lambda key: 1)
        self.store.send(request(message.op, b"", message.payload), by_other=True)

    def take_commits(self) -> None:
        """Note what was committed, before what reads it is answered; ask again where nobody knows."""
        while self.store.answers_to_other:
            answer = self.store.answers_to_other.popleft()
            commit, keys, mark = self.committing.pop(0)
            commit.answered(1, answer.status, answer.payload)
            if commit.verdict is not Verdict.COMMITTED:
                assert commit.verdict in (Verdict.AGAIN, Verdict.UNKNOWN), commit.refusal
                self.committing.append((commit, keys, mark))
                self.ask_for_commit(commit)
                continue
            self.counts["committed"] += 1
            place = commit.stamp, False, xxh64_intdigest(commit.transaction) >> 1  # and its writer
            self.clients.history += [(place, key, mark) for key in keys]

    def judge(self) -> None:
        """Compare what has been answered with what was there."""
        self.take_commits()
        while self.store.answers:
            answer = self.store.answers.popleft()
            op, keys, at = self.asked.pop(0)
            if answer.status not in (OK, MISSING):
                assert answer.status in (STALE, EXPIRED, UNAVAILABLE), answer
                self.counts["refused"] += 1
            elif op == PIN:
                epoch, view = struct.unpack_from("<QQ", answer.payload)
                if view and not at[0]:
                    self.known.append((epoch, view))
                    self.counts["begun"] += 1
            else:
                answers = [(answer.status, answer.type, answer.payload)] if op == GET_AT else items(answer.payload)
                for key, (status, kind, state) in zip(keys, answers, strict=True):
                    self.compare(key, at, decoded(key, Reply(status, kind, 0, 0, 0, state)))

    def compare(self, key: bytes, at: tuple[int, int], held: object) -> None:
        self.counts["read"] += 1
        assert self.told.setdefault((key, at), held) == held

    def compare_all(self) -> None:
        """Compare what was read with what was there, now that the end of all transactions is known."""
        for (key, at), held in self.told.items():
            assert held == self.clients.held(key, at[0]), (key, at)

    def step(self) -> None:
        """Let something happen."""
        random, store = self.random, self.store
        for _ in range(random.randrange(3)):
            self.clients.write()
        for _ in range(random.randrange(4)):
            self.ask()
            self.judge()
        if random.random() < self.commits:
            self.commit()
        for ids in sorted(store.streams):
            for _ in range(random.choice((0, 1, 1, 2, 4))):
                store.reach_worker(ids)
                store.reach_cache(ids)
                self.judge()
        if random.random() < 0.6:
            store.pass_epochs()
            store.flush()
        if random.random() < 0.3:
            assert store.cache is not None
            store.take(store.cache.retry(store.now))
            self.judge()
        self.break_something()
        store.check()

    def break_something(self) -> None:
        random, store = self.random, self.store
        if random.random() < 0.08 and store.streams:
            store.cut(random.choice(sorted(store.streams)))
            self.judge()
        if random.random() < 0.2:
            self.connect_all()
        if random.random() < 0.01:
            store.begin_cache()
            store.flush()
            self.asked.clear()
            for commit, _, _ in self.committing:
                commit.missed(1, True)
                self.ask_for_commit(commit)

    def connect_all(self) -> None:
        for ids in self.store.workers:
            if ids not in self.store.streams:
                self.store.connect(ids)

    def end(self) -> None:
        """Let all be answered."""
        self.connect_all()
        for _ in range(300):
            self.store.settle()
            self.store.pass_epochs()
            assert self.store.cache is not None
            self.store.take(self.store.cache.retry(self.store.now))
            self.judge()
            if not self.asked and not self.committing:
                return
        raise AssertionError(f"{self.asked} and {len(self.committing)} transactions are not answered")


def run(seed: int, steps: int = 150) -> Counts[str]:
    history = History(seed)
    random, store = history.random, history.store
    store.lose = lambda source, target, frame: random.random() < 0.2
    for _ in range(steps):
        history.step()
    history.end()
    history.compare_all()
    store.check()
    assert store.cache is not None
    return history.counts + Counts({"hits": store.cache.hits_at})


@pytest.mark.parametrize("seed", range(12))
def test_what_a_cache_answers_at_an_epoch_is_what_was_there_whatever_is_late_or_lost(seed: int) -> None:
    run(seed)


def test_most_reads_are_answered() -> None:
    """A cache that refuses all is never wrong."""
    counts: Counts[str] = sum((run(seed) for seed in range(20, 26)), Counts())
    assert counts["begun"] > 100, counts
    assert counts["committed"] > 100, counts
    assert counts["read"] > 2 * counts["refused"], counts
    assert counts["hits"] > counts["read"] / 5, counts


@pytest.mark.parametrize("seed", range(100, 104))
def test_a_cache_goes_on_when_workers_die_and_come_and_says_what_the_owners_say(seed: int) -> None:
    """Which writes of one that dies are left nobody knows; but all who answer at an epoch of a view say the same."""
    history = History(seed, view_of(3, factor=2))
    store = history.store
    history.compare = lambda key, at, held: check_owners(history, key, at, held)  # type: ignore[method-assign]
    for turn in range(500):
        if turn == 60:
            store.stop(300)
            if 300 in store.streams:
                store.cut(300)
        if turn == 420:
            store.start(4)
        history.step()
        store.pass_epochs()
    history.end()
    assert history.counts["read"] > 100


def check_owners(history: History, key: bytes, at: tuple[int, int], held: object) -> None:
    history.counts["read"] += 1
    assert history.told.setdefault((key, at), held) == held
    for ids in history.store.workers:
        answer = get_at(history.store, ids, key, *at)
        if answer.status not in (STALE, EXPIRED, WRONG_WORKER):
            assert decoded(key, answer) == held, (key, at, ids)
