"""Transactions whose coordinator is gone: any participant finishes them, whoever dies and whatever moves."""

from __future__ import annotations

import struct
from random import Random

import pytest

from anna.commits import HEAD, Commit, Verdict, Write
from anna.config import EPOCH_US, TRANSACTION_KEPT_US
from anna.kvs.transactions import writer_of
from anna.kvs.worker import Connection
from tests.anna.frames import (
    OK,
    WRONG_WORKER,
    request,
)
from tests.anna.kvs.coordinators import (
    FINISH,
    ID,
    PREPARE,
    SILENT_EPOCHS,
    Coordinator,
    lww,
    prepared,
    spread_keys,
    two,
    two_keys,
    value,
)
from tests.anna.kvs.test_epochs import begun, get_at
from tests.anna.kvs.workers import Workers, view_of


def test_an_owner_that_hears_no_more_finds_out_that_all_have_prepared() -> None:
    workers = Workers(view_of(3, factor=2))
    coordinator = Coordinator(workers, two(workers))
    coordinator.prepare()
    workers.pass_epochs(SILENT_EPOCHS)
    assert prepared(workers) == [0, 0, 0]
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {b"v"}
    states = [w.store.read(write.key) for w in workers.workers.values() for write in coordinator.commit.writes]
    assert {state.stamp for state in states if state is not None} == {coordinator.commit.stamp}
    coordinator.send(coordinator.commit.ending())
    workers.check()


def test_an_owner_that_was_never_asked_refuses_from_then_on_and_all_drop_it() -> None:
    workers = Workers(view_of(3, factor=2))
    coordinator = Coordinator(workers, two(workers))
    first, second = coordinator.commit.begin(coordinator.owner)
    coordinator.send([first])
    workers.pass_epochs(SILENT_EPOCHS)
    assert prepared(workers) == [0, 0, 0]
    coordinator.send([second])
    assert coordinator.commit.verdict is Verdict.AGAIN
    assert prepared(workers) == [0, 0, 0]
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {None}
    assert coordinator.run() is Verdict.COMMITTED
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {b"v"}


def test_a_coordinator_that_lost_an_answer_asks_and_is_told() -> None:
    workers = Workers(view_of(3, factor=2))
    coordinator = Coordinator(workers, two(workers))
    first, second = coordinator.commit.begin(coordinator.owner)
    coordinator.send([first])
    workers.ask(second.worker_id, request(second.op, b"", second.payload, ack=1), connection=Connection())
    coordinator.commit.missed(second.worker_id, True)
    assert coordinator.commit.verdict is Verdict.UNKNOWN
    workers.deliver()
    coordinator.send(coordinator.commit.ask(coordinator.owner))
    workers.pass_epochs(2)
    coordinator.send(coordinator.commit.ask(coordinator.owner))
    assert coordinator.commit.verdict is Verdict.COMMITTED
    workers.pass_epochs(2)
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {b"v"}


@pytest.mark.parametrize("committed_at_one", [False, True])
def test_a_participant_dies_and_the_other_owners_of_its_keys_finish(committed_at_one: bool) -> None:
    workers = begun(Workers(view_of(4, factor=2)))
    coordinator = Coordinator(workers, two(workers))
    coordinator.prepare()
    assert coordinator.commit.verdict is Verdict.COMMITTED
    dead = coordinator.commit.ending()[0].worker_id
    workers.stop(dead)
    if committed_at_one:
        coordinator.send(coordinator.commit.ending()[1:])
    workers.pass_epochs(600)
    assert prepared(workers) == [0, 0, 0]
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {b"v"}
    stamps = [w.store.read(x.key) for w in workers.workers.values() for x in coordinator.commit.writes]
    assert {state.stamp for state in stamps if state is not None} == {coordinator.commit.stamp}
    assert all(worker.is_complete for worker in workers.workers.values())
    workers.check()


def test_a_participant_that_dies_before_anybody_else_has_its_part_takes_the_transaction_with_it() -> None:
    workers = Workers(view_of(4, factor=2))
    coordinator = Coordinator(workers, two(workers))
    first, second = coordinator.commit.begin(coordinator.owner)
    coordinator.send([first])
    workers.lose = lambda source, target, frame: source == second.worker_id
    coordinator.send([second])
    workers.stop(second.worker_id)
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(600)
    assert prepared(workers) == [0, 0, 0]
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {None}
    assert {worker.is_complete for worker in workers.workers.values()} == {True}
    workers.check()


