"""The ring places keys by golden vectors, evenly, and moves as few as it can."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna.config import VIRTUAL_NODES
from anna.errors import NoWorkers
from anna.messages import NodeStatus, View
from anna.routing.hash import key_hash
from anna.routing.ring import Circle, Ring, swapped
from tests.anna.routing.views import KEYS, NODE_IDS, SEATS, node_of, shapes, view_of

GOLDEN = json.loads((Path(__file__).parent / "golden_placement.json").read_text())
SAMPLE = [b"key:%d" % i for i in range(300)]

Shape = dict[int, set[int]]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_placement_never_changes_by_accident(case: dict[str, object]) -> None:
    nodes: dict[str, list[int]] = case["nodes"]  # type: ignore[assignment]
    owners: dict[str, list[list[int]]] = case["owners"]  # type: ignore[assignment]
    ring = Ring.of(view_of({int(node): seats for node, seats in nodes.items()}))
    found = {key: [[w.worker_id // 1024, w.seat] for w in ring.owners(key.encode(), count=4)] for key in owners}
    assert found == owners


def test_points_never_change_by_accident() -> None:
    circle = Circle(b"node", virtual_nodes=2)
    circle.add(1)
    circle.add(2**64 - 1)
    assert [[f"{p:016x}", f"{m:x}"] for p, m in circle.points] == GOLDEN["points"]
    assert GOLDEN["virtual_nodes"] == VIRTUAL_NODES


def naive_owner(members: set[int], label: bytes, position: int) -> int:
    """The definition: of all points of all members, the first at or after the position, clockwise."""
    points = [
        (key_hash(label + m.to_bytes(8, "little") + v.to_bytes(4, "little")), m)
        for m in members
        for v in range(VIRTUAL_NODES)
    ]
    return min(points, key=lambda point: ((point[0] - position) % 2**64, point[1]))[1]


@given(shapes(), KEYS)
def test_primary_owner_is_the_one_of_the_definition(shape: Shape, key: bytes) -> None:
    node = naive_owner(set(shape), b"node", key_hash(key))
    seat = naive_owner(shape[node], b"seat", swapped(key_hash(key)))
    assert Ring.of(view_of(shape)).owners(key, 1) == tuple(w for w in node_of(node, [seat]).workers)


@given(shapes(), KEYS, st.integers(0, 30))
def test_owners_are_distinct_and_as_many_as_there_are(shape: Shape, key: bytes, count: int) -> None:
    owners = Ring.of(view_of(shape)).owners(key, count)
    assert len(set(owners)) == len(owners) == min(count, sum(map(len, shape.values())))


@given(shapes(), KEYS, st.integers(1, 30))
def test_one_more_owner_is_added_at_the_end(shape: Shape, key: bytes, count: int) -> None:
    ring = Ring.of(view_of(shape))
    assert ring.owners(key, count - 1) == ring.owners(key, count)[: count - 1]


@given(shapes(nodes_min=2), KEYS)
def test_first_owners_are_on_different_nodes(shape: Shape, key: bytes) -> None:
    owners = Ring.of(view_of(shape)).owners(key, len(shape))
    assert {w.worker_id // 1024 for w in owners} == set(shape)


@given(shapes(), NODE_IDS, SEATS)
def test_a_new_node_takes_keys_and_moves_none_between_the_others(shape: Shape, node_id: int, seats: set[int]) -> None:
    shape.pop(node_id, None)
    ring = Ring.of(view_of(shape))
    before = {key: ring.owners(key, 1)[0] for key in SAMPLE} if shape else {}
    ring.add(node_of(node_id, seats))
    ring.check()
    for key, owner in before.items():
        after = ring.owners(key, 1)[0]
        assert after == owner or after.worker_id // 1024 == node_id


@given(shapes(nodes_min=2))
def test_a_leaving_node_gives_its_keys_away_and_no_other_moves(shape: Shape) -> None:
    ring = Ring.of(view_of(shape))
    leaver = min(shape)
    before = {key: ring.owners(key, 1)[0] for key in SAMPLE}
    ring.remove(leaver)
    ring.check()
    for key, owner in before.items():
        after = ring.owners(key, 1)[0]
        assert after.worker_id // 1024 != leaver if owner.worker_id // 1024 == leaver else after == owner


@given(SEATS, st.integers(0, 20))
def test_a_new_seat_takes_keys_of_its_node_and_moves_no_other(seats: set[int], seat: int) -> None:
    before = Ring.of(view_of({5: seats}))
    after = Ring.of(view_of({5: seats | {seat}}))
    for key in SAMPLE:
        new = after.owners(key, 1)[0]
        assert new == before.owners(key, 1)[0] or new.seat == seat


@given(shapes(nodes_min=2), st.randoms(use_true_random=False))
def test_the_order_of_arrivals_and_departures_leaves_no_trace(shape: Shape, random: object) -> None:
    ring = Ring()
    nodes = sorted(shape)
    random.shuffle(nodes)  # type: ignore[attr-defined]
    for node_id in nodes:
        ring.add(node_of(node_id, shape[node_id]))
    ring.remove(nodes[0])
    ring.add(node_of(nodes[0], shape[nodes[0]]))
    ring.check()
    assert ring.circle.points == Ring.of(view_of(shape)).circle.points


def test_a_successor_owns_what_its_predecessor_owned() -> None:
    view = view_of({3: [0, 1], 9: [0]})
    dead = view.nodes[0].workers[1]
    successor = type(dead)(2**63, dead.addresses, dead.seat)
    before, after = Ring.of(view), Ring.of(view.with_worker(3, successor))
    for key in SAMPLE:
        owner = before.owners(key, 1)[0]
        assert after.owners(key, 1)[0] == (successor if owner == dead else owner)


def share_of(circle: Circle) -> dict[int, float]:
    """Each member's exact part of the circle, times the number of members: 1.0 is fair."""
    shares: dict[int, float] = {}
    before = circle.points[-1][0] - 2**64
    for point, member in circle.points:
        shares[member] = shares.get(member, 0.0) + (point - before) / 2**64 * len(circle)
        before = point
    return shares


