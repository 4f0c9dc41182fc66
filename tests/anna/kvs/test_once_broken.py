"""Promises that the store once broke, each as the least that showed it: deletes and answers while nodes are away."""

from __future__ import annotations

import struct

from anna import Set
from anna.kvs.worker import Connection
from anna.messages import NodeStatus
from tests.anna import frames
from tests.anna.frames import put, register, request
from tests.anna.kvs.workers import Workers, view_of


def status(workers: Workers, ids: int, data: bytes) -> int:
    (answer,) = workers.ask(ids, data, connection=Connection())
    return answer.status


def add(key: bytes, element: str) -> bytes:
    return request(frames.PUT, key, Set({element}).encode(), type=Set.NUMBER, ack=1)


def part(workers: Workers, *side: int) -> None:
    """Cut some workers off from the others, until each side calls the other dead."""
    workers.lose = lambda source, target, frame: (source in side) != (target in side)
    workers.pass_epochs(450)
    assert any(node.status == NodeStatus.DEAD for node in workers.workers[side[0]].view.nodes)


def meet(workers: Workers) -> None:
    """End the cut, and wait until all have the same view and all that they should have."""
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(800)
    assert len({worker.view.digest for worker in workers.workers.values()}) == 1
    assert all(worker.is_complete for worker in workers.workers.values())


def values(workers: Workers, key: bytes) -> list[object]:
    states = [worker.store.read(key) for worker in workers.workers.values()]
    return [None if state is None else state.value for state in states]


def test_what_a_worker_deleted_while_its_replicas_were_dead_does_not_come_back_with_them() -> None:
    """P23: a worker that is alone keeps no resets."""
    workers = Workers(view_of(2, factor=2))
    assert status(workers, 100, put(b"k", b"v", ack=1)) == frames.OK
    workers.pass_epochs(5)
    part(workers, 100)
    assert status(workers, 100, request(frames.DELETE, b"k", ack=1)) == frames.OK
    meet(workers)
    assert values(workers, b"k") == [None, None]


def test_what_took_the_place_of_a_single_copy_and_was_deleted_does_not_come_back() -> None:
    """P23: with one copy of each key, whoever takes over a dead node's keys keeps no resets either."""
    workers = Workers(view_of(2))
    key = next(b"%d" % n for n in range(100) if status(workers, 100, put(b"%d" % n, b"old", ack=1)) == frames.OK)
    workers.pass_epochs(5)
    part(workers, 100)
    assert status(workers, 200, put(key, b"newer", ack=1)) == frames.OK
    assert status(workers, 200, request(frames.DELETE, key, ack=1)) == frames.OK
    meet(workers)
    assert values(workers, key) == [None, None]


def test_a_write_after_a_delete_survives_it_when_both_sides_of_a_partition_have_closed_their_epochs() -> None:
    """P1: the delete is earlier by its stamp, and takes what the other side wrote later and has folded."""
    workers = Workers(view_of(4, factor=4))
    for ids in workers.workers:
        assert status(workers, ids, add(b"s", "old")) == frames.OK
    workers.pass_epochs(5)
    part(workers, 100, 200)
    assert status(workers, 100, request(frames.DELETE, b"s", ack=1)) == frames.OK
    workers.pass_epochs(20)
    assert status(workers, 300, add(b"s", "new")) == frames.OK
    workers.pass_epochs(50)
    meet(workers)
    held = values(workers, b"s")
    assert held == [held[0]] * 4
    assert held[0] is not None
    assert "new" in held[0]  # type: ignore[operator]


def wait_for_a_dead_node(ack: int) -> Workers:
    """Let a put and a get behind it wait for a node that dies in that moment."""
    workers = Workers(view_of(2, factor=2))
    workers.lose = lambda source, target, frame: True
    assert workers.ask(100, put(b"k", b"v", ack=ack, id=1), request(frames.GET, b"k", id=2)) == []
    workers.pass_epochs(1000)
    assert workers.workers[100].view.node(2).status == NodeStatus.DEAD
    return workers


