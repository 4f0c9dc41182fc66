"""Workers agree on who is in the cluster, whatever the network and their hosts do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anna import config, messages
from anna.errors import NoWorkers
from anna.membership import NEVER, Membership
from anna.messages import ALIVE, DEAD, JOINING, LEAVING, LEFT, Heartbeat, NodeInfo, View, WorkerInfo
from anna.vectors import Vector
from tests.anna.heartbeat_network import SECOND, Network, address, worker_id

HEARTBEAT_S = config.HEARTBEAT_US / 1e6
DEAD_AFTER_S = config.DEAD_AFTER_US / 1e6
DELAY_S = 0.02


def statuses_of(*alive: int) -> dict[int, int]:
    return dict.fromkeys(alive, ALIVE)


def id_of(node: NodeInfo) -> int:
    return node.node_id


def come_and_go(net: Network, node: int) -> None:
    """Let a node join through node 1, and leave."""
    net.start(node, seeds=(address(1),))
    net.run_until(lambda: net.statuses(1).get(node) == ALIVE, 10)
    (process,) = net.of(node)
    process.membership.leave(net.clock_of(process))
    net.run_until(lambda: net.statuses(1).get(node, LEFT) == LEFT and process.has_stopped_itself, 10)


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


# -- generations and incarnations


def test_a_restarted_node_is_its_next_generation() -> None:
    net = Network()
    net.cluster(1, 2, 3)
    net.crash(2)
    net.run(1)
    net.start(2, generation=1, seeds=(address(3),))
    net.run_until(lambda: net.agreed() and net.statuses() == statuses_of(1, 2, 3), 4)
    assert net.views()[0].node_of(worker_id(2, generation=1)).generation == 1


def test_a_node_whose_next_generation_lives_must_stop() -> None:
    net = Network()
    net.cluster(1, 2, 3)
    (old,) = net.of(2)
    net.stop(2)
    net.run(5)
    net.start(2, generation=1, seeds=(address(1),), host=9)
    net.run(5)
    net.processes[old.membership.mine] = old
    net.go_on(2)
    net.run(3)
    assert (old.membership.superseded, old.has_stopped_itself) == (True, True)
    assert old.membership.poll(net.clock_of(old)) == []
    assert net.statuses() == statuses_of(1, 2, 3)


def test_a_node_that_was_away_for_longer_than_the_tombstone_time_must_stop() -> None:
    """P23: it would bring back what was deleted while it was away."""
    net = Network()
    net.tombstone_s = 60
    net.cluster(1, 2, 3)
    (old,) = net.of(2)
    net.stop(2)
    net.run(62)
    assert net.statuses() == {1: ALIVE, 2: DEAD, 3: ALIVE}
    net.run(3)
    assert net.statuses() == {1: ALIVE, 2: LEFT, 3: ALIVE}
    net.go_on(2)
    net.run(2)
    assert (old.membership.superseded, old.has_stopped_itself) == (True, True)
    assert net.statuses() == {1: ALIVE, 2: LEFT, 3: ALIVE}


def test_nodes_that_come_and_go_leave_a_bounded_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "LEFT_NODES_MAX", 3)
    net = Network()
    net.cluster(1, 2)
    for node in range(3, 10):
        come_and_go(net, node)
    net.run_until(net.agreed, 5)
    assert net.statuses(1) == {1: ALIVE, 2: ALIVE, 7: LEFT, 8: LEFT, 9: LEFT}


def test_a_node_that_was_cut_off_while_another_left_and_was_forgotten_brings_back_only_its_death(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It called the other dead meanwhile. So do all then, as of any dead node, and the record goes again."""
    monkeypatch.setattr(messages, "LEFT_NODES_MAX", 3)
    net = Network()
    net.tombstone_s = 60
    net.cluster(1, 2, 3, 4)
    net.cut({2}, {1, *range(3, 10)})
    (leaver,) = net.of(4)
    net.run(5)
    leaver.membership.leave(net.clock_of(leaver))
    net.run(5)
    for node in range(5, 10):
        come_and_go(net, node)
    assert 4 not in net.statuses(1)
    net.heal()
    net.run(8)
    assert net.agreed()
    assert net.statuses(1) == {1: ALIVE, 2: ALIVE, 3: ALIVE, 4: DEAD, 7: LEFT, 8: LEFT, 9: LEFT}
    net.run(70)
    assert net.agreed()
    assert net.statuses(1) == {1: ALIVE, 2: ALIVE, 3: ALIVE, 4: LEFT, 8: LEFT, 9: LEFT}


