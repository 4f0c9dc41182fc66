"""Keys on two tiers: a ring for each, a vector for each key, and nothing that is not there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna.config import OWNERS_MAX
from anna.errors import NoWorkers
from anna.messages import ALIVE, JOINING, LEAVING, NodeStatus, View
from anna.routing.hash import key_hash
from anna.routing.placement import Placement
from anna.routing.ring import Ring, Rings
from anna.vectors import DEFAULT, OwnVector, Vector, Vectors
from tests.anna.routing.views import shapes, view_of

KEYS = [b"key:%d" % n for n in range(60)]
SAMPLE = [b"key:%d" % n for n in range(400)]


@st.composite
def tiered(draw: st.DrawFn, statuses: tuple[NodeStatus, ...] = (ALIVE,)) -> View:
    """Draw a view of nodes of both tiers, with vectors for some of `KEYS`."""
    nodes = []
    for node in view_of(draw(shapes(nodes_max=6))).nodes:
        tier, status = draw(st.sampled_from(["memory", "disk"])), draw(st.sampled_from(statuses))
        nodes.append(replace(node, tier=tier, status=status))
    vectors = st.builds(Vector, st.integers(0, 4), st.integers(0, 3))
    own = tuple(
        OwnVector(key_hash(key), 1, draw(vectors), draw(st.none() | vectors))
        for key in sorted(draw(st.sets(st.sampled_from(KEYS), max_size=20)), key=key_hash)
    )
    return View(1, tuple(nodes), draw(st.integers(1, 4)), 1, Vectors(draw(st.integers(0, 3)), own=own))


def with_tiers(memory: int, disk: int, *, factor: int = 1, disk_factor: int = 0) -> View:
    """Return a view of so many nodes of each tier, one worker each; those with memory have the lesser ids."""
    view = view_of({node: [0] for node in range(1, memory + disk + 1)})
    nodes = (replace(n, tier="memory" if n.node_id <= memory else "disk") for n in view.nodes)
    return View(1, tuple(nodes), factor, 1, Vectors(disk_factor))


def owners(view: View, key: bytes) -> list[str]:
    """Return the tiers of a key's owners, in their order."""
    placement = Placement(view)
    return [view.node_of(view.workers[place].worker_id).tier for place in placement.owners_of(key)]


# -- the compiled table is the rings


@given(tiered())
def test_placement_equals_the_rings(view: View) -> None:
    rings, placement = Rings(view, virtual_nodes=8), Placement(view, virtual_nodes=8)
    for key in KEYS:
        expected = rings.owners(key)
        assert tuple(view.workers[place] for place in placement.owners_of(key)) == expected
        assert placement.owner_of(key) == expected[0]
        assert view.copies_least <= len(expected) <= view.copies_most == placement.copies_most or view.in_motion


@given(tiered(statuses=(JOINING, ALIVE, LEAVING)))
def test_who_is_told_of_a_write_is_on_the_rings_of_now_or_of_then(view: View) -> None:
    now, then = (Rings(view, which, virtual_nodes=8) for which in ("serving", "target"))
    placement = Placement(view, virtual_nodes=8)
    for key in KEYS:
        serving = [view.index_of(w.worker_id) for w in (now.owners(key) if view.serving else ())]
        target = [view.index_of(w.worker_id) for w in (then.owners(key) if view.target else ())]
        assert list(placement.span_of(key)) == serving + [place for place in target if place not in serving]
        assert len(serving) <= placement.copies_most


@given(tiered())
def test_a_tier_is_placed_as_if_it_were_alone(view: View) -> None:
    """What is on one tier does not move keys on the other."""
    rings = Rings(view)
    for tier in ("memory", "disk"):
        alone = Ring.of_nodes(node for node in view.serving if node.tier == tier)
        for key in KEYS[:20]:
            vector = rings.vector(key)
            count = vector.memory if tier == "memory" else vector.disk
            found = [worker for worker in rings.owners(key) if view.node_of(worker.worker_id).tier == tier]
            assert found == list(alone.owners(key, count) if count else ())


# -- what exists


@given(tiered())
def test_a_key_has_an_owner_whatever_its_vector_asks_for(view: View) -> None:
    """D14: a factor is clamped to what exists. D32: there is an owner also where a tier does not exist."""
    placement = Placement(view)
    for key in KEYS:
        found = placement.owners_of(key)
        assert 0 < len(found) == len(set(found)) <= min(len(view.workers), 2 * OWNERS_MAX)


