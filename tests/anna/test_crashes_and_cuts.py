"""Nodes that crash, are cut off or stand still: who is called dead, by whom, and who takes it back."""

from __future__ import annotations

import pytest

from anna import config
from anna.messages import ALIVE, DEAD
from tests.anna.heartbeat_network import SECOND, Network, address, statuses_of, worker_id

HEARTBEAT_S = config.HEARTBEAT_US / 1e6
DEAD_AFTER_S = config.DEAD_AFTER_US / 1e6
DELAY_S = 0.02


# -- crash


@pytest.mark.parametrize("nodes", [3, 5, 7])
def test_a_crash_is_found_within_three_seconds_and_a_heartbeat(nodes: int) -> None:
    """D15: nodes watch each other."""
    net = Network()
    net.cluster(*range(1, nodes + 1))
    net.crash(2)
    took = net.run_until(lambda: net.sees(DEAD, 2), DEAD_AFTER_S + HEARTBEAT_S + 2 * DELAY_S)
    assert took >= DEAD_AFTER_S - HEARTBEAT_S
    assert net.agreed()


def test_a_replaced_worker_takes_its_seat_and_its_node_lives_on() -> None:
    net = Network()
    net.cluster(1, 2, workers=2)
    after = net.replace_worker(2, (address(1),))
    net.run(2)
    assert net.agreed()
    assert net.statuses() == statuses_of(1, 2)
    assert net.views()[0].node(2).workers == after.workers
    assert len(net.of()) == 4


def test_a_node_whose_only_worker_was_replaced_is_known_again_by_its_seed() -> None:
    net = Network()
    net.cluster(1, 2, 3)
    after = net.replace_worker(2, (address(3),))
    net.run(2)
    assert net.agreed()
    assert net.statuses() == statuses_of(1, 2, 3)
    assert net.views()[0].node(2).workers == after.workers


def test_a_node_with_one_worker_left_is_not_dead() -> None:
    net = Network()
    net.cluster(1, 2, 3, workers=2)
    del net.processes[worker_id(2, 0)]
    net.run(30)
    assert net.statuses() == statuses_of(1, 2, 3)


def test_a_worker_alone_calls_all_others_dead() -> None:
    """P10: its side stays available."""
    net = Network()
    net.cluster(1, 2, 3)
    net.crash(2, 3)
    net.run(DEAD_AFTER_S + HEARTBEAT_S)
    assert net.statuses() == {1: ALIVE, 2: DEAD, 3: DEAD}


def test_a_joining_node_that_crashes_is_called_dead() -> None:
    net = Network()
    net.cluster(1, 2)
    net.stuck.add(3)
    net.start(3, seeds=(address(2),))
    net.run(2)
    net.crash(3)
    net.run(5)
    assert net.statuses() == {1: ALIVE, 2: ALIVE, 3: DEAD}


# -- cuts


def test_a_one_way_cut_kills_nobody() -> None:
    net = Network()
    net.cluster(1, 2, 3)
    net.cut({1}, {2}, one_way=True)
    version = net.views()[0].version
    net.run(60)
    assert net.statuses() == statuses_of(1, 2, 3)
    assert net.views()[0].version == version


def test_nobody_dies_while_a_path_is_left() -> None:
    """Of seven nodes in a ring each hears only its neighbours; what it hears of the others is enough."""
    net = Network()
    net.cluster(*range(1, 8))
    for one in range(7):
        net.cut({1 + one}, {1 + (one + far) % 7 for far in (2, 3)})
    version = net.views()[0].version
    net.run(60)
    assert net.statuses() == statuses_of(*range(1, 8))
    assert net.views()[0].version == version


