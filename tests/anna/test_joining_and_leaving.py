"""Nodes that join and leave: who is told so, who answers meanwhile, and when it is over."""

from __future__ import annotations

import pytest

from anna import config
from anna.errors import NoWorkers
from anna.membership import Membership
from anna.messages import ALIVE, DEAD, JOINING, LEAVING, LEFT, NodeInfo, View, WorkerInfo
from anna.seeds import NEVER
from tests.anna.heartbeat_network import Network, address, statuses_of

DEAD_AFTER_S = config.DEAD_AFTER_US / 1e6


# -- join


def test_a_single_node_is_alive_and_has_nothing_to_do() -> None:
    net = Network()
    net.start(1)
    net.run(60)
    assert (net.statuses(), net.frames) == ({1: ALIVE}, 0)
    assert net.of(1)[0].membership.due() == NEVER


def test_a_node_that_joins_is_alive_within_two_seconds() -> None:
    net = Network()
    net.start(1, workers=2)
    net.start(2, workers=2, seeds=(address(1),))
    assert net.run_until(lambda: net.agreed() and net.views()[0].node(2).status == ALIVE, 2.5) > 0.2


def test_a_node_is_joining_as_long_as_one_of_its_workers_is_not_complete() -> None:
    """D11: it answers for no key before it has them all."""
    net = Network()
    net.start(1)
    net.stuck.add(2)
    net.start(2, workers=2, seeds=(address(1),))
    net.run(10)
    assert net.statuses() == {1: ALIVE, 2: JOINING}
    first, second = net.of(2)
    first.membership.completed(first.membership.view.version)
    net.run(5)
    assert net.statuses() == {1: ALIVE, 2: JOINING}
    second.membership.completed(second.membership.view.version)
    net.run(1.5)
    assert net.statuses() == {1: ALIVE, 2: ALIVE}


def test_a_node_is_joining_as_long_as_somebody_does_not_know_it() -> None:
    """D11: whoever moves keys by another view may still have some of them."""
    net = Network()
    net.cluster(1, 2)
    net.cut({2}, {1, 3})
    net.start(3, seeds=(address(1),))
    net.run(2)
    assert net.statuses(1, 3) == {1: ALIVE, 2: ALIVE, 3: JOINING}
    net.heal()
    net.run(2)
    assert net.statuses() == statuses_of(1, 2, 3)


def test_nodes_that_join_at_once_learn_of_each_other() -> None:
    net = Network()
    net.start(1)
    for node in (2, 3, 4, 5):
        net.start(node, workers=2, seeds=(address(1),))
    net.run_until(lambda: net.agreed() and len(net.views()[0].serving) == 5, 6)


def test_a_first_cluster_may_start_with_seeds_only() -> None:
    """D25: nobody needs to be there first, when those who start know each other's addresses."""
    net = Network()
    for node in (1, 2, 3):
        net.start(node, seeds=tuple(address(n) for n in (1, 2, 3)))
    net.run_until(lambda: net.agreed() and len(net.views()[0].serving) == 3, 6)


def test_nodes_that_find_only_each_other_wait_for_the_cluster_that_they_were_told_of() -> None:
    """D11: between themselves they have every key that they know of, and that is none."""
    net = Network()
    for node in (2, 3):
        net.start(node, seeds=tuple(address(n) for n in (1, 2, 3)))
    net.run(20)
    assert net.statuses() == {2: JOINING, 3: JOINING}
    net.start(1)
    net.run_until(lambda: net.agreed() and len(net.views()[0].serving) == 3, 20)


def test_seeds_that_are_down_are_passed_over() -> None:
    """D25: a start does not block on a seed; the next is tried at once."""
    net = Network()
    net.start(1)
    net.start(2, seeds=(address(8), address(9), address(1)))
    net.run_until(lambda: net.agreed() and len(net.views()[0].serving) == 2, 3)


def test_seeds_are_tried_less_often_while_none_answers() -> None:
    """D25: and for ever, each in turn, at most five seconds after the last."""
    net = Network()
    net.start(2, seeds=(address(8), address(9)))
    net.run(60)
    assert 20 <= net.frames <= 40
    net.start(8)
    net.run(12)
    assert net.statuses() == statuses_of(2, 8)


def test_a_node_that_hears_nobody_asks_its_seeds_again() -> None:
    """D25: also long after the start. Here whoever it joined has left, and a newcomer has the seed's address."""
    net = Network()
    net.cluster(1, 2)
    (leaver,) = net.of(1)
    leaver.membership.leave(net.clock_of(leaver))
    net.run(5)
    net.start(9, host=1)
    net.run(DEAD_AFTER_S + 7)
    assert net.statuses() == {1: LEFT, 2: ALIVE, 9: ALIVE}


def test_another_cluster_is_not_joined() -> None:
    net = Network()
    net.start(1)
    net.start(2, seeds=(address(1),), cluster="other")
    net.run(30)
    assert (net.statuses(1), net.statuses(2)) == ({1: ALIVE}, {2: JOINING})
    assert net.of(1)[0].membership.counts.foreign > 5


# -- leave


