"""Nodes that join, leave, crash and come back: no key is lost, and none that exists is ever called missing."""

from __future__ import annotations

from itertools import count

import msgpack
import pytest

from anna import LWW, Set, wire
from anna.kvs.worker import Connection
from anna.messages import NodeStatus
from tests.anna import frames
from tests.anna.frames import put, request
from tests.anna.kvs.workers import Workers, view_of

KEYS = [b"key-%05d" % n for n in range(3000)]


def fill(workers: Workers, keys: list[bytes] = KEYS, value: bytes = b"v") -> None:
    for key in keys:
        assert workers.write(lambda key=key: put(key, value, ack=1)).status == frames.OK


def read_all(workers: Workers, keys: list[bytes] = KEYS) -> dict[bytes, int]:
    """Return {key: status} of every key that is not read as it should be."""
    return {key: answer.status for key in keys if (answer := workers.read(key)).status != frames.OK}


def settle(workers: Workers, epochs: int = 400) -> None:
    """Let the workers come to rest: one view, all complete."""
    for _ in range(epochs):
        workers.pass_epochs(1)
        views = {worker.view.digest for worker in workers.workers.values()}
        if len(views) == 1 and all(w.is_complete and w.membership.all_complete for w in workers.workers.values()):
            workers.pass_epochs(5)
            return
    raise AssertionError({ids: (w.view.version, w.is_complete) for ids, w in workers.workers.items()})


def copies(workers: Workers, key: bytes) -> int:
    return sum(worker.store.read(key) is not None for worker in workers.workers.values())


def scan(workers: Workers, worker: int, limit: int) -> tuple[list[bytes], bool]:
    """Return a worker's first page of all keys, and whether there are more."""
    (answer,) = workers.ask(worker, request(wire.SCAN, payload=limit.to_bytes(4, "little")), connection=Connection())
    assert answer.status == frames.OK
    keys, more = msgpack.unpackb(answer.payload)
    return keys, more


@pytest.mark.parametrize("limit", [1, 1000])
def test_a_scan_does_not_tell_of_what_a_move_left_behind(limit: int) -> None:
    """What was a worker's and came late is not told of its end: a key that had expired was listed by it for ever."""
    workers = Workers(view_of(2))
    fill(workers, KEYS[:20])
    one, other = workers.workers.values()
    theirs = sorted(key for key in KEYS[:20] if other.store.read(key) is not None)
    mine = sorted(key for key in KEYS[:20] if one.store.read(key) is not None)
    assert min(theirs) < max(mine)
    for key in theirs:
        one.store.write(key, LWW(1, 1, 0))
    keys, more = scan(workers, one.worker_id, limit)
    assert (keys, more) == (mine[:limit], limit == 1)


def test_a_node_that_joins_takes_its_share_and_no_key_is_missing_meanwhile() -> None:
    """D10, D11: a move of more than 50 keys never ended, and keys on the move were answered as missing."""
    workers = Workers(view_of(2))
    fill(workers)
    joined = workers.start(3)
    for _ in range(300):
        workers.pass_epochs(1)
        assert read_all(workers, KEYS[::37]) == {}
        status = workers.workers[joined].view.node(3).status
        if status == NodeStatus.ALIVE and workers.workers[joined].is_complete:
            break
    assert status == NodeStatus.ALIVE
    settle(workers)
    assert read_all(workers) == {}
    share = len(workers.workers[joined].store)
    assert 500 < share < 1500
    assert sum(len(worker.store) for worker in workers.workers.values()) == len(KEYS), "keys that moved are dropped"
    workers.check()


def test_writes_to_the_old_owner_reach_the_new_one() -> None:
    workers = Workers(view_of(1))
    fill(workers)
    joined = workers.start(2)
    for number in range(60):
        workers.pass_epochs(1)
        fill(workers, KEYS[number::60], b"w%d" % number)
    settle(workers)
    assert len(workers.workers[joined].store) > 500
    for number in range(60):
        for key in KEYS[number::60]:
            assert workers.read(key).payload.endswith(b"\x06w%d" % number)


def commit(workers: Workers, ids: int) -> None:
    """Let what a worker wants to be durable be so."""
    for number, _ in workers.workers[ids].log_out():
        workers.workers[ids].logged(number, workers.now)


