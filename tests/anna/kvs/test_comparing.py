"""A slice of comparing, as a worker takes one each epoch: how much it sends at once, and when it is over."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from anna import config
from anna.kvs.worker import Worker
from tests.anna.frames import put
from tests.anna.kvs.workers import Workers, view_of

MEMORY = 1
VALUE = bytes(2000)


def cut_off(*silent: int) -> Callable[[int, int, bytes], bool]:
    """Return what loses all that goes to or comes from these workers."""
    return lambda source, target, frame: source in silent or target in silent


def sending(count: int) -> tuple[Workers, int]:
    """Return a worker with `count` keys that has begun to send them to a newcomer, and the newcomer's id."""
    workers = Workers(view_of(1))
    for number in range(count):
        assert workers.ask(100, put(b"k%d" % number, VALUE, ack=MEMORY))
    ids = workers.start(2)
    repairs = workers.workers[100].replication.repairs
    while not (ids in repairs and repairs[ids].progress.cells_sent):
        workers.pass_epochs(1)
    return workers, ids


def compared(worker: Worker, peer: int) -> bool:
    """Whether a worker and a peer have told each other all."""
    repair = worker.replication.repairs[peer]
    return repair.sent_done and repair.heard_done


def test_what_waits_in_a_link_that_confirms_nothing_is_bounded_and_goes_on_when_it_does() -> None:
    """Deltas must not wait behind all that repair has to send."""
    workers, ids = sending(4000)
    old = workers.workers[100]
    workers.lose = cut_off(ids)
    most = 0
    for _ in range(40):
        workers.pass_epochs(1)
        most = max(most, old.replication.links[ids].queued_bytes)
    bound = config.REPAIR_QUEUE_BYTES + config.REPAIR_SLICE_BYTES + config.REPAIR_BODY_BYTES
    assert config.REPAIR_QUEUE_BYTES <= most < bound
    assert old.replication.repairs[ids].busy, "there was not enough to send"
    workers.lose = cut_off()
    workers.pass_epochs(100)
    assert workers.workers[ids].is_complete
    assert len(workers.workers[ids].store) > 1500
    workers.check()


@pytest.mark.parametrize("silent", [200, 300])
def test_it_is_not_over_while_any_peer_has_not_answered_whichever_comes_last(silent: int) -> None:
    """Who waits for the last word of one peer has to look each epoch, though another one is done."""
    workers = Workers(view_of(3, factor=3))
    worker = workers.workers[100]
    workers.lose = cut_off(silent)
    worker.replication.compare_again()
    workers.pass_epochs(20)
    other = 500 - silent
    assert (compared(worker, other), compared(worker, silent)) == (True, False)
    assert not worker.replication.repairs[silent].busy, "it waits for the peer alone"
    assert worker.replication.repair()
    workers.lose = cut_off()
    workers.pass_epochs(60)
    assert not worker.replication.repair()
    assert compared(worker, silent)


def test_it_is_not_over_while_there_is_something_to_send_and_the_link_takes_no_more() -> None:
    workers, ids = sending(4000)
    old = workers.workers[100]
    workers.lose = cut_off(ids)
    workers.pass_epochs(40)
    sent = old.replication.repairs[ids].progress.cells_sent
    assert old.replication.repair()
    assert old.replication.repairs[ids].progress.cells_sent == sent


def test_every_body_of_a_slice_holds_back_the_epoch_until_it_is_confirmed() -> None:
    """What repair sends may be what a closed epoch promises: it is not closed before all of it has arrived."""
    workers, ids = sending(400)
    old = workers.workers[100]
    workers.lose = cut_off(ids)
    begun = old.replication.closed
    workers.pass_epochs(20)
    assert old.replication.closed <= begun + 1
    workers.lose = cut_off()
    workers.pass_epochs(60)
    assert old.replication.closed > begun + 20
