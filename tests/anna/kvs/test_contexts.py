"""What a key with a past costs: contexts and counts grow with the writers that there were, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from anna import Causal, Counter, Lattice, ORSet
from anna.messages import NodeStatus
from tests.anna import frames
from tests.anna.frames import request
from tests.anna.kvs.workers import Workers, view_of

CYCLES = 10_000
KEY = b"k"


def write(workers: Workers, ids: int, state: Lattice) -> None:
    (answer,) = workers.ask(ids, request(frames.PUT, KEY, state.encode(), type=state.NUMBER, ack=1))
    assert answer.status == frames.OK


def states(workers: Workers) -> list[Lattice]:
    found = [worker.store.read(KEY) for worker in workers.workers.values()]
    return [state for state in found if state is not None]


def size(workers: Workers) -> int:
    """Return how many bytes the key's state has, once all owners have the same."""
    workers.pass_epochs(10)
    (encoded,) = {state.encode() for state in states(workers)}
    return len(encoded)


def come_and_go(workers: Workers, ids: int, turn: int) -> None:
    write(workers, ids, ORSet(add={turn}))
    write(workers, ids, ORSet(remove={turn}))


def count_up_and_down(workers: Workers, ids: int, turn: int) -> None:
    write(workers, ids, Counter(+1))
    write(workers, ids, Counter(-1))


def write_after_reading(workers: Workers, ids: int, turn: int) -> None:
    write(workers, ids, Causal(b"value", after=workers.workers[ids].store.read(KEY)))


CHANGES = pytest.mark.parametrize(
    ("change", "writer_bytes"),
    [(come_and_go, 24), (count_up_and_down, 32), (write_after_reading, 24)],
    ids=["ORSet", "Counter", "Causal"],
)
Change = Callable[[Workers, int, int], None]


@CHANGES
def test_ten_thousand_changes_by_two_owners_cost_what_ten_do(change: Change, writer_bytes: int) -> None:
    workers = Workers(view_of(2, factor=2))
    sizes = {}
    for turn in range(CYCLES):
        change(workers, (100, 200)[turn % 2], turn)
        if turn % 100 == 9:
            workers.pass_epochs(2)
        if turn in (9, CYCLES - 1):
            # Whoever reads all that was written concurrently and writes again makes one version of it.
            workers.pass_epochs(5)
            change(workers, 100, turn)
            sizes[turn] = size(workers)
    # Numbers of four bytes instead of one may have come, and no more.
    assert sizes[CYCLES - 1] - sizes[9] <= 16
    workers.check()


@CHANGES
def test_each_incarnation_that_wrote_leaves_one_row_and_one_that_did_not_leaves_none(
    change: Change, writer_bytes: int
) -> None:
    workers = Workers(view_of(2, factor=2))
    change(workers, 100, 0)
    workers.pass_epochs(5)
    change(workers, 100, 1)
    last, sizes = 200, []
    for generation in range(1, 9):
        workers.stop(last)
        last = workers.start(2, NodeStatus.ALIVE, generation=generation)
        workers.pass_epochs(60)
        if generation % 2:
            for turn in range(3):
                change(workers, last, turn)
        sizes.append(size(workers))
    grown = [after - before for before, after in pairwise(sizes)]
    assert grown == [0, writer_bytes] * 3 + [0]


def test_a_delete_of_the_key_takes_its_context_along() -> None:
    workers = Workers(view_of(2, factor=2))
    for turn in range(100):
        come_and_go(workers, (100, 200)[turn % 2], turn)
        workers.pass_epochs(2)
    workers.ask(100, request(frames.DELETE, KEY, ack=1))
    workers.pass_epochs(10)
    assert states(workers) == []
    come_and_go(workers, 100, 0)
    (context,) = {state.dots.intervals for state in states(workers)}
    assert [writer for writer, _, _ in context] == [100]