def test_a_node_that_leaves_stays_until_the_others_have_its_keys() -> None:
    """P18: leaving ends when those who stay say that they are complete without it."""
    net = Network()
    net.cluster(1, 2, 3, workers=2)
    net.stuck.add(3)
    leaver, sibling = net.of(2)
    leaver.membership.leave(net.clock_of(leaver))
    net.run(20)
    assert net.statuses() == {1: ALIVE, 2: LEAVING, 3: ALIVE}
    assert not leaver.membership.has_left
    net.stuck.clear()
    for process in net.of(3):
        process.membership.completed(process.membership.view.version)
    net.run(3)
    assert net.statuses() == {1: ALIVE, 2: LEFT, 3: ALIVE}
    assert (leaver.has_stopped_itself, sibling.has_stopped_itself) == (True, True)
    net.run(20)
    assert net.statuses() == {1: ALIVE, 2: LEFT, 3: ALIVE}


def test_the_last_node_cannot_leave() -> None:
    net = Network()
    net.start(1)
    (process,) = net.of(1)
    with pytest.raises(NoWorkers, match="no other node could take over"):
        process.membership.leave(net.clock_of(process))


def test_a_node_that_leaves_while_the_others_die_stays() -> None:
    """P18: there is nobody to take its keys."""
    net = Network()
    net.cluster(1, 2)
    (leaver,) = net.of(1)
    net.stuck.add(2)
    leaver.membership.leave(net.clock_of(leaver))
    net.run(1)
    net.crash(2)
    net.run(20)
    assert net.statuses() == {1: LEAVING, 2: DEAD}


@pytest.mark.parametrize("told", [(9, 1), (9,)], ids=["both are told of it", "one is told of it"])
def test_two_newcomers_that_meet_do_not_begin_a_cluster_beside_the_one_that_serves(told: tuple[int, ...]) -> None:
    """P23: what they deleted would come back when they are heard of."""
    net = Network()
    net.cluster(1)
    net.cut({1}, {8, 9})
    net.start(8, seeds=tuple(address(node) for node in told))
    net.start(9, seeds=(address(8), address(1)))
    first: dict[int, set[int]] = {}
    for moment in range(1000):
        if moment == 200:
            net.heal()
        net.run(0.01)
        for process in net.of(8, 9):
            serving = {node.node_id for node in process.membership.view.serving}
            if serving:
                first.setdefault(process.node, serving)
    assert all(1 in serving for serving in first.values()), first
    assert net.statuses() == statuses_of(1, 8, 9)


def test_nodes_that_all_lost_power_begin_again_together() -> None:
    net = Network()
    for node in (1, 2, 3):
        net.start(node, generation=1, seeds=tuple(address(other) for other in (1, 2, 3) if other != node))
    net.run(2)
    assert net.statuses() == statuses_of(1, 2, 3)


def test_a_node_that_joins_while_the_only_other_one_leaves_serves_in_the_end() -> None:
    """P18: whoever hands over to it may be gone before it says that it is alive."""
    gone, mine = (NodeInfo(n, (WorkerInfo(n, (address(n),)),), status=s) for n, s in ((1, LEFT), (2, JOINING)))
    joiner = Membership(2, 2, View(7, (gone, mine)), (address(1),), 0)
    joiner.completed(7)
    joiner.poll(0)
    assert joiner.view.node(2).status == ALIVE


def test_a_joining_node_leaves_at_once() -> None:
    net = Network()
    net.cluster(1, 2)
    net.stuck.add(3)
    net.start(3, seeds=(address(1),))
    net.run(2)
    (leaver,) = net.of(3)
    leaver.membership.leave(net.clock_of(leaver))
    net.run(2)
    assert net.statuses() == {1: ALIVE, 2: ALIVE, 3: LEFT}
    assert leaver.has_stopped_itself


def test_a_node_that_joins_with_what_its_disks_have_hands_that_over_before_it_leaves() -> None:
    """P18: nobody else may have what it took before it crashed."""
    net = Network()
    net.cluster(1, 2)
    net.stuck.add(3)
    net.start(3, seeds=(address(1),), generation=2)
    net.run(2)
    (leaver,) = net.of(3)
    leaver.membership.leave(net.clock_of(leaver))
    net.run(2)
    assert net.statuses() == {1: ALIVE, 2: ALIVE, 3: JOINING}
    net.stuck.clear()
    leaver.membership.completed(leaver.membership.view.version)
    net.run(4)
    assert net.statuses() == {1: ALIVE, 2: ALIVE, 3: LEFT}
    assert [view.node(3).status for view in leaver.views][-3:] == [ALIVE, LEAVING, LEFT]


def test_a_leaving_node_that_is_called_dead_is_leaving_when_it_is_back() -> None:
    net = Network()
    net.cluster(1, 2, 3)
    net.stuck.add(3)
    (leaver,) = net.of(2)
    leaver.membership.leave(net.clock_of(leaver))
    net.run(1)
    net.stop(2)
    net.run(6)
    assert net.statuses() == {1: ALIVE, 2: DEAD, 3: ALIVE}
    net.go_on(2)
    net.run(2)
    assert net.statuses() == {1: ALIVE, 2: LEAVING, 3: ALIVE}