def test_a_node_that_learns_that_it_left_and_was_forgotten_at_once_must_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "LEFT_NODES_MAX", 1)
    net = Network()
    net.cluster(1, 2, 3)
    net.cut({3}, {1, 2})
    (old,) = net.of(3)
    view = net.of(1)[0].membership.view
    both = view.with_node(view.node(3).left(8))
    later = both.with_node(replace(both.node(2), node_id=9, workers=(WorkerInfo(900, (address(9),)),)).left(9))
    old.membership.learn(replace(later, nodes=tuple(sorted((*later.nodes, both.node(3)), key=id_of))), net.now)
    assert [node.node_id for node in old.membership.view.nodes] == [1, 2, 9]
    assert (old.membership.superseded, old.membership.has_left) == (True, False)
    assert old.membership.poll(net.clock_of(old)) == []
    old.membership.check()


def test_a_node_that_starts_again_from_the_data_of_one_that_left_must_stop() -> None:
    """P23: its disks hold what may have been deleted since, and the deletes are forgotten."""
    net = Network()
    net.cluster(1, 2, 3)
    (leaver,) = net.of(2)
    leaver.membership.leave(net.clock_of(leaver))
    net.run(5)
    net.start(2, generation=1, seeds=(address(1),))
    (again,) = net.of(2)
    net.run(5)
    assert (again.membership.superseded, again.has_stopped_itself) == (True, True)
    assert net.statuses() == {1: ALIVE, 2: LEFT, 3: ALIVE}


def test_what_an_older_incarnation_sent_is_no_sign_of_life() -> None:
    net = Network()
    net.cluster(1, 2, workers=2)
    (one, *_) = net.of(1)
    late = Heartbeat("anna", worker_id(2, 0), 2, address(2), 10**6, 0, 1, 1, 1, (), None, b"old")
    net.replace_worker(2, (address(1),))
    net.run(1)
    assert one.membership.poll(net.clock_of(one)) == []
    stale = one.membership.counts.stale
    assert one.membership.hear(late.sender, late.encode(), net.clock_of(one)) == b""
    assert one.membership.counts.stale == stale + 1
    assert address(2) in [target for target, _ in one.membership.poll(net.clock_of(one))]


# -- garbage collection


def test_a_dead_node_holds_back_what_may_be_forgotten_until_it_is_back_and_whole() -> None:
    """P23: a delete that it missed must still be known when it is back."""
    net = Network()
    net.cluster(1, 2, 3)
    (one,) = net.of(1)
    assert one.membership.gc_floor(100) == 100
    net.stop(2)
    net.run(5)
    assert one.membership.gc_floor(500) == 100
    net.stuck.add(2)
    net.go_on(2)
    net.run(5)
    assert net.statuses() == statuses_of(1, 2, 3)
    assert one.membership.gc_floor(900) == 100
    net.stuck.clear()
    for process in net.of(2):
        process.membership.completed(process.membership.view.version)
    net.run(2)
    assert one.membership.gc_floor(1000) == 1000


def test_a_node_that_may_not_come_back_holds_nothing_back() -> None:
    net = Network()
    net.tombstone_s = 20
    net.cluster(1, 2, 3)
    (one,) = net.of(1)
    one.membership.gc_floor(100)
    net.crash(2)
    net.run(10)
    assert one.membership.gc_floor(500) == 100
    net.run(20)
    assert one.membership.gc_floor(1000) == 1000


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
