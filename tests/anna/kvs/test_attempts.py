"""Transactions that are tried more than once: of all attempts one has effect."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

import pytest

from anna.commits import Verdict, Write, guard_of
from anna.config import EPOCH_US, TRANSACTION_KEPT_US
from anna.lattices import LWW, Causal, Counter, Map, ORSet, Set
from anna.routing.placement import Placement
from tests.anna.frames import (
    put,
    request,
)
from tests.anna.kvs.coordinators import (
    ID,
    SILENT_EPOCHS,
    Coordinator,
    lww,
    prepared,
    spread_keys,
    two,
    two_keys,
    value,
)
from tests.anna.kvs.workers import Workers, view_of


def test_a_prepare_or_a_commit_that_comes_again_is_answered_with_what_was() -> None:
    workers = Workers(view_of(3, factor=2))
    coordinator = Coordinator(workers, [Write(b"c", Counter.NUMBER, Counter(+3).encode()), *two(workers)])
    messages = coordinator.prepare()
    stamp = coordinator.commit.stamp
    for _ in range(2):
        answers = [workers.ask(m.worker_id, request(m.op, b"", m.payload, ack=1))[0].payload for m in messages]
        assert max(struct.unpack("<BQQ", answer)[:2] for answer in answers) == (1, stamp)
    for _ in range(2):
        coordinator.send(coordinator.commit.ending())
        workers.pass_epochs(3)
        answers = [workers.ask(m.worker_id, request(m.op, b"", m.payload, ack=1))[0].payload for m in messages]
        assert {struct.unpack("<BQQ", answer) for answer in answers} == {(2, stamp, 1)}
    assert Counter.decode(workers.read(b"c").payload).value == 3
    workers.check()


def test_a_retry_by_another_coordinator_has_no_second_effect() -> None:
    workers = Workers(view_of(3, factor=2))
    writes = [Write(b"c", Counter.NUMBER, Counter(+3).encode()), *two(workers)]
    first = Coordinator(workers, writes)
    assert first.run() is Verdict.COMMITTED
    workers.pass_epochs(3)
    for key in spread_keys(workers):
        workers.write(lambda key=key: put(key, b"later", ack=1))  # type: ignore[misc]
    again = Coordinator(workers, writes, nonce=99)
    assert again.run() is Verdict.COMMITTED
    assert again.commit.stamp == first.commit.stamp
    workers.pass_epochs(3)
    assert Counter.decode(workers.read(b"c").payload).value == 3
    assert {value(workers, key) for key in spread_keys(workers)} == {b"later"}
    assert prepared(workers) == [0, 0, 0]


def test_a_retry_at_owners_that_know_nothing_of_it_counts_nothing_twice() -> None:
    """Dots and counts depend on the transaction alone; two attempts that both were committed come to the same."""
    states = {
        b"c": Counter(+3),
        b"o": ORSet({"x"}),
        b"v": Causal("once"),
        b"m": Map({"n": Counter(+2), "s": ORSet({"y"}), "r": LWW("last")}),
        b"s": Set({1}),
    }
    found = []
    for commits in (1, 2):
        workers = Workers(view_of(1))
        for nonce in range(commits):
            writes = [Write(key, state.NUMBER, state.encode()) for key, state in states.items()]
            assert Coordinator(workers, writes, nonce=nonce).run() is Verdict.COMMITTED
            workers.pass_epochs(TRANSACTION_KEPT_US // EPOCH_US + 10)
            assert workers.workers[100].status()["commits"] == nonce + 1
        found.append({key: kind_of(state).decode(workers.read(key).payload).value for key, state in states.items()})
    assert found[0] == found[1]
    assert found[0][b"m"] == {"n": 2, "s": {"y"}, "r": "last"}


def kind_of(state: object) -> type:
    return type(state)


def test_two_attempts_at_once_end_with_one() -> None:
    workers = Workers(view_of(3, factor=2))
    one, other = Coordinator(workers, two(workers)), Coordinator(workers, two(workers), nonce=50)
    first, _ = one.commit.begin(one.owner)
    one.send([first])
    other.prepare()
    assert other.commit.verdict is Verdict.AGAIN
    workers.pass_epochs(2)
    other.send(other.commit.ending())
    assert other.run() is Verdict.COMMITTED
    workers.pass_epochs(2)
    assert prepared(workers) == [0, 0, 0]
    assert {value(workers, write.key) for write in other.commit.writes} == {b"v"}


def test_a_log_with_two_attempts_at_one_transaction_comes_back_with_both() -> None:
    logged = []
    for nonce in (1, 2):
        workers = Workers(view_of(1))
        workers.workers[100].open_log(1)
        Coordinator(workers, two_keys(), nonce=nonce).prepare()
        ((_, cells),) = workers.workers[100].log_out()
        logged.append(cells)
    again = Workers(view_of(1))
    for cells in (*logged, logged[0]):
        again.workers[100].recover(cells)
    assert prepared(again) == [2]
    again.pass_epochs(3)
    assert prepared(again) == [0]
    assert [value(again, write.key) for write in two_keys()] == [b"v", b"v"]
    again.check()


def rivals(workers: Workers, *writes: list[Write]) -> list[Coordinator]:
    """Return coordinators of one transaction that do not know of each other."""
    return [Coordinator(workers, some, nonce=50 * n + 1, guarded=True) for n, some in enumerate(writes)]


def test_of_two_attempts_at_different_owners_of_one_key_the_guard_takes_one() -> None:
    """Each of them would be prepared by all that it asks: the guard is what both ask."""
    workers = Workers(view_of(4, factor=2))
    one, other = rivals(workers, two(workers), two(workers))
    view = next(iter(workers.workers.values())).view
    second = {write.key: view.workers[Placement(view).owners_of(write.key)[1]].worker_id for write in two(workers)}
    workers.lose = lambda source, target, frame: True
    one.send(one.commit.begin(one.owner, one.guard), ack=1)
    other.send(other.commit.begin(second.__getitem__, other.guard), ack=1)
    workers.lose = lambda source, target, frame: False
    assert one.commit.verdict is Verdict.COMMITTED
    assert other.commit.verdict is Verdict.AGAIN
    for coordinator in (one, other):
        coordinator.send(coordinator.commit.ending())
    goes_on(workers, [other], other.owner, Random(1))
    assert other.commit.stamp == one.commit.stamp
    workers.pass_epochs(3)
    states = [w.store.read(write.key) for w in workers.workers.values() for write in two(workers)]
    assert {state.stamp for state in states if state is not None} == {one.commit.stamp}
    workers.check()


def test_an_attempt_that_writes_other_keys_is_told_of_the_one_that_was_committed() -> None:
    workers = Workers(view_of(3, factor=1))
    first, second = spread_keys(workers)
    one, other = rivals(workers, [Write(first, 1, lww(b"v"))], [Write(second, 1, lww(b"w"))])
    assert one.run() is Verdict.COMMITTED
    assert (other.run(), other.commit.stamp) == (Verdict.COMMITTED, one.commit.stamp)
    workers.pass_epochs(3)
    assert (value(workers, first), value(workers, second)) == (b"v", None)
    assert prepared(workers) == [0, 0, 0]
    workers.check()


def test_a_worker_that_decides_from_now_on_knows_what_was_committed_before() -> None:
    """Many ids, of which a third or so come to another guard when a node joins."""
    workers = Workers(view_of(2, factor=1))
    first, second = spread_keys(workers)
    ids = [b"%16d" % n for n in range(30)]
    stamps = {}
    for id in ids:
        coordinator = Coordinator(workers, [Write(first, 1, lww(id))], id, guarded=True)
        assert coordinator.run() is Verdict.COMMITTED
        stamps[id] = coordinator.commit.stamp
        workers.pass_epochs(1)
    new = workers.start(3)
    workers.pass_epochs(300)
    guards = []
    for id in ids:
        again = Coordinator(workers, [Write(second, 1, lww(id))], id, nonce=50, guarded=True)
        guards.append(again.guard(guard_of(id)))
        assert (again.run(), again.commit.stamp) == (Verdict.COMMITTED, stamps[id])
        workers.pass_epochs(1)
    assert new in guards
    assert value(workers, second) is None
    workers.check()


def test_who_is_not_the_guard_does_not_decide_between_attempts() -> None:
    workers = Workers(view_of(3, factor=2))
    (coordinator,) = rivals(workers, two(workers))
    right = coordinator.guard(guard_of(ID))
    wrong = next(ids for ids in workers.workers if ids != right)
    coordinator.send(coordinator.commit.begin(coordinator.owner, lambda place: wrong))
    assert coordinator.commit.verdict is Verdict.AGAIN
    assert coordinator.commit.view is not None
    coordinator.send(coordinator.commit.ending())
    assert coordinator.run() is Verdict.COMMITTED


@pytest.mark.parametrize("seed", range(12))
def test_coordinators_that_do_not_know_of_each_other_commit_once(seed: int) -> None:
    """Three of each transaction, in any order, at any of the owners, with a fifth of the workers' frames lost."""
    draw = Random(seed)
    workers = Workers(view_of(4, factor=draw.choice((2, 3))), skew_us=draw.choice((0, 400)))
    workers.lose = lambda source, target, frame: draw.random() < 0.2
    view = next(iter(workers.workers.values())).view
    placement = Placement(view)

    def anyone(key: bytes) -> int:
        return view.workers[draw.choice(placement.owners_of(key))].worker_id

    for number in range(8):
        id, writes = b"%16d" % number, [Write(b"%d" % n, 1, lww(b"%d" % number)) for n in draw.sample(range(8), 3)]
        some = [Coordinator(workers, writes, id, nonce=100 * n, guarded=True) for n in range(3)]
        for coordinator in some:
            coordinator.letters = some[0].letters
        goes_on(workers, draw.sample(some, 3), anyone, draw)
        assert {coordinator.commit.verdict for coordinator in some} == {Verdict.COMMITTED}
        stamps = {coordinator.commit.stamp for coordinator in some}
        assert stamps == {worker.commit_of(id) for worker in workers.workers.values()} - {0}
        assert len(stamps) == 1
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(SILENT_EPOCHS + 100)
    assert prepared(workers) == [0] * 4
    workers.check()


def goes_on(
    workers: Workers, some: list[Coordinator], owner: Callable[[bytes], int], draw: Random, rounds: int = 400
) -> None:
    """Let coordinators do what they do, one after the other, until each of them knows that it is committed."""
    for _ in range(rounds):
        for coordinator in some:
            commit = coordinator.commit
            coordinator.collect()
            for worker in list(commit.waiting) if draw.random() < 0.02 else ():
                commit.missed(worker, True)  # nobody waits for ever
            if not commit.waiting and commit.verdict in (Verdict.OPEN, Verdict.AGAIN) and draw.random() < 0.5:
                coordinator.send(commit.ending())
                coordinator.send(commit.begin(owner, coordinator.guard))
            elif not commit.waiting and commit.verdict is Verdict.UNKNOWN:
                coordinator.send(commit.ask(owner, coordinator.guard))
            elif commit.verdict is Verdict.COMMITTED:
                coordinator.send(commit.ending())
        if all(coordinator.commit.verdict is Verdict.COMMITTED for coordinator in some):
            return
        workers.pass_epochs(draw.randint(0, 2))
