"""Cut off until each side calls the other dead: who says what keys held at an epoch, and takes transactions."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from anna.commits import Commit, Verdict
from anna.config import EPOCH_LEASE_US_MAX
from anna.kvs.faults import PLANTED
from anna.kvs.worker import Connection
from tests.anna.frames import OK, WRONG_WORKER, put, request
from tests.anna.kvs.coordinators import COMMIT, PREPARE, Coordinator, lww
from tests.anna.kvs.test_epochs import PIN, begun, get_at, pin
from tests.anna.kvs.test_moves import settle
from tests.anna.kvs.workers import STALE, Workers, view_of

LOST = 24
KEYS = [b"key-%02d" % number for number in range(20)]


def cut_off(workers: Workers, alone: int, epochs: int = 400) -> None:
    """Cut one worker off from all others, until each side has called the other dead."""
    workers.lose = lambda source, target, frame: (source == alone) != (target == alone)
    workers.pass_epochs(epochs)


def begins_at(workers: Workers, ids: int) -> int:
    """Return the status with which a worker answers who begins to read at an epoch."""
    (answer,) = workers.ask(ids, request(PIN, b"", struct.pack("<QQ", 0, EPOCH_LEASE_US_MAX)), connection=Connection())
    return answer.status


def prepares(workers: Workers, ids: int) -> int:
    """Return the status with which a worker answers who wants a key prepared that it owns."""
    coordinator = Coordinator(workers, [(b"any", 1, lww(b"v"), 0)])  # type: ignore[list-item]
    coordinator.owner = lambda key: ids  # type: ignore[method-assign]
    (message,) = coordinator.commit.begin(lambda key: ids)
    (answer,) = workers.ask(ids, request(message.op, b"", message.payload, ack=1), connection=Connection())
    return answer.status


def test_the_side_that_may_lack_keys_reads_at_no_epoch_and_prepares_nothing() -> None:
    """It called absent what it had not: a session read half of a transaction, or missed what its client had written."""
    workers = begun(Workers(view_of(3, factor=2)))
    for key in KEYS:
        assert workers.write(lambda key=key: put(key, b"v", ack=1)).status == OK
    workers.pass_epochs(5)
    cut_off(workers, 300)
    assert begins_at(workers, 300) == STALE
    assert prepares(workers, 300) == STALE
    for ids in (100, 200):
        stable, _, _ = pin(workers, ids)
        assert stable
        assert prepares(workers, ids) in (OK, WRONG_WORKER)
    assert {get_at(workers, 100, key, pin(workers, 100)[0]).status for key in KEYS} == {OK}


def test_of_two_halves_one_goes_on_and_of_three_copies_the_greater_side_does() -> None:
    workers = begun(Workers(view_of(3, factor=3)))
    cut_off(workers, 100)
    assert [begins_at(workers, ids) for ids in (100, 200, 300)] == [STALE, OK, OK]
    halves = begun(Workers(view_of(4, factor=3)))
    halves.lose = lambda source, target, frame: (source < 300) != (target < 300)
    halves.pass_epochs(400)
    assert [begins_at(halves, ids) for ids in (100, 200, 300, 400)] == [OK, OK, STALE, STALE]


def test_where_there_are_no_copies_or_two_nodes_all_go_on() -> None:
    single = begun(Workers(view_of(3, factor=1)))
    cut_off(single, 300)
    assert [begins_at(single, ids) for ids in (100, 300)] == [OK, OK]
    pair = begun(Workers(view_of(2, factor=2)))
    cut_off(pair, 200)
    assert [begins_at(pair, ids) for ids in (100, 200)] == [OK, OK]


def test_nodes_that_die_one_after_the_other_are_made_good_one_by_one() -> None:
    workers = begun(Workers(view_of(5, factor=2)))
    for gone in (500, 400):
        workers.stop(gone)
        settle_without(workers, 400)
    assert [begins_at(workers, ids) for ids in (100, 200, 300)] == [OK] * 3


def settle_without(workers: Workers, epochs: int) -> None:
    """Let those that are left call the others dead, and make their copies anew."""
    workers.pass_epochs(epochs)
    settle(workers)


def test_afterwards_both_sides_read_at_epochs_again_that_have_what_either_wrote() -> None:
    workers = begun(Workers(view_of(3, factor=2)))
    cut_off(workers, 300)
    for ids in (100, 300):
        for key in KEYS:
            workers.ask(ids, put(key + b"%d" % ids, b"v", ack=1), connection=Connection())
    workers.pass_epochs(5)
    workers.lose = lambda source, target, frame: False
    refused = False
    while any(worker.returning or not worker.entire for worker in workers.workers.values()) or not all(
        worker.is_complete for worker in workers.workers.values()
    ):
        for ids, worker in workers.workers.items():
            if worker.returning:
                refused = True
            if worker.returning or not worker.entire:
                assert begins_at(workers, ids) == STALE
        workers.pass_epochs()
    assert refused, "nobody waited for what the other side has written"
    settle(workers)
    begun(workers)
    held = {key + b"%d" % side for key in KEYS for side in (100, 300)}
    kept = {key for key in held if workers.read(key).status == OK}
    for ids, worker in workers.workers.items():
        stable, _, _ = pin(workers, ids)
        mine = {key for key in held if get_at(workers, ids, key, stable).status == OK}
        owned = {key for key in held if worker.store.read(key) is not None}
        assert mine == owned & kept


def test_an_owner_prepares_nothing_beside_one_that_it_calls_dead() -> None:
    """A coordinator that knew the view before had one part prepared on either side, and both committed there."""
    workers = begun(Workers(view_of(3, factor=2)))
    writes = [(key, 1, lww(b"v"), 0) for key in KEYS]
    coordinator = Coordinator(workers, writes)  # type: ignore[arg-type]
    messages = coordinator.commit.begin(coordinator.owner)
    assert {message.worker_id for message in messages} == {100, 200, 300}
    cut_off(workers, 300)
    for message in messages:
        (answer,) = workers.ask(message.worker_id, request(message.op, b"", message.payload), connection=Connection())
        assert answer.status == (STALE if message.worker_id == 300 else WRONG_WORKER)


def test_an_owner_whose_copies_are_lost_has_not_refused() -> None:
    """It has prepared its part: who was told that the transaction had failed read what it wrote."""
    commit = Commit(b"a transaction's ", [(b"k", 1, lww(b"v"), 0)], 1)
    (message,) = commit.begin(lambda key: 100)
    assert message.op == PREPARE
    commit.answered(100, LOST, b"1 owner of the key is left")
    assert commit.verdict is Verdict.UNKNOWN
    assert [one.op for one in commit.ending()] == []
    commit.ask(lambda key: 100)
    commit.answered(100, 0, struct.pack("<BQQ", 3, 0, 0))
    assert commit.verdict is Verdict.REFUSED
    assert commit.refusal == (LOST, "1 owner of the key is left")
    assert all(one.op == COMMIT for one in commit.ending())


@pytest.mark.parametrize(
    ("fault", "noticed"),
    [
        ("part-for-whole", test_the_side_that_may_lack_keys_reads_at_no_epoch_and_prepares_nothing),
        ("early-return", test_afterwards_both_sides_read_at_epochs_again_that_have_what_either_wrote),
        ("strange-places", test_an_owner_prepares_nothing_beside_one_that_it_calls_dead),
    ],
)
def test_each_rule_is_noticed_when_it_is_broken(fault: str, noticed: Callable[[], None]) -> None:
    PLANTED.add(fault)
    try:
        with pytest.raises((AssertionError, ValueError)):
            noticed()
    finally:
        PLANTED.discard(fault)
