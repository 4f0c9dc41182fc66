"""Keys that are given more copies, fewer, or others: while the copies move, no key that exists is called missing."""

from __future__ import annotations

import random
from dataclasses import replace

import msgpack
import pytest

from anna import Set
from anna.kvs.clock import Clock
from anna.kvs.worker import Connection, Worker
from anna.messages import ALIVE, DEAD, View
from anna.routing.hash import key_hash
from anna.routing.placement import Placement
from anna.vectors import DEFAULT, Vector, Vectors, change_to_wire
from tests.anna import frames
from tests.anna.frames import Reply, multi_put, put, register, replies, request
from tests.anna.kvs.test_moves import copies, fill, read_all, settle
from tests.anna.kvs.workers import WALL_US, Workers, view_of

KEYS = [b"key-%04d" % n for n in range(300)]
HOT = KEYS[::10]
REPLICATE = 13
UNAVAILABLE = 23


def tiered(memory: int, disk: int, factor: int = 1, disk_factor: int = 0) -> View:
    """Return a view of so many nodes of each tier, one worker each; ids are 100 · node, memory first."""
    view = view_of(memory + disk, factor)
    nodes = tuple(replace(n, tier="memory" if n.node_id <= memory else "disk") for n in view.nodes)
    return replace(view, nodes=nodes, vectors=Vectors(disk_factor))


def give(workers: Workers, keys: list[bytes], vector: Vector, at: int = 100) -> Reply:
    """Ask one worker to give keys a vector."""
    (answer,) = workers.ask(at, request(REPLICATE, payload=change_to_wire(keys, vector)), connection=Connection())
    return answer


def holders(workers: Workers, key: bytes) -> set[int]:
    """Return the workers that have a key in their store."""
    return {ids for ids, worker in workers.workers.items() if worker.store.read(key) is not None}


def owners_in_order(workers: Workers, key: bytes) -> list[int]:
    """Return the ids of the workers that answer for a key, the first owner first."""
    view = next(iter(workers.workers.values())).view
    return [view.workers[place].worker_id for place in Placement(view).owners_of(key)]


def owners_first(workers: Workers, key: bytes) -> int:
    """Return the id of a key's first owner."""
    return owners_in_order(workers, key)[0]


def settle_and_read(workers: Workers, keys: list[bytes], epochs: int = 400) -> None:
    """Let the copies move, and see that every key is read meanwhile at its first attempt, each epoch."""
    for _ in range(epochs):
        workers.pass_epochs(1)
        assert read_all(workers, keys) == {}
        views = [worker.view for worker in workers.workers.values()]
        if len({view.digest for view in views}) == 1 and not views[0].in_motion:
            settle(workers)
            return
    raise AssertionError("the copies move without end")


def test_a_key_that_is_given_more_copies_has_them_and_each_is_read() -> None:
    workers = Workers(view_of(3))
    fill(workers, KEYS)
    answer = give(workers, HOT, Vector(3))
    assert answer.status == frames.OK
    assert View.from_wire(msgpack.unpackb(answer.payload)) == workers.workers[100].view
    settle_and_read(workers, KEYS)
    assert {copies(workers, key) for key in HOT} == {3}
    assert {copies(workers, key) for key in KEYS if key not in HOT} == {1}
    for key in HOT:
        assert {workers.ask(ids, request(frames.GET, key))[0].status for ids in workers.workers} == {frames.OK}
    workers.check()


def test_writes_reach_all_copies_that_a_key_was_given() -> None:
    workers = Workers(view_of(3))
    give(workers, HOT, Vector(3))
    fill(workers, HOT, b"while they move")
    settle(workers)
    fill(workers, HOT[:5], b"after")
    workers.pass_epochs(3)
    for key in HOT:
        value = b"\x06after" if key in HOT[:5] else b"\x06while they move"
        assert {w.store.read(key).payload for w in workers.workers.values()} == {value}