def test_what_both_sides_of_a_partition_have_set_aside_is_committed_when_they_are_one_again() -> None:
    """Each takes the other for dead; the coordinator has heard from both, and its caller was told."""
    workers = begun(Workers(view_of(2, factor=1)))
    coordinator = Coordinator(workers, two(workers))
    workers.lose = lambda source, target, frame: True
    coordinator.prepare()
    assert coordinator.commit.verdict is Verdict.COMMITTED
    runs = coordinator.commit.stamp // (EPOCH_US << 10)
    workers.pass_epochs(800)
    assert prepared(workers) == [0, 0]
    assert min(worker.status()["stable"] for worker in workers.workers.values()) > runs
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(400)
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {b"v"}
    keys = [write.key for write in coordinator.commit.writes]
    states = [worker.store.read(key) for worker in workers.workers.values() for key in keys]
    assert {state.stamp for state in states if state is not None} == {coordinator.commit.stamp}
    found = [get_at(workers, ids, key, runs) for ids in workers.workers for key in keys]
    assert {answer.status for answer in found} <= {WRONG_WORKER, 28}
    workers.check()


def test_keys_that_move_take_what_is_prepared_with_them() -> None:
    workers = Workers(view_of(2, factor=1))
    writes = [Write(b"%d" % n, 1, lww(b"v")) for n in range(40)]
    coordinator = Coordinator(workers, writes)
    coordinator.prepare()
    assert coordinator.commit.verdict is Verdict.COMMITTED
    ids = workers.start(3)
    workers.pass_epochs(60)
    assert coordinator.commit.verdict is Verdict.COMMITTED
    coordinator.send(coordinator.commit.ending())
    workers.pass_epochs(300)
    assert len(workers.workers[ids].store) > 3
    assert prepared(workers) == [0, 0, 0]
    assert {value(workers, write.key) for write in writes} == {b"v"}
    workers.check()


