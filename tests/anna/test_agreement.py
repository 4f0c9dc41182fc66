"""All workers come to one view: in large clusters, after faults at random, and about copies that move."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from anna import config
from anna.messages import ALIVE, DEAD, LEAVING
from anna.vectors import Vector
from tests.anna.heartbeat_network import Network, address

HEARTBEAT_S = config.HEARTBEAT_US / 1e6
DEAD_AFTER_S = config.DEAD_AFTER_US / 1e6
DELAY_S = 0.02



# -- many workers, and faults at random


def test_a_large_cluster_agrees_with_bounded_messages() -> None:
    """Each heartbeat goes to 32 of 44 others, in turn; what was not heard directly is known by way of others."""
    net = Network()
    for node in range(1, 10):
        net.start(node, workers=5, seeds=(address(1),) if node > 1 else ())
    net.run_until(lambda: net.agreed() and len(net.views()[0].serving) == 9, 10)
    before = net.frames
    net.run(3)
    assert (net.frames - before) / 45 / 3 <= config.HEARTBEAT_TARGETS_MAX / HEARTBEAT_S * 1.2
    net.crash(7)
    net.run_until(lambda: net.sees(DEAD, 7), DEAD_AFTER_S + 2 * HEARTBEAT_S + 2 * DELAY_S)
    net.run(5)
    assert net.statuses() == {node: DEAD if node == 7 else ALIVE for node in range(1, 10)}


FAULT_NAMES = [
    *("crash", "restart", "join", "leave", "replace"),
    *("stop", "go on", "cut", "one-way cut", "heal", "loss"),
]
FAULTS = st.lists(
    st.tuples(
        st.sampled_from(FAULT_NAMES),
        st.integers(1, 5),
        st.sets(st.integers(1, 7), min_size=1, max_size=3),
        st.floats(0.0, 6.0),
    ),
    max_size=12,
)


def strike(net: Network, fault: str, node: int, others: set[int], generations: dict[int, int]) -> None:
    """Do to the network what the name says. Node 1 stays: a seed that newcomers find in the end."""
    if node == 1 and fault in ("crash", "restart", "leave"):
        return
    everybody = set(range(1, 8))
    seeds = tuple(address(seed) for seed in (1, 2, 3))
    if fault == "crash":
        net.crash(node)
    elif fault in ("restart", "join"):
        node += 2 * (fault == "join")
        if net.has_left(node):
            return
        net.crash(node)
        generations[node] = generations.get(node, -1) + 1
        net.start(node, workers=1 + node % 2, generation=generations[node], seeds=seeds)
    elif fault == "stop":
        net.stop(node)
    elif fault == "go on":
        net.go_on(node)
    elif fault in ("cut", "one-way cut"):
        net.cut(others, everybody - others, one_way=fault == "one-way cut")
    elif fault == "heal":
        net.heal()
    elif fault == "loss":
        net.loss, net.repeats = 0.3, 0.2
    elif fault == "replace" and net.of(node):
        net.replace_worker(node, seeds)
    elif fault == "leave":
        for process in net.of(node):
            if len(process.membership.view.target) > 1:
                process.membership.leave(net.clock_of(process))


@settings(max_examples=60)
@given(FAULTS, st.integers(0, 2**32))
def test_all_views_are_equal_soon_after_the_faults_end(
    faults: list[tuple[str, int, set[int], float]], seed: int
) -> None:
    net = Network(seed, delay_s=(0.001, 0.1))
    generations = dict.fromkeys((1, 2, 3), 0)
    net.cluster(1, 2, 3)
    for fault, node, others, pause in faults:
        strike(net, fault, node, others, generations)
        net.run(pause)
    net.heal()
    net.go_on(*range(1, 8))
    net.run(15)
    assert net.agreed()
    before, workers = net.frames, len(net.of())
    net.run(5)
    assert net.frames - before <= workers * (workers + 1) * (5 / HEARTBEAT_S + 1), "only heartbeats, probes and seeds"
    for process in net.of():
        assert net.statuses()[process.node] in (ALIVE, LEAVING)
        assert not process.membership.was_paused(net.clock_of(process))


# -- copies that move


def give(net: Network, node: int, position: int, vector: Vector, stamp: int = 1) -> None:
    """Let the workers of a node be told of a key's new vector."""
    for process in net.of(node):
        view = process.membership.view
        changed = view.with_vectors(view.vectors.changed([position], vector, stamp))
        process.membership.learn(changed, net.clock_of(process))


def test_copies_have_moved_when_every_worker_has_all_that_it_should() -> None:
    net = Network()
    net.cluster(1, 2, 3)
    net.stuck.add(3)
    give(net, 1, 7, Vector(3))
    net.run(2)
    assert {view.vectors.moving for view in net.views()} == {True}, "those who have the key answer for it still"
    for process in net.of(3):
        process.membership.completed(process.membership.view.version)
    net.run(1.5)
    assert net.agreed()
    assert {tuple(view.vectors.serving.items()) for view in net.views()} == {((7, Vector(3)),)}


def test_copies_move_while_a_node_dies() -> None:
    net = Network()
    net.cluster(1, 2, 3)
    net.crash(3)
    give(net, 1, 7, Vector(3))
    net.run(1)
    assert {view.vectors.moving for view in net.views()} == {True}, "nobody says that the one who is silent is complete"
    net.run(DEAD_AFTER_S + 2)
    assert {view.vectors.moving for view in net.views()} == {False}


def test_of_vectors_from_both_sides_of_a_cut_the_later_one_holds() -> None:
    net = Network()
    net.cluster(1, 2)
    net.cut({1}, {2})
    give(net, 1, 7, Vector(3), stamp=8)
    give(net, 2, 7, Vector(0, 1), stamp=9)
    net.run(10)
    net.heal()
    net.run(10)
    assert net.agreed()
    assert {tuple(view.vectors.serving.items()) for view in net.views()} == {((7, Vector(0, 1)),)}
