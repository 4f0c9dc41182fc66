"""Transactions that delete keys, or write what lives for a while: as decision 0014 has it, at the commit's stamp."""

from __future__ import annotations

import struct

import pytest

from anna.commits import DELETES, EXPIRES, Verdict, Write
from anna.config import EPOCH_US
from anna.kvs.worker import Connection
from anna.lattices import Counter, ORSet, Set
from tests.anna.frames import MISSING, put, request
from tests.anna.kvs.coordinators import SILENT_EPOCHS, Coordinator, lww, prepared, spread_keys, value
from tests.anna.kvs.test_epochs import begun, get_at
from tests.anna.kvs.workers import Workers, view_of

TYPES = [Set({1}), Counter(+5), ORSet({"x"})]


def gone(key: bytes) -> Write:
    return Write(key, 0, b"", DELETES)


def living(key: bytes, state: bytes, us: int, type: int = 1, flags: int = 0) -> Write:
    return Write(key, type, struct.pack("<Q", us) + state, flags | EXPIRES)


def everywhere(workers: Workers, key: bytes) -> set[object]:
    """Return what the owners hold of a key, None for nothing."""
    found = [worker.store.read(key) for worker in workers.workers.values()]
    return {None if state is None else repr(state.value) for state in found}


@pytest.mark.parametrize("held", [None, *TYPES], ids=lambda state: type(state).__name__)
def test_a_delete_is_seen_with_the_other_writes_or_not_at_all(held: Set | None) -> None:
    workers = begun(Workers(view_of(2, factor=2)))
    old, new = spread_keys(workers)
    if held is None:
        workers.write(lambda: put(old, b"before", ack=1))
    else:
        workers.write(lambda: request(2, old, held.encode(), type=held.NUMBER, ack=1))
    workers.pass_epochs(5)
    coordinator = Coordinator(workers, [gone(old), Write(new, 1, lww(b"instead"))])
    coordinator.prepare()
    workers.pass_epochs(2)
    assert workers.read(old).status != MISSING, "what is prepared is nobody's to see"
    coordinator.send(coordinator.commit.ending())
    workers.pass_epochs(5)
    at = coordinator.commit.stamp // (EPOCH_US << 10)
    for ids in workers.workers:
        before = [get_at(workers, ids, key, at - 1).status == MISSING for key in (old, new)]
        after = [get_at(workers, ids, key, at).status == MISSING for key in (old, new)]
        assert (before, after) == ([False, True], [True, False])
    assert everywhere(workers, old) == {None}
    workers.check()


@pytest.mark.parametrize("state", TYPES, ids=lambda state: type(state).__name__)
def test_a_key_that_is_deleted_and_written_holds_what_was_written_alone(state: Set) -> None:
    """Whatever type it had."""
    workers = Workers(view_of(2, factor=2))
    first, second = spread_keys(workers)
    more = type(state).decode(state.encode())
    workers.write(lambda: request(2, first, ORSet({"old"}).encode(), type=ORSet.NUMBER, ack=1))
    workers.write(lambda: request(2, second, state.encode(), type=state.NUMBER, ack=1))
    workers.pass_epochs(3)
    writes = [Write(key, state.NUMBER, more.encode(), DELETES) for key in (first, second)]
    assert Coordinator(workers, writes).run() is Verdict.COMMITTED
    workers.pass_epochs(5)
    assert everywhere(workers, first) == everywhere(workers, second) == {repr(more.value)}
    workers.check()


@pytest.mark.parametrize("nodes", [1, 2])
def test_what_was_written_later_stays_also_where_it_arrives_first(nodes: int) -> None:
    workers = Workers(view_of(nodes, factor=nodes))
    for key, state in ((b"r", None), (b"s", Set({"old"}))):
        data = put(key, b"old", ack=1) if state is None else request(2, key, state.encode(), type=Set.NUMBER, ack=1)
        workers.write(lambda data=data: data)  # type: ignore[misc]
    workers.pass_epochs(3)
    coordinator = Coordinator(workers, [gone(b"r"), gone(b"s")])
    coordinator.prepare()
    workers.pass_epochs(2)
    workers.write(lambda: put(b"r", b"later", ack=1))
    workers.write(lambda: request(2, b"s", Set({"later"}).encode(), type=Set.NUMBER, ack=1))
    workers.pass_epochs(2)
    coordinator.send(coordinator.commit.ending())
    workers.pass_epochs(5)
    assert value(workers, b"r") == b"later"
    assert everywhere(workers, b"s") == {repr(frozenset({"later"}))} or everywhere(workers, b"s") == {repr({"later"})}
    workers.check()


