"""A worker of the memory tier whose memory is full: what it refuses, what it still does, and how it has room again."""

from __future__ import annotations

import msgpack
import pytest

from anna import Counter, ORSet, Set
from anna.config import MEMORY_KEY_BYTES, MEMORY_OBJECTS_FACTOR, MEMORY_STATE_BYTES
from anna.kvs.worker import Connection
from tests.anna.frames import DELETE, GET, MISSING, OK, PUT, Reply, items, multi_get, multi_put, put, register, request
from tests.anna.kvs.workers import Workers, view_of

OVERLOADED = 22
LIMIT_BYTES = 200_000
ENTRY_BYTES = MEMORY_KEY_BYTES + MEMORY_STATE_BYTES


def bounded(nodes: int = 1, factor: int = 1) -> Workers:
    workers = Workers(view_of(nodes, factor))
    for worker in workers.workers.values():
        worker.store.hold_at_most(LIMIT_BYTES)
    return workers


def ask(workers: Workers, data: bytes, ids: int = 100) -> Reply:
    (answer,) = workers.ask(ids, data, connection=Connection())
    return answer


def fill(workers: Workers, size: int = 1000) -> int:
    """Write until a write is refused; return how many were taken."""
    count = 0
    while ask(workers, put(b"k%d" % count, bytes(size), ack=1)).status == OK:
        count += 1
    return count


def test_writes_are_refused_for_sure_beyond_the_limit_and_reads_and_deletes_go_on() -> None:
    """P24: memory is not exhausted; what does not fit is refused before anything of it is done."""
    workers = bounded()
    count = fill(workers)
    assert count == LIMIT_BYTES // (1000 + ENTRY_BYTES + 19) + 1
    refused = ask(workers, put(b"more", b"v"))
    assert (refused.status, b"this worker may take 200,000" in refused.payload) == (OVERLOADED, True)
    assert ask(workers, request(GET, b"more")).status == MISSING
    assert ask(workers, put(b"k0", bytes(50_000))).status == OVERLOADED
    assert ask(workers, request(PUT, b"set", Set(["a"]).encode(), type=Set.NUMBER)).status == OVERLOADED
    several = ask(workers, multi_put((b"a", 1, register(b"1")), (b"b", 1, register(b"2"))))
    refusals = [(place, status) for place, status, _ in msgpack.unpackb(several.payload)]
    assert refusals == [(0, OVERLOADED), (1, OVERLOADED)]
    assert len(ask(workers, request(GET, b"k0")).payload) == 1000 + 17
    assert [status for status, _, _ in items(ask(workers, multi_get(b"k1", b"a")).payload)] == [OK, MISSING]
    for number in range(3):
        assert ask(workers, request(DELETE, b"k%d" % number)).status == OK
    assert ask(workers, put(b"more", b"v")).status == OK
    workers.check()


def test_a_worker_that_was_given_no_limit_refuses_nothing() -> None:
    workers = Workers(view_of(1))
    for number in range(2 * LIMIT_BYTES // 10_000):
        assert ask(workers, put(b"k%d" % number, bytes(10_000))).status == OK
    assert workers.workers[100].status()["memory_limit"] == 0


def test_the_account_counts_keys_and_objects_and_loses_nothing_when_all_is_deleted() -> None:
    """A short value costs a key all the same, and an element of a set is an object."""
    workers = bounded()
    store = workers.workers[100].store
    for number in range(40):
        assert ask(workers, put(b"r%02d" % number, b"")).status == OK
    assert store.taken_bytes == store.size_bytes + 40 * ENTRY_BYTES
    for state in (Set(["a"]), ORSet(["a" * 100]), Counter(3), Set(["b" * 500])):
        assert ask(workers, request(PUT, type(state).__name__.encode(), state.encode(), type=state.NUMBER)).status == OK
    sizes = sum(store.read(key).size_bytes for key in (b"Set", b"ORSet", b"Counter"))
    assert store.taken_bytes == store.size_bytes + 43 * ENTRY_BYTES + (MEMORY_OBJECTS_FACTOR - 1) * sizes
    for key in [*store.keys_now()]:
        assert ask(workers, request(DELETE, key)).status == OK
    workers.pass_epochs(5)
    assert store.taken_bytes == 0
    workers.check()


@pytest.mark.parametrize("size", [100, 100_000])
def test_what_another_owner_has_acknowledged_is_taken_all_the_same(size: int) -> None:
    """P24: to refuse it would leave the write with fewer copies than it was promised, and stop the epochs of all."""
    workers = bounded(2, factor=2)
    fill(workers, size)
    workers.workers[200].store.hold_at_most(2 * LIMIT_BYTES)
    assert ask(workers, put(b"other", bytes(size), ack=1), 200).status == OK
    workers.pass_epochs(5)
    assert len(ask(workers, request(GET, b"other")).payload) == size + 17
    assert workers.workers[100].replication.stable >= workers.workers[100].replication.epoch - 3
    workers.check()
