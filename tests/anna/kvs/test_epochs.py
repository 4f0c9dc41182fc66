"""What keys held at the end of an epoch: every owner says the same, and says it again, or refuses."""

from __future__ import annotations

import struct
from random import Random

import pytest

from anna.config import EPOCH_LEASE_US_MAX, EPOCH_US, RECENT_EPOCHS
from anna.kvs.faults import PLANTED
from anna.kvs.worker import Connection
from anna.lattices import Counter, ORSet, Set
from anna.messages import NodeStatus
from tests.anna.frames import DELETE, MISSING, NOT_SUPPORTED, OK, PUT, WRONG_WORKER, Reply, items, put, request
from tests.anna.kvs.workers import EPOCH_NS, STALE, Workers, view_of

GET_AT, MGET_AT, PIN, EXPIRED = 15, 16, 18, 28


def epoch_of(stamp: int) -> int:
    return (stamp >> 10) // EPOCH_US


def get_at(workers: Workers, ids: int, key: bytes, epoch: int, view: int | None = None) -> Reply:
    """Read a key at an epoch that became stable under `view`, which is the worker's own unless another is named."""
    digest = workers.workers[ids].view.digest if view is None else view
    frame = request(GET_AT, key, struct.pack("<QQ", epoch, digest))
    (answer,) = workers.ask(ids, frame, connection=Connection())
    return answer


def pin(workers: Workers, ids: int, epoch: int = 0, lease_us: int = EPOCH_LEASE_US_MAX) -> tuple[int, int, int]:
    """Return (stable epoch, first epoch that can be read, epoch that runs) as a worker says."""
    (answer,) = workers.ask(ids, request(PIN, b"", struct.pack("<QQ", epoch, lease_us)), connection=Connection())
    assert answer.status == OK, answer
    stable, view, oldest, now = struct.unpack("<QQQQ", answer.payload)
    assert view or stable < oldest
    return stable, oldest, now


def begun(workers: Workers) -> Workers:
    """Let all workers keep what keys held, until there is an epoch that can be read."""
    for ids in workers.workers:
        pin(workers, ids)
    workers.pass_epochs(6)
    assert all(stable >= oldest for stable, oldest, _ in (pin(workers, ids) for ids in workers.workers))
    return workers


def now_of(workers: Workers) -> int:
    return max(worker.status()["epoch"] for worker in workers.workers.values())


def value(answer: Reply) -> bytes | None:
    assert answer.status in (OK, MISSING), answer
    return None if answer.status == MISSING else answer.payload


def test_a_key_is_read_as_it_was_at_the_end_of_the_epoch() -> None:
    workers = begun(Workers(view_of(2, factor=2)))
    written = []
    for number in range(5):
        (answer,) = workers.ask(100, put(b"k", b"%d" % number, ack=1))
        written.append((epoch_of(answer.stamp), b"%d" % number))
        workers.pass_epochs(2)
    workers.pass_epochs(3)
    for ids in workers.workers:
        assert get_at(workers, ids, b"k", written[0][0] - 1).status == MISSING
        for epoch, last in written:
            for later in (epoch, epoch + 1):
                assert get_at(workers, ids, b"k", later).payload[17:] == last
    workers.check()


def test_keys_that_were_there_before_anybody_read_are_found_and_absent_ones_are_not() -> None:
    workers = Workers(view_of(2, factor=2))
    workers.ask(100, put(b"old", b"v", ack=1))
    begun(workers)
    stable, _, _ = pin(workers, 200)
    names = b"".join(struct.pack("<H", len(key)) + key for key in (b"old", b"none"))
    workers.ask(200, put(b"none", b"too late", ack=1))
    (answer,) = workers.ask(200, request(MGET_AT, b"", struct.pack("<QQI", stable, workers.view.digest, 2) + names))
    (first, kind, state), second = items(answer.payload)
    assert (first, kind, state[17:], second) == (OK, 1, b"v", (MISSING, 0, b""))


def test_the_first_who_reads_is_told_from_when_on_he_can() -> None:
    workers = Workers(view_of(2, factor=2))
    runs = now_of(workers)
    answer = get_at(workers, 100, b"k", runs - 3)
    assert (answer.status, answer.payload) == (
        EXPIRED,
        b"epoch %d is not kept here; %d and later ones are" % (runs - 3, runs),
    )
    workers.pass_epochs(3)
    assert get_at(workers, 100, b"k", runs).status == MISSING


