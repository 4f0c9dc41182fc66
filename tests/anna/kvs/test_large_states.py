"""States that grow, write by write, to more than one frame may carry; and what a large one costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from anna import Set
from anna.config import VALUE_BYTES_MAX
from anna.kvs.worker import Connection
from tests.anna.frames import DELETE, GET, OK, PUT, SUBSCRIBE, TOO_LARGE, Reply, replies, request
from tests.anna.kvs.workers import Workers, view_of

ELEMENT_BYTES = 1_000_000
MEMORY = 1


def part(numbers: Iterable[int]) -> bytes:
    """Return a set of one megabyte for each number."""
    return Set(number.to_bytes(2) * (ELEMENT_BYTES // 2) for number in numbers).encode()


def add(numbers: Iterable[int], ack: int = MEMORY) -> bytes:
    return request(PUT, b"k", part(numbers), type=Set.NUMBER, ack=ack)


def ask(workers: Workers, ids: int, data: bytes) -> Reply:
    (answer,) = workers.ask(ids, data, connection=Connection())
    return answer


def held(workers: Workers, ids: int) -> int:
    return len(workers.workers[ids].store.read(b"k"))


def test_a_write_that_would_let_a_state_grow_beyond_what_one_frame_carries_is_refused() -> None:
    """Two writes of one epoch are one delta, and each state is one cell: both have to fit into a message."""
    workers = Workers(view_of(2, factor=2))
    assert ask(workers, 100, add(range(40))).status == OK
    refused = ask(workers, 100, add(range(40, 80)))
    assert (refused.status, f"value_bytes_max is {VALUE_BYTES_MAX:,}".encode() in refused.payload) == (TOO_LARGE, True)
    assert held(workers, 100) == 40
    assert ask(workers, 100, add(range(30, 45))).status == OK
    assert ask(workers, 100, add(range(45))).status == OK, "nothing grows by what is there already"
    workers.pass_epochs(20)
    assert (held(workers, 100), held(workers, 200)) == (45, 45)
    workers.check()


def test_what_two_owners_took_apart_and_is_too_long_together_is_exchanged_and_whoever_asks_is_told() -> None:
    workers = Workers(view_of(2, factor=2))
    watcher = Connection()
    workers.ask(100, request(SUBSCRIBE, b"k"), connection=watcher)
    workers.lose = lambda source, target, frame: True
    assert ask(workers, 100, add(range(40))).status == OK
    assert ask(workers, 200, add(range(40, 80))).status == OK
    workers.pass_epochs(3)
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(150)
    assert (held(workers, 100), held(workers, 200)) == (80, 80)
    for worker in workers.workers.values():
        worker.replication.compare_again()
    workers.stop(200)
    ids = workers.start(3)
    workers.pass_epochs(500)
    assert held(workers, ids) == 80
    answer = ask(workers, 100, request(GET, b"k"))
    assert (answer.status, b"a frame carries 67,108,864" in answer.payload) == (TOO_LARGE, True)
    told = replies([data for _, connection, data in workers.pushed if connection is watcher][-1])
    assert [(reply.flags, reply.request, reply.status) for reply in told] == [(0, 0, TOO_LARGE)]
    assert watcher.failure == "b'k' has grown longer than a frame"
    assert ask(workers, 100, request(DELETE, b"k", ack=MEMORY)).status == OK
    workers.check()


@pytest.mark.parametrize("copied", [False, True])
def test_a_set_of_many_is_not_put_in_order_again_for_each_who_is_told_of_it(copied: bool) -> None:
    """A million elements took 0.7 s to order, and nobody was served meanwhile: once for each peer, log and reader."""
    encoded = Set(range(100_000)).encode()
    state = Set.decode(encoded)
    assert (state.copy() if copied else state).encode() is encoded
    grown = state.copy()
    grown.merge(Set(["new"]))
    assert len(grown.encode()) > len(encoded)
    assert grown.encode() is grown.encode()


def test_long_elements_are_not_kept_twice() -> None:
    state = Set.decode(part(range(3)))
    assert state.encode() is not state.encode()


def test_what_a_connection_is_told_before_it_ends_is_no_push_whatever_the_view() -> None:
    """The mark of a view stands in the flags of answers, where a push has its number."""
    marks, worker = set(), Workers(view_of(1)).workers[100]
    for stamp in range(2, 2000):
        worker.adopt(replace(worker.view, version=stamp, factor_stamp=stamp))
        marks.add(worker.view.mark)
        (said,) = replies(worker.receive(Connection(), bytes(24), 10**10))
        assert (said.request, said.flags) == (0, 0)
    assert 5 in marks, "none of these views would have been mistaken"