def handed_to_a_log() -> tuple[Workers, int]:
    """A node with a log has joined another, and has its share of the keys, in memory."""
    workers = Workers(view_of(1))
    workers.workers[100].open_log(1)
    fill(workers, KEYS[:300])
    commit(workers, 100)
    joined = workers.start(2)
    workers.workers[joined].open_log(1)
    settle(workers)
    workers.pass_epochs(100)
    assert len(workers.workers[joined].store) > 50
    return workers, joined


def test_a_key_stays_with_its_old_owner_until_the_disk_of_the_new_one_has_it() -> None:
    workers, joined = handed_to_a_log()
    assert len(workers.workers[100].store) == 300
    commit(workers, joined)
    workers.pass_epochs(100)
    assert len(workers.workers[100].store) == 300 - len(workers.workers[joined].store)


def test_what_was_durable_and_had_moved_survives_the_new_owner_before_that_has_written_it() -> None:
    """P2: the old owner dropped it as soon as the new one had it in memory."""
    workers, joined = handed_to_a_log()
    workers.stop(joined)
    again = workers.replace(joined)
    workers.workers[again].open_log(1)
    settle(workers)
    assert read_all(workers, KEYS[:300]) == {}


def test_a_node_leaves_only_when_the_disks_of_the_others_have_its_keys() -> None:
    workers, joined = handed_to_a_log()
    commit(workers, joined)
    workers.pass_epochs(100)
    workers.workers[100].depart()
    workers.pass_epochs(200)
    assert not workers.workers[100].has_left
    commit(workers, joined)
    workers.pass_epochs(200)
    assert workers.workers[100].has_left


def test_a_node_that_leaves_is_gone_only_when_its_keys_are_elsewhere() -> None:
    workers = Workers(view_of(3))
    fill(workers)
    workers.workers[200].depart()
    for _ in range(300):
        workers.pass_epochs(1)
        assert read_all(workers, KEYS[::37]) == {}
        if workers.workers[200].has_left:
            break
    assert workers.workers[200].has_left
    workers.stop(200)
    settle(workers)
    assert read_all(workers) == {}
    workers.check()


def test_what_a_leaving_node_took_to_the_last_is_not_lost() -> None:
    """It says that it has left only when its last write has arrived; before, it ended with what it had not sent yet."""
    workers = Workers(view_of(2))
    fill(workers)
    leaving = workers.workers[200]
    links_of_leaving = count()
    workers.lose = lambda source, target, frame: source == 200 and frame[6] == 1 and next(links_of_leaving) % 3 > 0
    mine = [key for key in KEYS if workers.ask(200, request(frames.GET, key))[0].status == frames.OK]
    leaving.depart()
    taken: dict[bytes, bytes] = {}
    for number, key in enumerate(mine):
        value = b"w%d" % number
        if workers.ask(200, put(key, value, ack=1))[0].status == frames.OK:
            taken[key] = value
        workers.pass_epochs(1)
        if leaving.has_left:
            break
    assert leaving.has_left
    assert len(taken) > 5
    workers.stop(200)
    settle(workers)
    assert [key for key, value in taken.items() if not workers.read(key).payload.endswith(b"\x06" + value)] == []


def test_a_crash_is_noticed_and_the_copies_are_made_up_for() -> None:
    """D15: nobody noticed that a node was gone, and its copies were not replaced."""
    workers = Workers(view_of(3, factor=2))
    fill(workers)
    workers.pass_epochs(5)
    workers.stop(200)
    assert read_all(workers) == {}
    workers.pass_epochs(350)
    settle(workers)
    assert all(worker.view.node(2).status == NodeStatus.DEAD for worker in workers.workers.values())
    assert {copies(workers, key) for key in KEYS} == {2}
    assert read_all(workers) == {}
    workers.check()


