"""A view survives the wire, nothing but a valid view is accepted from it, and views are a lattice."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace
from functools import reduce

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna import messages
from anna.address import TcpAddress, UnixAddress, parse_address
from anna.errors import ProtocolError
from anna.messages import ALIVE, DEAD, JOINING, LEAVING, LEFT, Heartbeat, NodeInfo, NodeStatus, View, WorkerInfo
from anna.vectors import OwnVector, Vector, Vectors

ADDRESSES = st.lists(
    st.sampled_from(["unix:/run/a/w0.sock", "tcp://127.0.0.1:43210", "tcp://[::1]:1"]), min_size=1, max_size=8
).map(tuple)


STATUSES = st.sampled_from(NodeStatus)
COUNTS = st.integers(0, 2)
NODE_IDS = st.integers(1, 2**64 - 1)
BEFORE = st.none() | st.builds(Vector, COUNTS)


@st.composite
def views(draw: st.DrawFn, node_ids: st.SearchStrategy[int] = NODE_IDS) -> View:
    """Draw a view. A worker id tells its node, so that views of the same nodes can be joined."""
    nodes = []
    for node_id in sorted(draw(st.sets(node_ids, max_size=4))):
        workers = []
        for seat in sorted(draw(st.sets(st.integers(0, 1023), min_size=1, max_size=4))):
            incarnation = draw(st.integers(0, 3))
            worker_id = (node_id % 2**50 * 1024 + seat) * 4 + incarnation + 1
            workers.append(WorkerInfo(worker_id, draw(ADDRESSES), seat))
        counts = draw(COUNTS), draw(COUNTS), draw(STATUSES), draw(COUNTS)
        nodes.append(NodeInfo(node_id, tuple(workers), *counts, draw(st.sampled_from(["memory", "disk"]))))
    version = draw(st.integers(0, 9) | st.integers(0, 2**64 - 1))
    positions = sorted(draw(st.sets(st.integers(1, 2))))
    vectors = tuple(OwnVector(p, 1 + draw(COUNTS), Vector(draw(COUNTS)), draw(BEFORE)) for p in positions)
    return View(version, tuple(nodes), draw(st.integers(1, 3)), draw(COUNTS), Vectors(draw(COUNTS), own=vectors))


ALIKE = views(st.integers(1, 3))
"""Views of at most three nodes, whose records often concern the same ones."""


@given(views())
def test_view_survives_the_wire(view: View) -> None:
    received = View.from_wire(msgpack.unpackb(msgpack.packb(view.to_wire())))
    assert received == view
    assert all(type(node.status) is NodeStatus for node in received.nodes)


@given(views())
def test_workers_are_listed_by_node_and_seat_and_found_by_id(view: View) -> None:
    assert list(view.workers) == [w for n in view.nodes if n.status < DEAD for w in n.workers]
    assert [view.index_of(w.worker_id) for w in view.workers] == list(range(len(view.workers)))
    assert all(view.node_of(w.worker_id) is n for n in view.nodes for w in n.workers)
    assert [view.node(n.node_id) for n in view.nodes] == list(view.nodes)


WORKER = [7, ["unix:/run/w0"], 0]
LIFE = [0, 0, 1, 0, "memory"]


def view_data(*nodes: object) -> list[object]:
    return [1, list(nodes), 1, 0]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (None, "view must be list, got NoneType"),
        ([], "a view has 4 or 8 fields, got 0"),
        ([1, []], "a view has 4 or 8 fields, got 2"),
        ([True, [], 1, 0], "view version must be int, got bool"),
        ([-1, [], 1, 0], "view version is -1"),
        ([2**64, [], 1, 0], "view version is 18,446,744,073,709,551,616"),
        ([1, {}, 1, 0], "nodes must be list, got dict"),
        ([1, [], "1", 0], "replication factor must be int, got str"),
        ([1, [], 0, 0], "replication factor is 0; it must be 1 to 16"),
        ([1, [], 1, -1], "stamp of the replication factor is -1"),
        (view_data([3, [WORKER]]), "a node has 7 fields, got 2"),
        (view_data([0, [WORKER], *LIFE]), "node id is 0"),
        (view_data([3, [], *LIFE]), "number of workers of a node is 0; it must be 1 to 1,024"),
        (view_data([3, [[0, ["unix:/run/w0"], 0]], *LIFE]), "worker id is 0"),
        (view_data([3, [[7, [], 0]], *LIFE]), "number of addresses of a worker is 0; it must be 1 to 8"),
        (view_data([3, [[7, ["unix:/run/w0"] * 9, 0]], *LIFE]), "number of addresses of a worker is 9"),
        (view_data([3, [[7, ["http://x"], 0]], *LIFE]), "'http://x' is neither"),
        (view_data([3, [[7, [b"unix:/x"], 0]], *LIFE]), "address must be str, got bytes"),
        (view_data([3, [[7, ["unix:/run/w0"], 1024]], *LIFE]), "seat is 1,024"),
        (view_data([3, [WORKER, [8, ["unix:/run/w1"], 0]], *LIFE]), "seats of node 0x3 must ascend"),
        (view_data([3, [WORKER], *LIFE], [3, [[8, ["unix:/x"], 0]], *LIFE]), "node ids of a view must ascend"),
        (view_data([3, [WORKER], *LIFE], [4, [WORKER], *LIFE]), "2 workers, 1 ids"),
        (view_data([3, [WORKER], -1, 0, 1, 0, "disk"]), "generation is -1"),
        (view_data([3, [WORKER], 0, 2**64, 1, 0, "disk"]), "refutation is 18,446,744,073,709,551,616"),
        (view_data([3, [WORKER], 0, 0, 5, 0, "disk"]), "5 is not a valid NodeStatus"),
        (view_data([3, [WORKER], 0, 0, True, 0, "disk"]), "status must be int, got bool"),
        (view_data([3, [WORKER], 0, 0, 1, None, "disk"]), "revision must be int, got NoneType"),
        (view_data([3, [WORKER], 0, 0, 1, 0, "tape"]), "tier is 'tape'; it must be one of memory, disk"),
    ],
)
def test_a_view_that_is_not_one_is_refused_with_the_reason(data: object, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=re.escape(complaint)):
        View.from_wire(data)


def test_a_replaced_worker_keeps_the_seat_and_moves_the_view_on() -> None:
    first = View(4, (NodeInfo(3, (WorkerInfo(7, ("unix:/a",), 0), WorkerInfo(8, ("unix:/b",), 1))),))
    after = first.with_worker(3, WorkerInfo(9, ("unix:/a",), 0))
    seated = WorkerInfo(9, ("unix:/a",), 0), WorkerInfo(8, ("unix:/b",), 1)
    assert after == View(5, (NodeInfo(3, seated, revision=1),))
    assert after.join(first) == after
    with pytest.raises(KeyError, match="names no node 0x4"):
        first.with_worker(4, WorkerInfo(9, ("unix:/a",), 0))


def test_joined_nodes_are_kept_in_order() -> None:
    nine, two = node(9), node(2)
    view = View(0, ()).with_node(nine).with_node(two)
    assert (view.version, [n.node_id for n in view.nodes]) == (2, [2, 9])


# -- the lattice


def node(node_id: int, status: NodeStatus = ALIVE, *, generation: int = 0, refutation: int = 0) -> NodeInfo:
    return NodeInfo(node_id, (WorkerInfo(node_id, (f"unix:/{node_id}",)),), generation, refutation, status)


def content(view: View) -> View:
    """Return what a view says: all but the version, which is only a hint."""
    return replace(view, version=0)


@given(ALIKE, ALIKE)
def test_join_is_commutative(one: View, other: View) -> None:
    assert one.join(other) == other.join(one)


@given(ALIKE, ALIKE, ALIKE)
def test_join_is_associative_in_all_but_the_version(one: View, two: View, three: View) -> None:
    assert content(one.join(two).join(three)) == content(one.join(two.join(three)))


@given(views())
def test_join_is_idempotent(view: View) -> None:
    assert view.join(view) == view


@given(ALIKE, ALIKE)
def test_whoever_learns_something_has_a_greater_version_after(one: View, other: View) -> None:
    joined = one.join(other)
    for side in (one, other):
        learnt = content(joined) != content(side)
        assert joined.version == 2**64 - 1 or joined.version >= side.version + learnt
    assert joined.join(one) == joined


@given(st.lists(ALIKE, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_views_are_equal_versions_included_once_all_have_joined_everything(
    start: list[View], order: random.Random
) -> None:
    known = list(start)
    pairs = list(itertools.permutations(range(len(known)), 2))
    for _ in range(3):  # all content arrives in one round, the greatest version of it in the next
        order.shuffle(pairs)
        for sender, receiver in pairs:
            known[receiver] = known[receiver].join(known[sender])
    everything = start[0]
    for view in start[1:]:
        everything = everything.join(view)
    assert {content(view) for view in known} == {content(everything)}
    assert len({view.version for view in known}) == 1


@given(ALIKE, ALIKE)
def test_digests_are_equal_when_all_but_the_version_is(one: View, other: View) -> None:
    assert (one.digest == other.digest) == (content(one) == content(other))
    assert replace(one, version=7).digest == one.digest


def test_statuses_rise_until_the_node_itself_refutes() -> None:
    rising = [node(3, status) for status in NodeStatus]
    assert [a.join(b).status for a, b in itertools.pairwise(rising)] == [ALIVE, LEAVING, DEAD, LEFT]
    assert node(3, DEAD).join(node(3, ALIVE, refutation=1)) == node(3, ALIVE, refutation=1)


def test_a_node_that_left_stays_so_whoever_starts_from_its_data() -> None:
    left = node(3, LEFT)
    assert left.join(node(3, ALIVE, refutation=9)) == left
    assert left.join(node(3, JOINING, generation=1)).status == LEFT
    assert node(3, JOINING, generation=1).join(left).status == LEFT


def test_a_replaced_worker_and_a_new_status_are_both_kept() -> None:
    before = View(1, (node(3),))
    replaced, dead = before.with_worker(3, WorkerInfo(8, ("unix:/3",))), before.with_node(node(3, DEAD))
    (joined,) = replaced.join(dead).nodes
    assert (joined.status, joined.workers) == (DEAD, (WorkerInfo(8, ("unix:/3",)),))


def test_a_new_generation_is_taken_whole() -> None:
    old = NodeInfo(3, (WorkerInfo(7, ("unix:/a",)),), 1, 4, LEAVING, 5, "memory")
    new = NodeInfo(3, (WorkerInfo(9, ("unix:/b",)),), 2, 0, JOINING, 0, "disk")
    assert old.join(new) == new.join(old) == new


def test_records_of_two_nodes_have_no_join() -> None:
    with pytest.raises(ValueError, match="records of two nodes, 0x3 and 0x4"):
        node(3).join(node(4))


def test_the_later_replication_factor_wins() -> None:
    """D18: a factor is part of the view, which every worker has, and so is never replaced by a default."""
    told, default = View(1, (node(3),), factor=3, factor_stamp=9), View(8, (node(3),))
    assert (default.join(told).factor, default.join(told).version) == (3, 9)
    assert told.join(View(1, (), factor=2, factor_stamp=10)).factor == 2


def test_who_serves_who_takes_over_and_who_can_be_talked_to() -> None:
    """D11: a joining node is told of writes and is not asked; a leaving one is asked and hands over."""
    view = View(1, tuple(node(1 + status, status) for status in NodeStatus))
    assert [n.status for n in view.serving] == [ALIVE, LEAVING]
    assert [n.status for n in view.target] == [JOINING, ALIVE]
    assert [view.node_of(w.worker_id).status for w in view.workers] == [JOINING, ALIVE, LEAVING]
    assert view.node_of(4) == node(4, DEAD)
    with pytest.raises(KeyError, match="names no worker 0x4"):
        view.index_of(4)
    for missing in (view.node, view.node_of):
        with pytest.raises(KeyError, match=r"names no (node|worker) 0x9"):
            missing(9)


# -- heartbeats

HEARTBEAT = Heartbeat("anna", 7, 3, "tcp://127.0.0.1:1", 1, 2, 3, 4, 5, ((3, 0, 9),), View(3, (node(3),)), b"rider")


def test_a_heartbeat_survives_the_wire() -> None:
    assert Heartbeat.decode(HEARTBEAT.encode()) == HEARTBEAT
    without = replace(HEARTBEAT, view=None)
    assert Heartbeat.decode(without.encode()) == without
    assert Heartbeat.decode(HEARTBEAT.encode(), known=HEARTBEAT.digest) == without
    assert Heartbeat.decode(HEARTBEAT.encode(), known=9) == HEARTBEAT


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (0, "c" * 65, "number of bytes of a cluster's name is 65; it must be 0 to 64"),
        (0, 1, "cluster must be str, got int"),
        (1, 0, "sender of a heartbeat is 0"),
        (2, 0, "node of a heartbeat is 0"),
        (3, "http://x", "'http://x' is neither"),
        (4, -1, "number in a heartbeat is -1"),
        (8, 1.0, "number in a heartbeat must be int, got float"),
        (9, {}, "beats must be list, got dict"),
        (9, [[1, 2]], "a beat has 3 fields, got 2"),
        (9, [[1, 2, -3]], "number in a beat is -3"),
        (10, [], "a view has 4 or 8 fields, got 0"),
        (11, "rider", "rider must be bytes, got str"),
        (11, b"r" * 1025, "number of bytes of a rider is 1,025; it must be 0 to 1,024"),
    ],
)
def test_a_heartbeat_that_is_not_one_is_refused_with_the_reason(place: int, value: object, complaint: str) -> None:
    fields = msgpack.unpackb(HEARTBEAT.encode())
    fields[place] = value
    with pytest.raises(ProtocolError, match=re.escape(complaint)):
        Heartbeat.decode(msgpack.packb(fields))


@given(st.binary(max_size=200))
def test_random_bytes_are_no_heartbeat(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Heartbeat.decode(data)


@given(st.integers(0, 200), st.binary(max_size=3))
def test_a_damaged_heartbeat_is_refused_or_is_another(place: int, damage: bytes) -> None:
    data = HEARTBEAT.encode()
    try:
        Heartbeat.decode(data[:place] + damage + data[place + len(damage) :])
    except ProtocolError:
        return


# -- addresses


@pytest.mark.parametrize(
    ("text", "address", "local"),
    [
        ("unix:/run/anna/w0", UnixAddress("/run/anna/w0"), True),
        ("tcp://127.0.0.1:6450", TcpAddress("127.0.0.1", 6450), True),
        ("tcp://127.8.9.1:0", TcpAddress("127.8.9.1", 0), True),
        ("tcp://localhost:6450", TcpAddress("localhost", 6450), True),
        ("tcp://[::1]:6450", TcpAddress("::1", 6450), True),
        ("tcp://0.0.0.0:6450", TcpAddress("0.0.0.0", 6450), False),
        ("tcp://db.example:1", TcpAddress("db.example", 1), False),
        ("tcp://[2001:db8::5]:65535", TcpAddress("2001:db8::5", 65535), False),
    ],
)
def test_addresses_are_parsed_and_printed_alike(text: str, address: object, local: bool) -> None:
    parsed = parse_address(text)
    assert (parsed, str(parsed), parsed.local) == (address, text, local)


@pytest.mark.parametrize(
    "text",
    ["", "host:1", "unix:", "unix:a\0b", "unix:" + "p" * 108, "tcp://:1", "tcp://h", "tcp://h:", "tcp://h:x", "tcp://h:65536",
     "tcp://::1:5", "tcp://a b:1", "tcp://h:١", "tcp://" + "h" * 300 + ":1"],
)  # fmt: skip
def test_a_malformed_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|socket path"):
        parse_address(text)


def test_a_view_remembers_those_that_left_last_and_forgets_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A view grew by a record for each node that there ever was, and so it went to whoever asked a wrong worker."""
    monkeypatch.setattr(messages, "LEFT_NODES_MAX", 3)
    view = View(1, (node(1),))
    for number in range(2, 40):
        view = view.with_node(node(number, JOINING))
        view = view.with_node(view.node(number).left(view.version))
    assert [(n.node_id, n.status) for n in view.nodes] == [(1, ALIVE), (37, LEFT), (38, LEFT), (39, LEFT)]


@given(st.lists(st.sets(st.integers(1, 9), max_size=6), min_size=3, max_size=3))
def test_what_is_forgotten_does_not_depend_on_who_told_whom_first(told: list[set[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "LEFT_NODES_MAX", 3)
        views = []
        for numbers in told:
            view = View(1, (node(10),))
            for number in sorted(numbers):
                view = view.with_node(node(number).left(7 * number % 10))
            views.append(view)
        ends = {reduce(View.join, order).nodes for order in itertools.permutations(views)}
        assert len(ends) == 1
        ages = sorted((7 * number % 10, number) for number in set().union(*told))
        assert {n.node_id for n in ends.pop()} == {10, *(number for _, number in ages[-3:])}