def test_an_owner_that_leaves_waits_until_what_it_has_prepared_is_decided() -> None:
    workers = Workers(view_of(3, factor=1))
    coordinator = Coordinator(workers, two(workers))
    coordinator.prepare()
    leaving = coordinator.commit.ending()[0].worker_id
    workers.workers[leaving].depart()
    workers.pass_epochs(SILENT_EPOCHS // 2)
    assert not workers.workers[leaving].has_left
    coordinator.send(coordinator.commit.ending())
    workers.pass_epochs(300)
    assert workers.workers[leaving].has_left
    workers.stop(leaving)
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {b"v"}


def test_what_it_came_to_is_remembered_for_a_while_and_then_forgotten() -> None:
    workers = Workers(view_of(1))
    coordinator = Coordinator(workers, [Write(b"k", 1, lww(b"v"))])
    assert coordinator.run() is Verdict.COMMITTED
    finish = request(FINISH, b"", HEAD.pack(ID, 1) + struct.pack("<QI", 100, 0))
    workers.pass_epochs(100)
    assert workers.ask(100, finish)[0].payload[:1] == b"\x02"
    workers.now += TRANSACTION_KEPT_US * 1000
    workers.pass_epochs(3)
    assert workers.ask(100, finish)[0].payload[:1] == b"\x00"


def test_a_worker_that_was_taken_for_its_predecessor_prepares_nothing() -> None:
    """Who sits where another sat has its address, and is asked by those who have not heard of it."""
    workers = Workers(view_of(2))
    first, _ = spread_keys(workers)
    coordinator = Coordinator(workers, [Write(first, 1, lww(b"v"))])
    (message,) = coordinator.commit.begin(lambda key: 4711)
    (answer,) = workers.ask(coordinator.owner(first), request(PREPARE, b"", message.payload))
    coordinator.commit.answered(4711, answer.status, answer.payload)
    assert (answer.status, coordinator.commit.verdict) == (WRONG_WORKER, Verdict.AGAIN)
    assert coordinator.run() is Verdict.COMMITTED
    assert prepared(workers) == [0, 0]


def test_who_holds_a_part_as_a_copy_is_not_taken_for_the_one_that_was_to_prepare_another() -> None:
    """The predecessor in its seat died unasked; it has the other part of the transaction from a co-owner."""
    workers = Workers(view_of(3, factor=2))
    coordinator = Coordinator(workers, two(workers))
    gone, asked = (coordinator.owner(write.key) for write in coordinator.commit.writes)
    messages = coordinator.commit.begin(coordinator.owner)
    coordinator.send([message for message in messages if message.worker_id == asked])
    coordinator.commit.missed(gone, True)
    assert coordinator.commit.verdict is Verdict.UNKNOWN
    holder = next(ids for ids, count in zip(workers.workers, prepared(workers)) if count and ids not in (gone, asked))
    (question, _) = coordinator.commit.ask(coordinator.owner)
    (answer,) = workers.ask(holder, request(FINISH, b"", question.payload))
    coordinator.commit.answered(gone, answer.status, answer.payload)
    coordinator.commit.missed(asked, True)
    assert coordinator.commit.verdict is not Verdict.COMMITTED
    workers.pass_epochs(SILENT_EPOCHS)
    assert prepared(workers) == [0, 0, 0]
    assert [value(workers, write.key) for write in coordinator.commit.writes] == [None, None]


def test_who_has_the_address_of_a_worker_that_was_asked_says_so() -> None:
    workers = Workers(view_of(1))
    commit = Commit(ID, two_keys(), 1)
    mine, another = commit.begin({b"a": 100, b"b": 99}.__getitem__)
    (answer,) = workers.ask(100, request(PREPARE, b"", mine.payload))
    assert (answer.status, answer.payload[0]) == (OK, 1)
    (answer,) = workers.ask(100, request(PREPARE, b"", another.payload))
    assert answer.status == WRONG_WORKER
    answers = [workers.ask(100, request(FINISH, b"", message.payload))[0] for message in commit.ask(lambda key: 100)]
    assert [answer.payload[0] for answer in answers] == [1, 0]


def test_what_is_on_disk_is_prepared_still_after_a_restart() -> None:
    """What a log has of a transaction comes back with it: what is prepared, and what was committed."""
    workers = Workers(view_of(1))
    workers.workers[100].open_log(1)
    held = Coordinator(workers, two_keys())
    done = Coordinator(workers, [Write(b"d", 1, lww(b"v"))], b"another id's 16b")
    held.prepare()
    ((number, cells),) = workers.workers[100].log_out()
    workers.workers[100].logged(number, workers.now)
    assert done.run() is Verdict.COMMITTED
    ((_, more),) = workers.workers[100].log_out()
    for source in ([cells, more], [b"".join(cell for _, cell in workers.workers[100].cells())]):
        again = Workers(view_of(1))
        for part in source:
            again.workers[100].recover(part)
        again.workers[100].open_log(1)
        assert prepared(again) == [1]
        assert value(again, b"d") == b"v"
        assert Coordinator(again, done.commit.writes, b"another id's 16b", nonce=9).run() is Verdict.COMMITTED
        again.pass_epochs(3)
        assert prepared(again) == [0]
        assert [value(again, write.key) for write in held.commit.writes] == [b"v", b"v"]
        assert again.workers[100].store.read(b"d").stamp == done.commit.stamp
        again.check()


@pytest.mark.parametrize("seed", range(12))
def test_all_owners_come_to_the_same_whatever_is_lost_and_whoever_falls_silent(seed: int) -> None:
    """Random transactions whose coordinators stop at a random step, a fifth of the workers' frames lost."""
    draw = Random(seed)
    workers = begun(Workers(view_of(4, factor=draw.choice((2, 3))), skew_us=draw.choice((0, 400))))
    workers.lose = lambda source, target, frame: draw.random() < 0.2
    keys = [b"%d" % n for n in range(8)]
    ended, letters = [], {}
    for number in range(40):
        writes = [Write(key, 1, lww(b"%d" % number)) for key in draw.sample(keys, draw.randint(1, 4))]
        coordinator = Coordinator(workers, writes, b"%16d" % number)
        coordinator.letters = letters
        messages = coordinator.commit.begin(coordinator.owner)
        coordinator.send(messages if draw.random() < 0.7 else draw.sample(messages, draw.randint(0, len(messages))))
        workers.pass_epochs(draw.randint(0, 2))
        coordinator.collect()
        ending = coordinator.commit.ending()
        coordinator.send(ending if draw.random() < 0.5 else ending[: draw.randint(0, len(ending))])
        ended.append(coordinator.commit)
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(SILENT_EPOCHS + 100)
    assert prepared(workers) == [0] * 4
    committed = {}
    for commit in ended:
        name = (commit.transaction, commit.attempt)
        outcomes = {w.state_of_transaction(*name) for w in workers.workers.values()} - {(0, 0)}
        assert len(outcomes) <= 1, commit.transaction
        if commit.verdict is Verdict.COMMITTED:
            assert outcomes == {(2, commit.stamp)}
        if outcomes and next(iter(outcomes))[0] == 2:
            committed[commit.transaction] = next(iter(outcomes))[1]
    for key in keys:
        writers = [(committed[c.transaction], writer_of(c.transaction)) for c in ended
                   if c.transaction in committed and key in [write.key for write in c.writes]]  # fmt: skip
        held = {(state.stamp, state.writer) for w in workers.workers.values() if (state := w.store.read(key))}
        assert held == ({max(writers)} if writers else set())
    assert len(committed) > 10
    workers.check()