def test_the_usual_answer_comes_when_there_is_no_second_owner_to_wait_for_any_more() -> None:
    """P10: of the default one copy is worth an answer by now."""
    assert [answer.request for answer in wait_for_a_dead_node(0).released(100)] == [1, 2]


def test_a_connection_ends_whose_writes_cannot_have_their_copies_any_more() -> None:
    """P10: nobody knows what becomes of the write, and what stands behind it need not wait."""
    workers = wait_for_a_dead_node(2)
    (answer,) = workers.released(100)
    assert (answer.status, answer.request) == (24, 0)
    assert b"1 owner of the key are left" in answer.payload
    assert workers.connections[100].failure is not None
    workers.check()


def test_a_connection_ends_on_which_more_waits_than_may() -> None:
    """P24: answers behind a write that waits were kept without bound."""
    workers = Workers(view_of(2, factor=2))
    connection = Connection()
    large = b"x" * 1_000_000
    workers.ask(100, put(b"large", large, ack=1))
    workers.ask(100, put(b"k", b"v", ack=2), connection=connection)
    for _ in range(150):
        workers.ask(100, request(frames.GET, b"large"), connection=connection)
        if connection.failure is not None:
            break
    assert connection.failure is not None
    assert "held_bytes_max" in connection.failure


def test_a_durable_write_that_changes_nothing_is_answered() -> None:
    """P10: a register that is older than the key's delete is dropped; nothing is logged, so nothing is waited for."""
    workers = Workers(view_of(1))
    worker = workers.workers[100]
    worker.open_log(1)

    def commit() -> None:
        for number, _ in worker.log_out():
            worker.logged(number, workers.now)

    workers.ask(100, put(b"k", b"v", ack=1))
    (deleted,) = workers.ask(100, request(frames.DELETE, b"k", ack=1))
    commit()
    late = request(frames.PUT, b"k", register(b"late", deleted.stamp - 1, 7), type=1, ack=255)
    answers = workers.ask(100, late)
    for _ in range(50):
        workers.pass_epochs(1)
        commit()
    assert [answer.status for answer in answers + workers.released(100)] == [frames.OK]


def test_a_time_to_live_that_one_replica_missed_reaches_it_by_repair() -> None:
    """A set that is as it was and is to live a minute from now on: the digests compare states without their times."""
    workers = Workers(view_of(2, factor=2))
    assert status(workers, 200, add(b"s", "a")) == frames.OK
    workers.pass_epochs(5)
    part(workers, 100)
    again = struct.pack("<Q", 60_000_000) + Set({"a"}).encode()
    assert status(workers, 100, request(frames.PUT, b"s", again, type=Set.NUMBER, flags=8, ack=1)) == frames.OK
    meet(workers)
    assert [worker.store.expiries.keys() for worker in workers.workers.values()] == [{b"s"}, {b"s"}]


def test_a_delete_is_remembered_until_the_log_of_a_replica_that_heard_of_it_late_has_it() -> None:
    """P23: a log with nothing to write said that it had the epoch; then came a delete of that epoch."""
    workers = Workers(view_of(2, factor=2))
    for worker in workers.workers.values():
        worker.open_log(1)
    durable = []

    def log(*ids: int) -> None:
        for worker in ids:
            for number, cells in workers.workers[worker].log_out():
                workers.workers[worker].logged(number, workers.now)
                durable.extend([cells] if worker == 200 else [])

    assert status(workers, 100, put(b"k", b"v", ack=1)) == frames.OK
    workers.pass_epochs(5)
    log(100, 200)
    workers.lose = lambda source, target, frame: source == 100
    assert status(workers, 100, request(frames.DELETE, b"k", ack=1)) == frames.OK
    workers.pass_epochs(5)
    log(100, 200)
    workers.lose = lambda source, target, frame: False
    for _ in range(100):
        workers.pass_epochs()
        log(100)
    workers.stop(200)
    again = workers.start(2, NodeStatus.ALIVE, generation=1)
    for cells in durable:
        workers.workers[again].recover(cells)
    assert workers.workers[again].store.read(b"k") is not None
    meet(workers)
    assert values(workers, b"k") == [None, None]