def test_an_epoch_that_is_not_stable_is_not_read() -> None:
    workers = begun(Workers(view_of(2, factor=2)))
    assert get_at(workers, 100, b"k", now_of(workers)).status == STALE
    assert get_at(workers, 100, b"k", now_of(workers) + 10**9).status == STALE


def test_what_arrives_late_of_an_epoch_is_in_it_and_not_in_later_writes_before_it() -> None:
    workers = begun(Workers(view_of(2, factor=2)))
    lost = True
    workers.lose = lambda source, target, frame: lost and source == 200
    (answer,) = workers.ask(200, put(b"k", b"early", ack=1), connection=Connection())
    early = epoch_of(answer.stamp)
    workers.pass_epochs(3)
    (answer,) = workers.ask(100, put(b"k", b"late", ack=1, stamp=answer.stamp), connection=Connection())
    late = epoch_of(answer.stamp)
    assert get_at(workers, 100, b"k", early).status == STALE
    lost = False
    while min(pin(workers, ids)[0] for ids in workers.workers) < late:
        workers.pass_epochs()
    for ids in workers.workers:
        assert get_at(workers, ids, b"k", early).payload[17:] == b"early"
        assert get_at(workers, ids, b"k", late).payload[17:] == b"late"
    workers.check()


def test_a_pinned_epoch_is_read_until_its_lease_ends() -> None:
    workers = begun(Workers(view_of(2, factor=2)))
    workers.ask(100, put(b"k", b"first", ack=1), connection=Connection())
    workers.pass_epochs(5)
    stable, _, _ = pin(workers, 200)
    for ids in workers.workers:
        pin(workers, ids, stable, 2_000_000)
    for number in range(2 * RECENT_EPOCHS):
        workers.ask(100, put(b"k", b"%d" % number, ack=1), connection=Connection())
        workers.pass_epochs()
    assert get_at(workers, 200, b"k", stable + 1).status == EXPIRED
    assert get_at(workers, 200, b"k", stable).payload[17:] == b"first"
    workers.check()
    workers.pass_epochs(200)
    assert get_at(workers, 200, b"k", stable).status == EXPIRED
    assert workers.workers[200].status()["history_keys"] == 0


def test_nothing_is_kept_when_nobody_has_read_for_long() -> None:
    workers = begun(Workers(view_of(1)))
    (ids,) = workers.workers
    workers.ask(ids, put(b"k", b"v", ack=1))
    assert workers.workers[ids].status()["history_keys"] == 1
    workers.now += EPOCH_LEASE_US_MAX * 1000
    workers.pass_epochs(2)
    workers.ask(ids, put(b"k", b"w", ack=1))
    assert workers.workers[ids].status()["history_from"] == 0
    workers.check()


def test_a_store_that_nobody_reads_at_epochs_keeps_nothing() -> None:
    workers = Workers(view_of(2, factor=2))
    for number in range(20):
        workers.ask(100, put(b"k", b"%d" % number, ack=1), connection=Connection())
        workers.pass_epochs()
    assert [worker.status()["history_bytes"] for worker in workers.workers.values()] == [0, 0]


def test_a_key_that_is_deleted_or_ends_is_there_until_then() -> None:
    workers = begun(Workers(view_of(2, factor=2)))
    lives = struct.pack("<QQQ", 100_000, 0, 0) + b"\x06v"  # for 0.1 s
    (written,) = workers.ask(100, request(PUT, b"short", lives, type=1, flags=8, ack=1), connection=Connection())
    workers.ask(100, put(b"gone", b"v", ack=1), connection=Connection())
    workers.pass_epochs(3)
    (deleted,) = workers.ask(200, request(DELETE, b"gone", ack=1, stamp=written.stamp), connection=Connection())
    workers.pass_epochs(20)
    first, end, cut = epoch_of(written.stamp), epoch_of(written.stamp) + 11, epoch_of(deleted.stamp)
    for ids in workers.workers:
        assert [get_at(workers, ids, b"short", epoch).status for epoch in (first, end - 2, end)] == [OK, OK, MISSING]
        assert [get_at(workers, ids, b"gone", epoch).status for epoch in (first, cut - 1, cut)] == [OK, OK, MISSING]
    workers.check()


def test_a_key_of_another_worker_is_told_so() -> None:
    workers = begun(Workers(view_of(2, factor=1)))
    stable, _, _ = pin(workers, 100)
    found = {get_at(workers, ids, b"k", stable).status for ids in workers.workers}
    assert found == {MISSING, WRONG_WORKER}