def test_a_key_that_is_given_fewer_copies_is_dropped_elsewhere_when_the_others_have_it() -> None:
    workers = Workers(view_of(3, factor=3))
    fill(workers, KEYS)
    workers.pass_epochs(3)
    assert give(workers, HOT, Vector(1)).status == frames.OK
    settle_and_read(workers, KEYS)
    workers.pass_epochs(20)
    assert {copies(workers, key) for key in HOT} == {1}
    assert {copies(workers, key) for key in KEYS if key not in HOT} == {3}
    workers.check()


def test_what_an_owner_took_before_it_was_dismissed_is_not_lost() -> None:
    workers = Workers(view_of(3, factor=3))
    for number, key in enumerate(HOT):
        for ids in workers.workers:
            state = Set({f"{ids}-{number}"}).encode()
            workers.ask(ids, request(frames.PUT, key, state, type=Set.NUMBER, ack=1))
    give(workers, HOT, Vector(1), at=300)
    settle(workers)
    workers.pass_epochs(20)
    for number, key in enumerate(HOT):
        (holder,) = holders(workers, key)
        assert workers.workers[holder].store.read(key).value == {f"{ids}-{number}" for ids in (100, 200, 300)}


def test_a_copy_that_is_to_be_dropped_makes_no_write_safer() -> None:
    """While three copies become one, two owners get what is written as ever, but nobody is told of more than one."""
    workers = Workers(view_of(3, factor=3))
    key = HOT[0]

    def replicas(data: bytes) -> int:
        """How many copies an owner says there are, once it answers: not before another owner has the write, too."""
        assert workers.ask(100, data) == []
        workers.deliver()
        (answer,) = workers.released(100)
        assert answer.status == frames.OK
        return answer.type + 1

    batch = multi_put((key, 1, register(b"in a batch")))
    assert (replicas(put(key, b"before")), replicas(batch)) == (2, 2)
    give(workers, HOT, Vector(1))
    assert workers.workers[100].view.vectors.moving
    assert (replicas(put(key, b"usual")), replicas(batch)) == (1, 1)
    (refused,) = workers.ask(100, put(key, b"two", ack=2))
    assert (refused.status, refused.payload) == (UNAVAILABLE, b"ack=2 asks for 2 copies; the key has 1 owner now")


def test_a_key_that_has_the_default_again_is_as_before() -> None:
    workers = Workers(view_of(3))
    fill(workers, KEYS)
    before = {key: holders(workers, key) for key in KEYS}
    give(workers, HOT, Vector(3))
    settle(workers)
    give(workers, HOT, DEFAULT, at=200)
    settle_and_read(workers, KEYS)
    workers.pass_epochs(20)
    assert {key: holders(workers, key) for key in KEYS} == before
    assert {worker.status()["own_vectors"] for worker in workers.workers.values()} == {0}


def test_a_move_that_is_changed_in_the_middle_ends_where_the_last_one_said() -> None:
    workers = Workers(tiered(3, 2))
    fill(workers, KEYS)
    for vector in (Vector(3), Vector(0, 2), Vector(2, 1)):
        give(workers, HOT, vector)
        workers.pass_epochs(2)
        assert read_all(workers, KEYS) == {}
    settle_and_read(workers, KEYS)
    workers.pass_epochs(20)
    assert {len({i for i in holders(workers, key) if i <= 300}) for key in HOT} == {2}
    assert {len({i for i in holders(workers, key) if i > 300}) for key in HOT} == {1}


# -- tiers


def test_keys_live_on_memory_nodes_and_move_to_disk_when_told() -> None:
    workers = Workers(tiered(2, 2))
    fill(workers, KEYS)
    assert all(len(workers.workers[ids].store) == 0 for ids in (300, 400))
    give(workers, HOT, Vector(0, 1))
    settle_and_read(workers, KEYS)
    workers.pass_epochs(20)
    assert {holders(workers, key) <= {300, 400} for key in HOT} == {True}
    assert {copies(workers, key) for key in KEYS} == {1}
    fill(workers, HOT, b"again")
    assert {workers.read(key).payload[-6:] for key in HOT} == {b"\x06again"}
    workers.check()


