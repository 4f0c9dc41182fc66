"""What a client must ask for so that nothing it is given is older than what it has seen (P6)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anna import wire
from anna.config import EPOCH_US, OWNER_SHARE_MIN_NS, SUSPECT_NS
from anna.freshness import PLACEMENTS_KEPT_MAX, Freshness
from anna.messages import DEAD, JOINING, NodeInfo, View, WorkerInfo
from anna.requester import Requester
from anna.routing.hash import key_hash
from anna.routing.placement import Placement
from anna.vectors import Vector
from tests.anna import frames
from tests.anna.frames import put
from tests.anna.kvs.workers import Workers, view_of

A, B, C = 100, 200, 300
MS = 1_000_000


def stamp(epoch: int, counter: int = 0) -> int:
    return (epoch * EPOCH_US) << 10 | counter


def key_of(view: View, home: int) -> bytes:
    """Return a key whose home is this worker."""
    keys = (b"k%d" % n for n in range(1000))
    return next(key for key in keys if Placement(view).owner_of(key).worker_id == home)


def test_a_read_at_the_home_asks_for_nothing() -> None:
    freshness = Freshness()
    assert freshness.needed(b"k", A, A, stamp(7)) == 0
    assert not freshness.unsettled


def test_a_read_elsewhere_asks_for_all_that_was_seen_when_the_home_was_left() -> None:
    freshness = Freshness()
    assert freshness.needed(b"k", A, B, stamp(7)) == stamp(7)
    # What is seen at others meanwhile is not of keys of this home, so it is not asked for.
    assert freshness.needed(b"k", A, B, stamp(9)) == stamp(7)


def test_once_that_is_stable_nothing_is_asked_for_though_the_home_is_still_away() -> None:
    freshness = Freshness()
    freshness.needed(b"k", A, B, stamp(7))
    freshness.learn_stable(6)
    assert freshness.needed(b"k", A, B, stamp(9)) == stamp(7)
    freshness.learn_stable(7)
    assert freshness.needed(b"k", A, B, stamp(9)) == 0


def test_what_was_seen_elsewhere_is_asked_of_the_home_when_it_is_back() -> None:
    freshness = Freshness()
    freshness.needed(b"k", A, B, stamp(7))
    freshness.answered(A, B, stamp(8), stamp(8))
    assert freshness.needed(b"k", A, A, stamp(9)) == stamp(8)
    assert freshness.needed(b"k", A, C, stamp(9)) == stamp(8)
    freshness.learn_stable(8)
    assert freshness.needed(b"k", A, A, stamp(9)) == 0


def test_a_home_that_answered_and_was_left_again_is_left_with_what_is_seen_then() -> None:
    freshness = Freshness()
    freshness.needed(b"k", A, B, stamp(7))
    freshness.answered(A, A, stamp(9), stamp(9))
    assert freshness.needed(b"k", A, B, stamp(9)) == stamp(9)


def test_it_settles_when_the_home_is_back_and_all_is_stable() -> None:
    freshness = Freshness()
    freshness.needed(b"k", A, B, stamp(7))
    freshness.answered(A, B, stamp(8), stamp(8))
    freshness.answered(A, A, stamp(9), stamp(9))
    freshness.learn_stable(7)
    assert freshness.unsettled
    freshness.learn_stable(8)
    assert not freshness.unsettled


def test_stable_epochs_are_compared_over_the_wrap_of_their_32_bits() -> None:
    freshness = Freshness()
    late = (1 << 32) + 1
    freshness.needed(b"k", A, B, stamp(late))
    freshness.learn_stable(0xFFFFFFFF)
    assert freshness.needed(b"k", A, B, stamp(late)) == stamp(late)
    freshness.learn_stable(1)
    assert freshness.needed(b"k", A, B, stamp(late)) == 0
    freshness.learn_stable(0xFFFFFFFF)
    assert freshness.is_stable(stamp(late))


def test_only_keys_that_moved_are_strict_under_a_newer_view() -> None:
    before, after = view_of(2, factor=2), view_of(3, factor=2, version=2)
    requester = Requester(before)
    requester.note(stamp(7))
    requester.adopt(after)
    assert requester.troubled
    moved = key_of(after, C)
    assert requester.strict_stamp(moved, after.index_of(C)) == stamp(7)
    stayed = next(
        k
        for k in (b"k%d" % n for n in range(1000))
        if Placement(before).owner_of(k).worker_id == Placement(after).owner_of(k).worker_id == A
    )
    assert requester.strict_stamp(stayed, after.index_of(A)) == 0
    requester.settle(7)
    assert not requester.troubled
    assert requester.strict_stamp(moved, after.index_of(C)) == 0


def test_a_key_that_moved_to_another_tier_is_strict_at_its_new_home() -> None:
    view = view_of(2)
    before = replace(view, nodes=(view.nodes[0], replace(view.nodes[1], tier="disk")))
    moving = before.with_vectors(before.vectors.changed([key_hash(b"cold")], Vector(0, 1), 1))
    requester = Requester(before)
    requester.note(stamp(7))
    requester.adopt(moving)
    assert requester.owners(b"cold") == (before.index_of(A),), "who has it answers until it has moved"
    assert not requester.troubled
    requester.adopt(moving.with_vectors(moving.vectors.settled()))
    assert requester.owners(b"cold") == (before.index_of(B),)
    assert requester.strict_stamp(b"cold", before.index_of(B)) == stamp(7)
    assert requester.strict_stamp(b"hot", before.index_of(A)) == 0
    requester.settle(7)
    assert requester.strict_stamp(b"cold", before.index_of(B)) == 0


def test_a_view_that_moves_no_key_is_no_trouble() -> None:
    requester = Requester(view_of(2, factor=2))
    requester.note(stamp(7))
    joining = NodeInfo(3, (WorkerInfo(C, ("unix:/run/3.sock",)),), status=JOINING)
    assert requester.adopt(view_of(2, factor=2).with_node(joining))
    assert not requester.troubled


def test_with_one_copy_a_replaced_worker_is_no_trouble_and_with_two_it_is() -> None:
    for factor, troubled in ((1, False), (2, True)):
        view = view_of(2, factor=factor)
        requester = Requester(view)
        requester.note(stamp(7))
        requester.adopt(view.with_worker(1, WorkerInfo(999, ("unix:/run/new.sock",), 0)))
        assert requester.troubled is troubled


def test_when_views_come_faster_than_epochs_close_every_key_counts_as_moved() -> None:
    view = view_of(2, factor=2)
    requester = Requester(view)
    key = key_of(view, A)
    for number in range(PLACEMENTS_KEPT_MAX + 1):
        requester.note(stamp(7 + number))
        node = view.node(2)
        view = view.with_worker(2, WorkerInfo(1000 + number, node.workers[0].addresses, 0))
        requester.adopt(view)
    assert requester.strict_stamp(key, view.index_of(A)) == stamp(7 + PLACEMENTS_KEPT_MAX)


def test_of_two_views_of_one_version_the_join_is_taken_and_of_a_new_cluster_the_new_one() -> None:
    view = view_of(2, factor=2)
    requester = Requester(view)
    dead = View(1, (NodeInfo(1, view.nodes[0].workers, status=DEAD), view.nodes[1]), 2, 1)
    assert requester.adopt(dead)
    assert [node.status for node in requester.view.nodes] == [DEAD, view.nodes[1].status]
    assert not requester.adopt(view)
    anew = View(1, (NodeInfo(77, (WorkerInfo(7, ("unix:/run/0.sock",)),)),))
    assert requester.adopt(anew)
    assert requester.view == anew


# -- routes


def test_a_read_gives_each_owner_its_share_of_the_time() -> None:
    view = view_of(3, factor=3)
    route = Requester(view).route(b"k", True, 0, 3000 * MS)
    first = route.step(0)
    second = route.step(first.limit)
    third = route.step(second.limit)
    assert [s.limit for s in (first, second, third)] == [1000 * MS, 2000 * MS, 3000 * MS]
    assert [s.place for s in (first, second, third)] == list(Placement(view).owners_of(b"k", 3))
    assert route.step(third.limit) is None
    assert Requester(view).route(b"k", True, 0, MS).step(0).limit == MS
    assert Requester(view).route(b"k", True, 0, 60 * MS).step(0).limit == OWNER_SHARE_MIN_NS


def test_a_write_has_the_whole_time_with_each_owner() -> None:
    route = Requester(view_of(2, factor=2)).route(b"k", False, 0, 1000 * MS)
    assert [route.step(0).limit for _ in range(2)] == [1000 * MS] * 2


def test_suspects_are_asked_last_and_only_for_a_while() -> None:
    view = view_of(2, factor=2)
    requester = Requester(view)
    home, other = requester.owners(b"k")
    requester.suspect(home, 0)
    assert requester.troubled
    route = requester.route(b"k", True, 1, 1000 * MS)
    assert [route.step(1).place for _ in range(2)] == [other, home]
    route = requester.route(b"k", True, SUSPECT_NS, 2000 * MS)
    assert route.step(1).place == home
    assert not requester.suspects


def test_an_answer_ends_the_suspicion() -> None:
    requester = Requester(view_of(2, factor=2))
    home, _ = requester.owners(b"k")
    requester.suspect(home, 0)
    requester.answered(b"k", home, stamp(1))
    assert not requester.troubled


def test_a_route_over_cores_never_gives_an_older_value_and_is_served_as_soon_as_it_is_there() -> None:
    """P6: a client whose home is gone reads its own write from the other owner, once that has it."""
    view = view_of(2, factor=2)
    workers = Workers(view)
    requester = Requester(view)
    key = key_of(view, A)
    workers.lose = lambda source, target, frame: True
    (answer,) = workers.ask(A, put(key, b"mine", ack=1))
    requester.note(answer.stamp, view.index_of(A))
    requester.suspect(view.index_of(A), 0)
    step = requester.route(key, True, 0, 1000 * MS).step(0)
    assert view.workers[step.place].worker_id == B
    _, frame = requester.request(wire.GET, key, strict=step.strict)
    assert workers.ask(B, frame)[0].status == wire.STALE
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(40)
    (found,) = workers.ask(B, frame)
    assert (found.status, requester.decode(found.type, found.payload)) == (frames.OK, b"mine")


def test_who_came_over_tcp_stays_with_it_and_unix_is_for_the_node_that_was_reached() -> None:
    """D41: one outbound connection to whichever address is right, instead of fixed ports."""
    infos = tuple(NodeInfo(n, (WorkerInfo(n, (f"unix:/run/{n}.sock", f"tcp://10.0.0.{n}:6450"), 0),)) for n in (1, 2))
    requester = Requester(View(1, infos))
    assert requester.addresses(1) == ["unix:/run/2.sock", "tcp://10.0.0.2:6450"]
    requester.reached("tcp://10.0.0.1:6450")
    assert requester.addresses(1) == ["tcp://10.0.0.2:6450"]
    requester = Requester(View(1, infos))
    requester.reached("unix:/run/1.sock")
    assert requester.addresses(0) == ["unix:/run/1.sock", "tcp://10.0.0.1:6450"]
    assert requester.addresses(1) == ["tcp://10.0.0.2:6450", "unix:/run/2.sock"]
    requester = Requester(View(1, infos))
    requester.reached("tcp://127.0.0.1:6450")
    assert requester.addresses(0) == ["tcp://10.0.0.1:6450", "unix:/run/1.sock"]


def test_request_ids_do_not_repeat_while_any_answer_could_be_pending() -> None:
    """D40: ids wrapped after 5000, and answers were matched by key."""
    requester = Requester(view_of(1))
    ids = [requester.request(wire.GET, b"k")[0] for _ in range(20_000)]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize(("ack", "number"), [("memory", 1), (1, 1), (2, 2), (254, 254), ("disk", 255), (None, 7)])
def test_an_ack_is_in_the_header_of_writes_alone(ack: str | int | None, number: int) -> None:
    requester = Requester(view_of(1), ack=7)
    _, frame = requester.put_request("k", 1, ack=ack)
    assert frames.HEADER.unpack_from(frame)[7] == number
    assert frames.HEADER.unpack_from(requester.request(wire.GET, "k")[1])[7] == 0


def test_a_place_that_another_request_made_the_view_forget_is_not_asked() -> None:
    """A route that waits while the view loses workers begins again; what its old places say is of nobody."""
    requester = Requester(view_of(3, 2))
    key = key_of(requester.view, requester.view.workers[0].worker_id)
    route = requester.route(key, True, 0, 1000 * MS)
    by = requester.view.workers[2].worker_id
    requester.adopt(view_of(1, 2, version=2))
    assert requester.strict_stamp(key, 2) == 0
    requester.answered(key, 2, stamp(3))
    requester.answered_by(key, by, stamp(3))
    assert (route.step(0).place, route.step(0)) == (0, None)
    assert requester.strict_stamp(key, 0) == stamp(3), "what was seen at a worker that is gone counts"
