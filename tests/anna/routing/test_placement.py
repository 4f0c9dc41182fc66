"""The compiled table answers what the ring answers."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna.config import OWNERS_MAX
from anna.errors import NoWorkers
from anna.messages import NodeInfo, NodeStatus, View
from anna.routing.placement import Placement
from anna.routing.ring import Ring
from tests.anna.routing.views import KEYS, shapes, view_of

GOLDEN = json.loads((Path(__file__).parent / "golden_placement.json").read_text())


@given(shapes(), st.lists(KEYS, min_size=1, max_size=50), st.sampled_from([1, 2, 64]))
def test_placement_equals_the_ring(shape: dict[int, set[int]], keys: list[bytes], virtual_nodes: int) -> None:
    view = view_of(shape)
    ring, placement = Ring.of(view, virtual_nodes), Placement(view, virtual_nodes=virtual_nodes)
    for key in keys:
        assert placement.owner_of(key) == ring.owners(key, 1)[0]
        assert view.workers[placement.index_of(key)] == placement.owner_of(key)


@given(shapes(), st.lists(KEYS, min_size=1, max_size=20), st.sampled_from([1, 2, 64]))
def test_several_owners_equal_the_ring(shape: dict[int, set[int]], keys: list[bytes], virtual_nodes: int) -> None:
    view = view_of(shape)
    ring, placement = Ring.of(view, virtual_nodes), Placement(view, virtual_nodes=virtual_nodes)
    for key, count in product(keys, range(1, 7)):
        assert tuple(view.workers[i] for i in placement.owners_of(key, count)) == ring.owners(key, count)


@given(shapes(nodes_max=7), st.data(), st.lists(KEYS, min_size=1, max_size=20))
def test_each_ring_has_the_nodes_of_its_statuses(
    shape: dict[int, set[int]], data: st.DataObject, keys: list[bytes]
) -> None:
    view = View(1, tuple(replace(n, status=data.draw(st.sampled_from(NodeStatus))) for n in view_of(shape).nodes))
    serving, target = Placement(view, virtual_nodes=8), Placement(view, "target", virtual_nodes=8)
    for key, count in product(keys, (1, 2, 3, 6)):
        now, then = (ring_owners(view, nodes, key, count) for nodes in (view.serving, view.target))
        assert (serving.owners_of(key, count) if now else ()) == now
        assert (target.owners_of(key, count) if then else ()) == then
        assert serving.span_of(key, count) == now + tuple(index for index in then if index not in now)
        assert target.span_of(key, count) == then
        assert (serving.index_of(key) if now else -1) == (*now, -1)[0]


def ring_owners(view: View, nodes: tuple[NodeInfo, ...], key: bytes, count: int) -> tuple[int, ...]:
    """Return the owners on the ring of these nodes, as places in the view."""
    ring = Ring(virtual_nodes=8)
    for node in nodes:
        ring.add(node)
    return tuple(view.index_of(worker.worker_id) for worker in ring.owners(key, count)) if nodes else ()


def test_an_arriving_node_is_told_of_writes_before_it_serves() -> None:
    """D11: while a node joins, the owners until now answer, and the one to come is only told."""
    old, new = view_of({1: [0], 2: [0]}), view_of({1: [0], 2: [0], 3: [0]})
    joining = View(2, (*old.nodes, replace(new.nodes[2], status=NodeStatus.JOINING)))
    keys = [b"%d" % i for i in range(200)]
    before, during, after = Placement(old), Placement(joining), Placement(new)
    assert all(during.owner_of(key) == before.owner_of(key) for key in keys)
    moving = [key for key in keys if after.index_of(key) == 2]
    assert all(during.span_of(key, 1) == (before.index_of(key), 2) for key in moving)
    assert all(during.span_of(key, 1) == before.owners_of(key, 1) for key in keys if key not in moving)
    assert len(moving) > 40


def test_a_placement_is_on_one_of_two_rings() -> None:
    with pytest.raises(ValueError, match="not 'elsewhere'"):
        Placement(view_of({1: [0]}), "elsewhere")  # type: ignore[arg-type]


@given(shapes(nodes_max=3), KEYS)
def test_no_more_owners_than_workers_are_found(shape: dict[int, set[int]], key: bytes) -> None:
    """D14: a replication factor above the number of nodes, or of workers, is clamped to what exists."""
    view = view_of(shape)
    owners = Placement(view).owners_of(key, 10**6)
    assert sorted(set(owners)) == sorted(owners)
    assert len(owners) == min(len(view.workers), OWNERS_MAX)
    assert Placement(view).owners_of(key, 0) == ()


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_placement_has_the_golden_owners(case: dict[str, dict[str, list[list[int]]]]) -> None:
    placement = Placement(view_of({int(node): seats for node, seats in case["nodes"].items()}))
    found = {key: placement.owner_of(key.encode()) for key in case["owners"]}
    assert {key: [w.worker_id // 1024, w.seat] for key, w in found.items()} == {
        key: owners[0] for key, owners in case["owners"].items()
    }


def test_a_single_worker_owns_everything() -> None:
    placement = Placement(view_of({2**50: [17]}))
    assert {placement.index_of(b"%d" % i) for i in range(100)} == {0}


def test_one_worker_on_each_of_many_nodes() -> None:
    view = view_of({node_id: [0] for node_id in range(1, 200)})
    ring, placement = Ring.of(view), Placement(view)
    owners = [placement.owner_of(b"%d" % i) for i in range(2000)]
    assert owners == [ring.owners(b"%d" % i, 1)[0] for i in range(2000)]
    assert len(set(owners)) > 190


def test_an_empty_view_has_no_owner() -> None:
    with pytest.raises(NoWorkers, match="view 0 has no nodes"):
        Placement(View(0, ())).owner_of(b"k")


def test_only_bytes_are_placed() -> None:
    with pytest.raises(TypeError):
        Placement(view_of({1: [0, 1]})).index_of("text")  # type: ignore[arg-type]