def test_by_default_keys_may_have_copies_on_both_tiers() -> None:
    workers = Workers(tiered(2, 2, factor=1, disk_factor=1))
    fill(workers, KEYS)
    workers.pass_epochs(3)
    for key in KEYS:
        held = holders(workers, key)
        assert (len(held & {100, 200}), len(held & {300, 400})) == (1, 1)
    workers.stop(100)
    workers.workers[200].check()
    assert {len(holders(workers, key)) > 0 for key in KEYS} == {True}, "a copy on disk is a copy"


def test_a_cluster_of_disk_nodes_works_as_any() -> None:
    """D32: without a memory tier nothing worked."""
    workers = Workers(tiered(0, 2, factor=2))
    fill(workers, KEYS)
    workers.pass_epochs(3)
    assert {copies(workers, key) for key in KEYS} == {2}
    joined = workers.start(3)
    assert workers.workers[joined].view.node(3).tier == "memory"
    settle_and_read(workers, KEYS, 600)
    workers.pass_epochs(20)
    assert {frozenset(holders(workers, key)) for key in KEYS} == {frozenset({joined})}, "memory is used"


def test_a_node_that_dies_is_made_up_for_on_its_own_tier() -> None:
    workers = Workers(tiered(3, 3, factor=2, disk_factor=2))
    fill(workers, KEYS)
    workers.pass_epochs(5)
    workers.stop(500)
    workers.pass_epochs(350)
    settle(workers)
    assert workers.workers[100].view.node(5).status == DEAD
    for key in KEYS:
        held = holders(workers, key)
        assert (len(held & {100, 200, 300}), len(held & {400, 600})) == (2, 2)


# -- how safe a write is


def test_a_write_waits_for_as_many_copies_as_its_own_key_has() -> None:
    workers = Workers(view_of(3))
    give(workers, HOT, Vector(3))
    settle(workers)
    ids = owners_first(workers, HOT[0])
    assert workers.ask(ids, put(HOT[0], b"v", ack=3)) == []
    workers.deliver()
    (answer,) = workers.released(ids)
    assert (answer.status, answer.type) == (frames.OK, 2)
    usual = KEYS[1]
    (answer,) = workers.ask(owners_first(workers, usual), put(usual, b"v", ack=2))
    assert answer.payload == b"ack=2 asks for 2 copies; the key has 1 owner now"


def test_a_write_that_asks_for_nothing_has_two_copies_where_its_key_has_them() -> None:
    workers = Workers(view_of(3))
    give(workers, HOT, Vector(3))
    settle(workers)
    ids = owners_first(workers, HOT[0])
    assert workers.ask(ids, put(HOT[0], b"v")) == []
    workers.deliver()
    assert [answer.type for answer in workers.released(ids)] == [1]
    usual = next(key for key in KEYS if key not in HOT and owners_first(workers, key) == ids)
    (answer,) = workers.ask(ids, put(usual, b"v"))
    assert (answer.status, answer.type) == (frames.OK, 0)


def test_a_batch_tells_the_copies_of_the_key_that_has_the_fewest() -> None:
    workers = Workers(view_of(3))
    give(workers, HOT, Vector(3))
    settle(workers)
    ids = owners_first(workers, HOT[0])
    mine = [key for key in KEYS if key not in HOT and owners_first(workers, key) == ids]
    items = [(key, 1, register(b"v")) for key in (HOT[0], mine[0], HOT[1])]
    assert workers.ask(ids, multi_put(*items)) == []
    workers.deliver()
    assert [(answer.status, answer.type) for answer in workers.released(ids)] == [(frames.OK, 0)]


