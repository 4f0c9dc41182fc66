"""Owners of a key whose time is over come to the same, whoever of them had not heard yet that it was to live on."""

from __future__ import annotations

import struct

import pytest

from anna import Set
from anna.kvs.worker import Connection
from tests.anna import frames
from tests.anna.frames import register, request
from tests.anna.kvs.workers import EPOCH_NS, Workers, view_of

KEY = b"s"


def add(workers: Workers, ids: int, element: str, lives_us: int = 0) -> None:
    body = (struct.pack("<Q", lives_us) if lives_us else b"") + Set({element}).encode()
    data = request(frames.PUT, KEY, body, type=Set.NUMBER, flags=8 if lives_us else 0, ack=1)
    (answer,) = workers.ask(ids, data, connection=Connection())
    assert answer.status == frames.OK


def seen(workers: Workers) -> list[set[str] | None]:
    """What each worker answers for the key; None: it is missing."""
    found: list[set[str] | None] = []
    for ids in workers.workers:
        (answer,) = workers.ask(ids, request(frames.GET, KEY), connection=Connection())
        found.append(Set.decode(answer.payload).value if answer.status == frames.OK else None)
    return found


@pytest.mark.parametrize("epochs", [8, 100])
def test_a_write_that_keeps_a_set_alive_keeps_all_of_it_at_owners_that_hear_of_it_too_late(epochs: int) -> None:
    """The one that ended it was left with the last write, for ever: the others had the whole set."""
    workers = Workers(view_of(3, factor=3))
    add(workers, 100, "early", lives_us=epochs * EPOCH_NS // 1000)
    workers.pass_epochs(epochs - 1)
    workers.lose = lambda source, target, frame: source == 200
    add(workers, 200, "late")
    workers.pass_epochs(4)
    assert seen(workers) == [None, {"early", "late"}, None]
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(60)
    assert seen(workers) == [{"early", "late"}] * 3
    workers.check()


def test_what_is_written_to_a_set_whose_time_is_over_is_all_that_there_is() -> None:
    workers = Workers(view_of(2, factor=2))
    add(workers, 100, "early", lives_us=50_000)
    workers.pass_epochs(3)
    workers.now += 2 * EPOCH_NS + EPOCH_NS // 2  # nobody has looked yet whether something has ended
    add(workers, 200, "late")
    assert seen(workers) == [None, {"late"}]
    workers.pass_epochs(5)
    assert seen(workers) == [{"late"}, {"late"}]
    workers.check()


def test_another_type_may_be_written_as_soon_as_the_time_is_over() -> None:
    workers = Workers(view_of(2, factor=2))
    add(workers, 100, "early", lives_us=50_000)
    workers.pass_epochs(3)
    workers.now += 2 * EPOCH_NS + EPOCH_NS // 2
    put = request(frames.PUT, KEY, register(b"v"), type=1, ack=1)
    (answer,) = workers.ask(200, put, connection=Connection())
    assert answer.status == frames.OK
    workers.pass_epochs(5)
    answers = [workers.ask(ids, request(frames.GET, KEY), connection=Connection())[0] for ids in workers.workers]
    assert [(answer.status, answer.payload[-1:]) for answer in answers] == [(frames.OK, b"v")] * 2
    workers.check()


def test_an_end_is_the_end_also_of_what_arrives_late() -> None:
    """A write that is older than the one that ended with the key, and was longer on its way."""
    workers = Workers(view_of(3, factor=3))
    workers.lose = lambda source, target, frame: source == 300
    add(workers, 300, "older")
    workers.pass_epochs(2)
    add(workers, 100, "early", lives_us=50_000)
    workers.pass_epochs(12)
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(60)
    assert seen(workers) == [None] * 3
    assert [len(worker.store) for worker in workers.workers.values()] == [0, 0, 0]
    workers.check()


def test_what_has_ended_is_forgotten_once_everybody_knows() -> None:
    workers = Workers(view_of(2, factor=2))
    add(workers, 100, "early", lives_us=50_000)
    workers.pass_epochs(60)
    assert [worker.store.ended for worker in workers.workers.values()] == [{}, {}]
    assert all(worker.replication.lives_prolonged == 0 for worker in workers.workers.values())


def test_who_keeps_a_set_alive_answers_those_who_ended_it_and_not_each_other() -> None:
    """Answers were answered, each epoch with twice as much, until a body was too long to be sent."""
    workers = Workers(view_of(3, factor=3))
    add(workers, 100, "early", lives_us=80_000)
    workers.pass_epochs(7)
    workers.lose = lambda source, target, frame: target == 100
    add(workers, 200, "late")
    workers.pass_epochs(4)
    assert seen(workers) == [None, {"early", "late"}, {"early", "late"}]
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(60)
    assert seen(workers) == [{"early", "late"}] * 3
    assert [worker.replication.lives_prolonged for worker in workers.workers.values()] == [1, 1, 1]
    workers.check()


def test_who_comes_back_without_the_write_that_ended_a_set_does_not_keep_it_alive() -> None:
    """It took the end for void, for it knew of no stable epoch; the others had the key back, without a time to live."""
    workers = Workers(view_of(3, factor=3))
    workers.workers[300].open_log(1)
    add(workers, 100, "early")
    workers.pass_epochs(5)
    ((_, logged),) = workers.workers[300].log_out()
    workers.stop(300)
    add(workers, 100, "later", lives_us=50_000)
    workers.pass_epochs(20)
    assert seen(workers) == [None, None]
    again = workers.replace(300)
    workers.workers[again].recover(logged)
    assert workers.workers[again].store.read(KEY) == Set({"early"})
    while not workers.workers[again].is_complete:
        workers.pass_epochs()
    assert seen(workers) == [None] * 3, "who is complete has heard of all ends"
    workers.pass_epochs(60)
    assert seen(workers) == [None] * 3
    workers.check()


def away_while_a_set_ends() -> Workers:
    """Two owners that call each other dead; what one then wrote to a set for 50 ms has ended all that it had of it."""
    workers = Workers(view_of(2, factor=2))
    add(workers, 100, "early")
    workers.pass_epochs(5)
    workers.lose = lambda source, target, frame: True
    workers.pass_epochs(450)
    add(workers, 100, "later", lives_us=50_000)
    workers.pass_epochs(20)
    assert seen(workers) == [None, {"early"}]
    return workers


def meet(workers: Workers) -> None:
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(800)
    assert all(worker.is_complete for worker in workers.workers.values())
    workers.check()


def test_what_ended_on_one_side_of_a_partition_ends_on_the_other() -> None:
    """The other took the end for void: what was stable there counted as heard, also from whom it had called dead."""
    workers = away_while_a_set_ends()
    meet(workers)
    assert seen(workers) == [None, None]


def test_what_was_written_on_the_other_side_of_a_partition_after_that_keeps_the_set_alive() -> None:
    workers = away_while_a_set_ends()
    add(workers, 200, "late")
    workers.pass_epochs(20)
    meet(workers)
    assert seen(workers) == [{"early", "late"}] * 2