def test_reads_go_on_at_stable_epochs_while_a_node_is_dead_and_when_it_is_dropped() -> None:
    workers = begun(Workers(view_of(3, factor=2)))
    keys = [b"%d" % number for number in range(40)]
    for key in keys:
        workers.write(lambda key=key: put(key, b"before", ack=1))  # type: ignore[misc]
    workers.pass_epochs(5)
    stable = min(pin(workers, ids)[0] for ids in workers.workers)
    for ids in workers.workers:
        pin(workers, ids, stable)
    workers.stop(300)
    view, answered = workers.view.digest, 0
    for turn in range(40):
        for key in keys:
            workers.write(lambda key=key: put(key, b"after", ack=1))  # type: ignore[misc]
        workers.pass_epochs(10)
        found = [get_at(workers, ids, key, stable, view) for key in keys for ids in workers.workers]
        known = [answer.payload[17:] for answer in found if answer.status == OK]
        assert set(known) == {b"before"}, "a value of another epoch"
        assert {answer.status for answer in found} <= {OK, STALE, EXPIRED, WRONG_WORKER}
        answered = len(known)
        if turn < 20:
            assert answered >= 40, "who has a key from before goes on to answer for it"
    assert workers.workers[100].view.node(3).status == NodeStatus.DEAD
    assert answered > 0
    workers.check()


def test_what_a_node_that_joins_was_not_there_for_it_refuses() -> None:
    workers = begun(Workers(view_of(2, factor=1)))
    keys = [b"%d" % number for number in range(60)]
    for key in keys:
        workers.write(lambda key=key: put(key, b"v", ack=1))  # type: ignore[misc]
    workers.pass_epochs(5)
    stable = min(pin(workers, ids)[0] for ids in workers.workers)
    for ids in workers.workers:
        pin(workers, ids, stable)
    for key in keys[:30]:
        workers.write(lambda key=key: request(DELETE, key, ack=1))  # type: ignore[misc]
    workers.pass_epochs(5)
    joined = workers.start(3)
    for _ in range(80):
        pin(workers, joined)
        workers.pass_epochs()
    for key in keys:
        for ids in workers.workers:
            answer = get_at(workers, ids, key, stable, workers.view.digest)
            assert answer.status in (OK, WRONG_WORKER, EXPIRED), (key, ids, answer)
    told = [get_at(workers, joined, key, stable, workers.view.digest) for key in keys]
    assert all(answer.status in (WRONG_WORKER, EXPIRED) for answer in told)
    later = min(pin(workers, ids)[0] for ids in workers.workers)
    found = [get_at(workers, ids, key, later).status for key in keys for ids in workers.workers]
    assert (found.count(OK), found.count(MISSING)) == (30, 30)
    workers.check()


def test_an_epoch_of_the_other_side_of_a_partition_is_another_one() -> None:
    workers = begun(Workers(view_of(2, factor=2)))
    workers.lose = lambda source, target, frame: True
    for _ in range(330):
        for ids in workers.workers:
            pin(workers, ids)
        workers.pass_epochs()
    for ids, value in ((100, b"one"), (200, b"two")):
        workers.ask(ids, put(b"k", value, ack=1), connection=Connection())
    workers.pass_epochs(6)
    epoch = min(pin(workers, ids)[0] for ids in workers.workers)
    views = {ids: worker.view.digest for ids, worker in workers.workers.items()}
    assert views[100] != views[200]
    for ids, value in ((100, b"one"), (200, b"two")):
        assert get_at(workers, ids, b"k", epoch, views[ids]).payload[17:] == value
        assert get_at(workers, ids, b"k", epoch, views[300 - ids]).status == EXPIRED
    workers.check()