def test_a_write_that_waits_for_copies_has_them_though_its_key_is_given_fewer_meanwhile() -> None:
    workers = Workers(view_of(3, factor=3))
    ids = owners_first(workers, HOT[0])
    workers.lose = lambda source, target, frame: frame[6] == 1 and source == ids
    assert workers.ask(ids, put(HOT[0], b"v", ack=3)) == []
    give(workers, HOT, Vector(1), at=ids)
    workers.pass_epochs(5)
    assert workers.released(ids) == []
    workers.lose = lambda source, target, frame: False
    settle(workers)
    assert [(answer.status, answer.type) for answer in workers.released(ids)] == [(frames.OK, 2)]


@pytest.mark.parametrize("given", [3, 2])
def test_a_write_whose_owner_died_has_its_copies_from_whom_took_its_place(given: int) -> None:
    """It waits for three copies, and one of the three dies. While copies move there are as many as before."""
    workers = Workers(view_of(4, factor=3))
    ids, _, dies = owners_in_order(workers, HOT[0])
    workers.lose = lambda source, target, frame: dies in (source, target)
    assert workers.ask(ids, put(HOT[0], b"v", ack=3)) == []
    give(workers, [HOT[0]], Vector(given), at=ids)
    workers.stop(dies)
    workers.pass_epochs(400)
    assert [(answer.status, answer.type) for answer in workers.released(ids)] == [(frames.OK, 2)]


# -- what is refused


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"\xc1", "a change of vectors is no msgpack"),
        (msgpack.packb([1, 0]), "a change of vectors has 3 fields, got 2"),
        (msgpack.packb([17, 0, [b"k"]]), "number of copies in memory is 17; it must be 0 to 16"),
        (msgpack.packb([1, -1, [b"k"]]), "number of copies on disk is -1"),
        (msgpack.packb([1, 0, ["k"]]), "key must be bytes, got str"),
        (msgpack.packb([1, 0, [b""]]), "a key has 1 to 4,096 bytes, got 0"),
        (msgpack.packb([1, 0, [b"\x00system"]]), "keys that begin with a zero byte are reserved for the system"),
        (msgpack.packb([2, 0, [b"%d" % n for n in range(4097)]]), "4,097 keys would have a vector of their own"),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_changes_nothing(payload: bytes, why: str) -> None:
    workers = Workers(view_of(2))
    before = workers.workers[100].view
    (answer,) = workers.ask(100, request(REPLICATE, payload=payload))
    assert answer.status > frames.PARTIAL
    assert answer.payload.decode().startswith(why)
    assert workers.workers[100].view == before


def test_a_worker_alone_moves_copies_in_no_time() -> None:
    view = view_of(1)
    worker, now = Worker(view, 0, Clock(WALL_US, 5_000_000)), 5_000_000_000
    asked = request(REPLICATE, payload=change_to_wire([b"k"], Vector(3)))
    (answer,) = replies(worker.receive(Connection(), asked, now))
    assert answer.status == frames.OK
    for _ in range(5):
        assert worker.pushes_due
        now += 10_000_000
        worker.tick(now)
    assert worker.view.vectors.serving == {key_hash(b"k"): Vector(3)}
    assert worker.view.serving[0].status == ALIVE
    (answer,) = replies(worker.receive(Connection(), put(b"k", b"v"), now))
    assert (answer.status, answer.type) == (frames.OK, 0)


# -- deletes


def test_what_is_deleted_by_the_only_owner_is_not_brought_back_by_the_one_before() -> None:
    """Who had the only copy forgot its delete at once; the owner before, who had not compared yet, offered the key."""
    workers = Workers(tiered(3, 1))
    fill(workers, HOT)
    workers.pass_epochs(5)
    give(workers, HOT, Vector(0, 1))
    links = 1
    workers.lose = lambda source, _, frame: frame[6] == links and not workers.workers[source].view.in_motion
    while any(worker.view.in_motion for worker in workers.workers.values()):
        workers.pass_epochs(1)
    for key in HOT:
        assert workers.write(lambda key=key: request(frames.DELETE, key, ack=1)).status == frames.OK
    workers.lose = lambda source, target, frame: False
    settle(workers)
    assert {workers.read(key).status for key in HOT} == {frames.MISSING}
    workers.pass_epochs(20)
    assert {copies(workers, key) for key in HOT} == {0}
    assert {worker.status()["tombstones"] for worker in workers.workers.values()} == {0}, "then it is forgotten"