def test_both_sides_of_a_cut_go_on_and_agree_after_it() -> None:
    """P10: each side calls the other dead; after it every node takes that back."""
    net = Network()
    net.cluster(1, 2, 3, 4, 5)
    net.cut({1, 2}, {3, 4, 5})
    net.run(DEAD_AFTER_S + 2 * HEARTBEAT_S)
    assert net.statuses(1, 2) == {1: ALIVE, 2: ALIVE, 3: DEAD, 4: DEAD, 5: DEAD}
    assert net.statuses(3, 4, 5) == {1: DEAD, 2: DEAD, 3: ALIVE, 4: ALIVE, 5: ALIVE}
    net.heal()
    net.run_until(lambda: net.agreed() and len(net.views()[0].serving) == 5, 3)
    assert all(node.refutation == 1 for node in net.views()[0].nodes)


def test_a_node_that_joined_one_side_of_a_cut_is_known_to_both_after_it() -> None:
    net = Network()
    net.cluster(1, 2, 3, 4)
    net.cut({1, 2, 5}, {3, 4})
    net.run(5)
    net.start(5, seeds=(address(1),))
    net.run(3)
    assert net.views()[0].serving == net.of(5)[0].membership.view.serving
    net.heal()
    net.run(4)
    assert net.statuses() == statuses_of(1, 2, 3, 4, 5)


# -- pauses


def test_a_node_that_was_stopped_is_called_dead_and_takes_it_back() -> None:
    """P12."""
    net = Network()
    net.cluster(1, 2, 3)
    net.stop(2)
    net.run(8)
    assert net.statuses() == {1: ALIVE, 2: DEAD, 3: ALIVE}
    net.go_on(2)
    net.run_until(lambda: net.agreed() and net.statuses() == statuses_of(1, 2, 3), 2)
    net.run(10)
    assert net.views()[0].node(2).refutation == 1


def test_a_node_that_was_stopped_calls_nobody_dead() -> None:
    """P12: it heard nobody for ten minutes, and that was its own fault."""
    net = Network()
    net.cluster(1, 2, 3)
    (process,) = net.of(2)
    process.views.clear()
    process.views.append(process.membership.view)
    net.stop(2)
    net.run(600)
    process.inbox.clear()
    net.go_on(2)
    net.run(10)
    assert all(view.node(other).status == ALIVE for view in process.views for other in (1, 3))
    assert net.statuses() == statuses_of(1, 2, 3)


def test_all_nodes_stopped_at_once_call_nobody_dead() -> None:
    net = Network()
    net.cluster(1, 2, 3)
    net.stop(1, 2, 3)
    net.run(60)
    net.go_on(1, 2, 3)
    net.run(10)
    assert net.statuses() == statuses_of(1, 2, 3)
    assert all(node.refutation == 0 for node in net.views()[0].nodes)


def test_a_worker_was_paused_until_the_others_answer_what_it_sends_now() -> None:
    """P12: what waited for it in its sockets is old, and tells nothing of what happened meanwhile."""
    net = Network(delay_s=(0.1, 0.1))
    net.cluster(1, 2, 3)
    (process,) = net.of(2)
    membership = process.membership
    assert not membership.was_paused(net.clock_of(process))
    net.stop(2)
    net.run(2.5)
    assert len(process.inbox) >= 4
    net.go_on(2)
    assert membership.was_paused(net.clock_of(process))
    net.run(0.15)
    assert membership.was_paused(net.clock_of(process))
    net.run(1)
    assert not membership.was_paused(net.clock_of(process))


def test_a_pause_is_noticed_by_whoever_asks_first() -> None:
    net = Network()
    net.cluster(1, 2)
    (process,) = net.of(1)
    now = net.clock_of(process)
    assert not process.membership.was_paused(now + SECOND)
    assert process.membership.was_paused(now + 4 * SECOND)


def test_a_worker_that_nobody_answers_was_paused_for_three_seconds_only() -> None:
    """P10: then it is on its own, and its side is to be available."""
    net = Network()
    net.cluster(1, 2)
    (process,) = net.of(1)
    net.stop(1)
    net.run(5)
    net.crash(2)
    net.go_on(1)
    assert process.membership.was_paused(net.clock_of(process))
    net.run(DEAD_AFTER_S)
    assert not process.membership.was_paused(net.clock_of(process))