def test_a_retry_of_a_delete_takes_nothing_that_was_written_since() -> None:
    workers = Workers(view_of(3, factor=2))
    first, second = spread_keys(workers)
    writes = [gone(first), Write(second, 1, lww(b"v"))]
    assert Coordinator(workers, writes, guarded=True).run() is Verdict.COMMITTED
    workers.pass_epochs(3)
    workers.write(lambda: put(first, b"since", ack=1))
    workers.pass_epochs(3)
    assert Coordinator(workers, writes, nonce=50, guarded=True).run() is Verdict.COMMITTED
    workers.pass_epochs(3)
    assert (value(workers, first), value(workers, second)) == (b"since", b"v")


def test_a_delete_is_finished_by_its_owners_and_comes_back_from_no_replica() -> None:
    workers = Workers(view_of(3, factor=2))
    first, second = spread_keys(workers)
    workers.write(lambda: put(first, b"before", ack=1))
    workers.pass_epochs(3)
    coordinator = Coordinator(workers, [gone(first), Write(second, 1, lww(b"v"))])
    coordinator.prepare()
    dead = coordinator.owner(first)
    workers.stop(dead)
    workers.pass_epochs(600)
    assert prepared(workers) == [0, 0]
    assert everywhere(workers, first) == {None}
    assert value(workers, second) == b"v"
    workers.check()


@pytest.mark.parametrize("state", [None, *TYPES], ids=lambda state: type(state).__name__)
def test_a_time_to_live_counts_from_the_commit(state: Set | None) -> None:
    workers = Workers(view_of(2, factor=2))
    encoded, number = (lww(b"v"), 1) if state is None else (state.encode(), state.NUMBER)
    coordinator = Coordinator(workers, [living(b"k", encoded, 500_000, number), Write(b"other", 1, lww(b"stays"))])
    coordinator.prepare()
    coordinator.send(coordinator.commit.ending())
    ends_us = (coordinator.commit.stamp >> 10) + 500_000
    for worker in workers.workers.values():
        assert worker.store.expiry_of(b"k") == ends_us
    workers.pass_epochs(45)
    assert workers.read(b"k").status != MISSING
    workers.pass_epochs(15)
    assert everywhere(workers, b"k") == {None}
    assert value(workers, b"other") == b"stays"
    workers.check()


def test_a_later_write_without_a_time_lives_for_ever() -> None:
    workers = Workers(view_of(2, factor=2))
    assert Coordinator(workers, [living(b"k", lww(b"short"), 200_000)]).run() is Verdict.COMMITTED
    assert Coordinator(workers, [Write(b"k", 1, lww(b"long"))], b"another, later  ").run() is Verdict.COMMITTED
    workers.pass_epochs(60)
    assert value(workers, b"k") == b"long"


def test_what_a_log_has_of_deletes_and_times_comes_back() -> None:
    workers = Workers(view_of(1))
    worker = workers.workers[100]
    worker.open_log(1)
    workers.write(lambda: put(b"a", b"before", ack=1))
    workers.pass_epochs(2)
    coordinator = Coordinator(workers, [gone(b"a"), living(b"b", lww(b"v"), 300_000)], guarded=True)
    coordinator.prepare()
    logged = [cells for _, cells in worker.log_out()]
    again = Workers(view_of(1))
    for cells in logged:
        again.workers[100].recover(cells)
    assert prepared(again) == [1]
    assert value(again, b"a") == b"before"
    again.pass_epochs(SILENT_EPOCHS)
    assert prepared(again) == [0]
    assert value(again, b"a") is None
    assert again.workers[100].store.expiry_of(b"b") or value(again, b"b") is None
    again.check()


def test_subscribers_hear_of_a_delete() -> None:
    workers = Workers(view_of(1))
    workers.write(lambda: put(b"k", b"before", ack=1))
    listener = Connection()
    workers.ask(100, request(8, b"k"), connection=listener)
    workers.pass_epochs(2)
    workers.pushed.clear()
    assert Coordinator(workers, [gone(b"k")]).run() is Verdict.COMMITTED
    workers.pass_epochs(3)
    assert [ids for ids, connection, _ in workers.pushed if connection is listener] == [100]