def test_both_sides_of_a_partition_go_on_and_are_one_again_afterwards() -> None:
    workers = Workers(view_of(3, factor=2))
    fill(workers)
    workers.pass_epochs(5)
    workers.lose = lambda source, target, frame: (source == 300) != (target == 300)
    workers.pass_epochs(400)
    assert workers.workers[300].view.node(1).status == NodeStatus.DEAD
    for side, value in ((300, b"one side"), (100, b"the other")):
        key = b"only-" + value
        for ids in workers.workers:
            if (ids == 300) == (side == 300):
                workers.ask(ids, put(key, value, ack=1))
                workers.ask(ids, request(frames.PUT, b"both", Set({value}).encode(), type=Set.NUMBER, ack=1))
    workers.pass_epochs(3)
    workers.lose = lambda source, target, frame: False
    settle(workers, 800)
    assert workers.read(b"only-one side").payload.endswith(b"one side")
    assert workers.read(b"only-the other").payload.endswith(b"the other")
    held = [worker.store.read(b"both") for worker in workers.workers.values() if worker.store.read(b"both")]
    assert [state.value for state in held] == [{b"one side", b"the other"}] * 2
    assert read_all(workers) == {}
    workers.check()


def test_a_key_deleted_while_a_replica_was_away_does_not_come_back_with_it() -> None:
    workers = Workers(view_of(3, factor=2))
    fill(workers, KEYS[:300])
    workers.pass_epochs(5)
    workers.lose = lambda source, target, frame: 200 in (source, target)
    workers.pass_epochs(400)
    for key in KEYS[:300]:
        for ids in (100, 300):
            workers.ask(ids, request(frames.DELETE, key, ack=1))
    workers.pass_epochs(50)
    workers.lose = lambda source, target, frame: False
    settle(workers, 800)
    assert {copies(workers, key) for key in KEYS[:300]} == {0}
    assert {workers.read(key).status for key in KEYS[:300]} == {frames.MISSING}
    workers.check()


def test_what_was_written_after_a_delete_moves_without_what_it_deleted() -> None:
    """An owner that lacked a delete sent old and new as one state, and who knew of the delete took both back."""
    workers = Workers(view_of(3, factor=3))

    def add(ids: int, element: str, stamp: int = 0) -> int:
        state = Set({element}).encode()
        (answer,) = workers.ask(ids, request(frames.PUT, b"s", state, type=Set.NUMBER, ack=1, stamp=stamp))
        return answer.stamp

    workers.lose = lambda source, target, frame: (source, target) == (300, 200)
    add(200, "old")
    workers.pass_epochs(3)
    (deleted,) = workers.ask(300, request(frames.DELETE, b"s", ack=1))
    add(200, "new", deleted.stamp)
    workers.pass_epochs(3)
    workers.start(4)
    workers.pass_epochs(60)
    workers.lose = lambda source, target, frame: False
    settle(workers)
    states = [worker.store.read(b"s") for worker in workers.workers.values()]
    assert [state.value for state in states if state is not None] == [{"new"}] * 3


def test_a_node_that_dies_in_the_middle_of_its_joining_takes_nothing_with_it() -> None:
    workers = Workers(view_of(2))
    fill(workers)
    joined = workers.start(3)
    workers.pass_epochs(4)
    workers.stop(joined)
    workers.pass_epochs(400)
    settle(workers)
    assert read_all(workers) == {}
    assert sum(len(worker.store) for worker in workers.workers.values()) == len(KEYS)


def test_a_restarted_worker_without_its_memory_gets_its_keys_back_from_their_other_owners() -> None:
    workers = Workers(view_of(3, factor=2))
    fill(workers)
    workers.pass_epochs(5)
    workers.stop(200)
    again = workers.start(2, NodeStatus.ALIVE, generation=1)
    for _ in range(100):
        workers.pass_epochs(1)
        assert read_all(workers, KEYS[::37]) == {}
    settle(workers)
    assert len(workers.workers[again].store) > 1000
    assert {copies(workers, key) for key in KEYS} == {2}


@pytest.mark.parametrize("lost", [100, 300])
def test_two_owners_that_both_take_writes_lose_nothing_when_a_third_node_dies(lost: int) -> None:
    workers = Workers(view_of(3, factor=3))
    for number in range(50):
        for ids in workers.workers:
            element = f"{ids}-{number}"
            workers.ask(ids, request(frames.PUT, b"s", Set({element}).encode(), type=Set.NUMBER, ack=1))
        workers.pass_epochs(1)
    workers.stop(lost)
    workers.pass_epochs(400)
    settle(workers)
    values = [worker.store.read(b"s").value for worker in workers.workers.values()]
    assert values[0] == values[1]
    assert len(values[0]) == 150