def test_keys_are_in_memory_where_nobody_says_otherwise() -> None:
    view = with_tiers(2, 3)
    assert {tuple(owners(view, key)) for key in SAMPLE} == {("memory",)}
    assert Placement(view).copies_most == 1


def test_a_cluster_of_disks_holds_as_many_copies_as_were_asked_for_in_memory() -> None:
    """D32: nothing works without a memory tier."""
    assert {tuple(owners(with_tiers(0, 3), key)) for key in SAMPLE} == {("disk",)}
    assert {tuple(owners(with_tiers(0, 3, factor=2), key)) for key in SAMPLE} == {("disk", "disk")}
    assert Placement(with_tiers(0, 3, factor=2)).copies_usual == 2


def test_memory_comes_before_disk() -> None:
    view = with_tiers(3, 2, factor=2, disk_factor=1)
    assert {tuple(owners(view, key)) for key in SAMPLE} == {("memory", "memory", "disk")}
    assert (view.copies_least, view.copies_apart) == (3, True)


def test_every_worker_has_every_key_only_where_both_tiers_do() -> None:
    assert Placement(with_tiers(2, 1, factor=2, disk_factor=1)).everywhere
    assert not Placement(with_tiers(2, 1, factor=2)).everywhere
    assert not Placement(with_tiers(2, 2, factor=2, disk_factor=1)).everywhere


def test_rings_of_nobody_have_no_owner() -> None:
    with pytest.raises(NoWorkers, match="the view has no nodes"):
        Rings(View(0, ())).owners(b"k")


# -- keys with a vector of their own


def own(view: View, key: bytes, vector: Vector, *, settled: bool = True) -> View:
    changed = view.vectors.changed([key_hash(key)], vector, 9)
    return view.with_vectors(changed.settled() if settled else changed)


def test_a_vector_of_its_own_moves_one_key_and_no_other() -> None:
    view = with_tiers(3, 2)
    after = own(view, SAMPLE[7], Vector(1, 2))
    before, placed = Placement(view), Placement(after)
    assert owners(after, SAMPLE[7]) == ["memory", "disk", "disk"]
    assert all(placed.owners_of(key) == before.owners_of(key) for key in SAMPLE if key != SAMPLE[7])
    assert owners(own(after, SAMPLE[7], DEFAULT), SAMPLE[7]) == ["memory"]


def test_one_copy_more_is_one_more_owner_and_moves_none() -> None:
    view, key = with_tiers(5, 5), SAMPLE[3]
    for copies in range(1, 5):
        fewer, more = own(view, key, Vector(copies)), own(view, key, Vector(copies + 1))
        assert Placement(more).owners_of(key)[:-1] == Placement(fewer).owners_of(key)


def test_who_has_a_key_answers_for_it_while_its_copies_move() -> None:
    """D11: a key is not asked for where it is still to come."""
    view, key = with_tiers(2, 2), SAMPLE[5]
    moving = own(view, key, Vector(0, 2), settled=False)
    placement, after = Placement(moving), Placement(own(view, key, Vector(0, 2)))
    assert placement.owners_of(key) == Placement(view).owners_of(key)
    assert placement.span_of(key) == Placement(view).owners_of(key) + after.owners_of(key)
    assert (placement.copies_most, after.copies_most) == (2, 2)


def test_thousands_of_keys_may_have_vectors() -> None:
    keys = [b"hot:%d" % n for n in range(4096)]
    view = with_tiers(3, 0)
    changed = view.vectors.changed([key_hash(key) for key in keys], Vector(3), 9).settled()
    placement = Placement(view.with_vectors(changed))
    assert {len(placement.owners_of(key)) for key in keys} == {3}
    assert {len(placement.owners_of(key)) for key in SAMPLE} == {1}


def test_a_new_node_of_one_tier_takes_no_key_of_the_other() -> None:
    before, after = with_tiers(3, 2, disk_factor=1), with_tiers(3, 3, disk_factor=1)
    for key in SAMPLE:
        old, new = Rings(before).owners(key), Rings(after).owners(key)
        assert old[0] == new[0]
        assert new[1] == old[1] or new[1].worker_id // 1024 == 6
