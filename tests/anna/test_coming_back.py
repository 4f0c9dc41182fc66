"""Nodes that come back: generations, incarnations, and what may be forgotten while they are away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anna import messages
from anna.messages import ALIVE, DEAD, LEFT, Heartbeat, WorkerInfo
from tests.anna.heartbeat_network import Network, address, come_and_go, id_of, statuses_of, worker_id

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