MOVES = [(Vector(3), Vector(1)), (Vector(1), Vector(0, 1)), (Vector(1), Vector(3))]


@pytest.mark.parametrize(("before", "after"), MOVES)
@pytest.mark.parametrize("epochs", range(0, 130, 10))
def test_what_is_deleted_while_copies_move_stays_deleted(before: Vector, after: Vector, epochs: int) -> None:
    workers = Workers(tiered(3, 1))
    give(workers, HOT, before)
    settle(workers)
    fill(workers, HOT)
    workers.pass_epochs(5)
    give(workers, HOT, after)
    workers.pass_epochs(epochs)
    for key in HOT:
        assert workers.write(lambda key=key: request(frames.DELETE, key, ack=1)).status == frames.OK
    settle(workers)
    assert {workers.read(key).status for key in HOT} == {frames.MISSING}
    assert {copies(workers, key) for key in HOT} == {0}


# -- all at once

ROUNDS_MAX = 20
"""How many epochs a write may be sent on and on while copies move and frames are lost."""

CHOICES = (DEFAULT, Vector(1), Vector(3), Vector(0, 1), Vector(0, 2), Vector(2, 1))


def add(workers: Workers, key: bytes, element: str, order: list[int]) -> None:
    """Add an element at the first of these workers that takes it; as a client does, again while all send it on."""
    data = request(frames.PUT, key, Set({element}).encode(), type=Set.NUMBER, ack=1)
    for _ in range(ROUNDS_MAX):
        if any(workers.ask(ids, data, connection=Connection())[0].status == frames.OK for ids in order):
            return
        workers.pass_epochs()
    raise AssertionError(f"nobody took {element} for {ROUNDS_MAX} epochs")


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_changed_and_lost_on_the_way_all_copies_are_where_and_what_they_should_be(seed: int) -> None:
    """Once a key was at all its owners nobody calls it missing, and in the end it is at its owners alone, and whole."""
    chance = random.Random(seed)
    workers = Workers(tiered(3, 2, factor=chance.choice((1, 2)), disk_factor=chance.choice((0, 1))))
    loss = chance.choice((0.0, 0.2, 0.4))
    workers.lose = lambda source, target, frame: chance.random() < loss
    added: dict[bytes, set[str]] = {key: set() for key in HOT}
    firm: set[bytes] = set()
    for number in range(300):
        key = chance.choice(HOT)
        add(workers, key, str(number), chance.sample(sorted(workers.workers), 5))
        added[key].add(str(number))
        if chance.random() < 0.1:
            give(workers, chance.sample(HOT, 3), chance.choice(CHOICES), at=chance.choice(sorted(workers.workers)))
        firm.update(key for key in HOT if holders(workers, key).issuperset(owners_in_order(workers, key)))
        for key in firm & {chance.choice(HOT)}:
            asked = ((ids, request(frames.GET, key)) for ids in workers.workers)
            statuses = {workers.ask(*each, connection=Connection())[0].status for each in asked}
            assert frames.MISSING not in statuses
        workers.pass_epochs(chance.choice((1, 1, 2, 6)))
    workers.lose = lambda source, target, frame: False
    settle_and_read(workers, sorted(firm), 900)
    workers.pass_epochs(30)
    for key in [key for key in HOT if added[key]]:
        assert holders(workers, key) == set(owners_in_order(workers, key))
        assert {frozenset(workers.workers[ids].store.read(key).value) for ids in holders(workers, key)} == {
            frozenset(added[key])
        }
    workers.check()