class Clients:
    """Clients that write all types on all owners; what each key held at the end of an epoch is known by the stamps."""

    def __init__(self, workers: Workers, random: Random) -> None:
        self.workers = workers
        self.random = random
        self.seen = 0
        self.history: list[tuple[tuple[int, bool, int], bytes, object]] = []

    def write(self) -> None:
        """Change one key, at any of its owners."""
        number, mark = self.random.randrange(3), len(self.history)
        what = self.random.choice((b"put", b"put", b"set", b"count", b"orset", b"delete"))
        key = b"%s-%d" % (b"put" if what == b"delete" else what, number)
        state = {b"set": Set([mark]), b"count": Counter(1), b"orset": ORSet([mark])}.get(what)
        for ids in self.random.sample(sorted(self.workers.workers), len(self.workers.workers)):
            if what == b"delete":
                frame = request(DELETE, key, ack=1, stamp=self.seen)
            elif state is None:
                frame = put(key, b"%d" % mark, ack=1, stamp=self.seen)
            else:
                frame = request(PUT, key, state.encode(), type=state.NUMBER, ack=1, stamp=self.seen)
            (answer,) = self.workers.ask(ids, frame, connection=Connection())
            if answer.status == WRONG_WORKER:
                continue
            assert answer.status in (OK, MISSING), answer
            # Two clients out of three have not heard of each other.
            self.seen = answer.stamp if self.random.random() < 0.3 else self.seen
            place = answer.stamp, what == b"delete", ids  # of two with one stamp
            self.history.append((place, key, None if what == b"delete" else mark))
            return

    def held(self, key: bytes, epoch: int) -> object:
        """Return what `key` held at the end of an epoch."""
        done = [(at, mark) for at, name, mark in self.history if name == key and epoch_of(at[0]) <= epoch]
        if not done:
            return None
        if key.startswith(b"put"):
            return max(done)[1]
        marks = frozenset(mark for _, mark in done)
        return len(marks) if key.startswith(b"count") else marks


def decoded(key: bytes, answer: Reply) -> object:
    if answer.status == MISSING:
        return None
    if key.startswith(b"put"):
        return int(answer.payload[17:])
    kind = {b"se": Set, b"co": Counter, b"or": ORSet}[key[:2]]
    held: object = kind.decode(answer.payload).value
    return held


def read_all(clients: Clients, keys: list[bytes], told: dict[tuple[bytes, int], object]) -> int:
    """Read keys at epochs at random owners, and compare; return how many answers there were."""
    answers = 0
    for _ in range(6):
        key, ids = clients.random.choice(keys), clients.random.choice(sorted(clients.workers.workers))
        stable, oldest, _ = pin(clients.workers, ids)
        if stable < oldest:
            continue
        epoch = clients.random.randint(max(oldest, stable - 6), stable + 2)
        other = clients.random.choice(sorted(clients.workers.workers))
        answer = get_at(clients.workers, other, key, epoch)
        if answer.status in (WRONG_WORKER, STALE, EXPIRED):
            continue
        answers += 1
        held = decoded(key, answer)
        assert held == clients.held(key, epoch), (key, epoch, other)
        assert told.setdefault((key, epoch), held) == held
    return answers


@pytest.mark.parametrize("seed", range(16))
def test_every_owner_gives_what_was_written_up_to_the_epoch_whatever_is_lost_on_the_way(seed: int) -> None:
    random = Random(seed)
    workers = Workers(view_of(3, factor=random.choice((1, 2, 3)), workers=random.choice((1, 2))), skew_us=2_000)
    clients = Clients(workers, random)
    for _ in range(20):
        clients.write()
    workers.lose = lambda source, target, frame: random.random() < 0.2
    for ids in workers.workers:
        pin(workers, ids)
    keys = [b"%s-%d" % (what, number) for what in (b"put", b"set", b"count", b"orset") for number in range(3)]
    told: dict[tuple[bytes, int], object] = {}
    answers = 0
    for _ in range(120):
        for _ in range(random.randrange(4)):
            clients.write()
        if random.random() < 0.7:
            workers.pass_epochs()
        answers += read_all(clients, keys, told)
    assert answers > 20
    workers.check()


@pytest.mark.parametrize("fault", ["newest-at-epoch", "unstable-epoch"])
def test_a_rule_that_is_removed_is_noticed(fault: str) -> None:
    PLANTED.add(fault)
    try:
        caught = 0
        for seed in range(4):
            try:
                test_every_owner_gives_what_was_written_up_to_the_epoch_whatever_is_lost_on_the_way(seed)
            except AssertionError:
                caught += 1
        assert caught > 0
    finally:
        PLANTED.clear()


def test_bytes_that_are_no_read_at_an_epoch_are_refused() -> None:
    workers = begun(Workers(view_of(1)))
    (ids,) = workers.workers
    for data in (request(GET_AT, b"k", b"short"), request(MGET_AT, b"", b"short"), request(PIN, b"", b"short")):
        assert workers.ask(ids, data, connection=Connection())[0].status == 21
    stable, _, _ = pin(workers, ids)
    cut = request(MGET_AT, b"", struct.pack("<QQIH", stable, workers.view.digest, 2, 1) + b"k")
    assert workers.ask(ids, cut, connection=Connection())[0].status == 21
    assert workers.ask(ids, request(99, b"k"), connection=Connection())[0].status == NOT_SUPPORTED
    assert workers.now > EPOCH_NS
    workers.check()