@pytest.mark.parametrize("seats", [2, 3, 4, 8, 16, 32])
def test_seats_of_a_node_have_even_shares(seats: int) -> None:
    circle = Ring().seat_circle(node_of(1, range(seats)))
    shares = share_of(circle).values()
    assert max(shares) < 1.15
    assert min(shares) > 0.85


@given(st.sets(NODE_IDS, min_size=2, max_size=16))
def test_any_nodes_have_fairly_even_shares(node_ids: set[int]) -> None:
    """With 256 points a member the standard deviation of a share is 1/16: six of them make 1.375."""
    circle = Ring.of(view_of({node_id: [0] for node_id in node_ids})).circle
    assert max(share_of(circle).values()) < 1.375


def test_keys_of_one_node_spread_evenly_over_its_seats() -> None:
    """A node's keys lie on its arcs only: its seats are entered at another position."""
    ring = Ring.of(view_of({node_id: range(4) for node_id in (1, 2, 3, 4)}))
    loads: dict[int, int] = {}
    for i in range(20_000):
        owner = ring.owners(b"user:%d" % i, 1)[0]
        loads[owner.worker_id] = loads.get(owner.worker_id, 0) + 1
    assert len(loads) == 16
    assert max(loads.values()) < 1.25 * 20_000 / 16
    assert min(loads.values()) > 0.8 * 20_000 / 16


def test_an_empty_ring_has_no_owner() -> None:
    with pytest.raises(NoWorkers, match="no nodes"):
        Ring.of(View(0, ())).owners(b"k", 1)


def test_removing_a_stranger_is_an_error() -> None:
    with pytest.raises(KeyError):
        Ring.of(view_of({1: [0]})).remove(2)


def test_only_serving_nodes_own_keys() -> None:
    """D11: a node that joins owns nothing before it has what it will own; one that leaves owns until it is gone."""
    nodes = (replace(node_of(1 + status, [0]), status=status) for status in NodeStatus)
    ring = Ring.of(View(1, tuple(nodes)))
    owners = {ring.owners(key, 1)[0].worker_id // 1024 for key in SAMPLE}
    assert owners == {1 + NodeStatus.ALIVE, 1 + NodeStatus.LEAVING}
