"""A view survives the wire, and nothing but a valid view is accepted from it."""

from __future__ import annotations

import re

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna.address import TcpAddress, UnixAddress, parse_address
from anna.errors import ProtocolError
from anna.messages import NodeInfo, View, WorkerInfo

ADDRESSES = st.lists(
    st.sampled_from(["unix:/run/a/w0.sock", "tcp://127.0.0.1:43210", "tcp://[::1]:1"]), min_size=1, max_size=8
).map(tuple)


@st.composite
def views(draw: st.DrawFn) -> View:
    node_ids = sorted(draw(st.sets(st.integers(1, 2**64 - 1), max_size=4)))
    nodes, next_id = [], draw(st.integers(1, 2**63))
    for node_id in node_ids:
        workers = []
        for seat in sorted(draw(st.sets(st.integers(0, 1023), min_size=1, max_size=4))):
            workers.append(WorkerInfo(next_id, draw(ADDRESSES), seat))
            next_id += 1
        nodes.append(NodeInfo(node_id, tuple(workers)))
    return View(draw(st.integers(0, 2**64 - 1)), tuple(nodes))


@given(views())
def test_view_survives_the_wire(view: View) -> None:
    assert View.from_wire(msgpack.unpackb(msgpack.packb(view.to_wire()))) == view


@given(views())
def test_workers_are_listed_by_node_and_seat_and_found_by_id(view: View) -> None:
    assert list(view.workers) == [w for n in view.nodes for w in n.workers]
    assert [view.index_of(w.worker_id) for w in view.workers] == list(range(len(view.workers)))


WORKER = [7, ["unix:/run/w0"], 0]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (None, "view must be list, got NoneType"),
        ([], "a view has 2 fields, got 0"),
        ([1, [], 3], "a view has 2 fields, got 3"),
        ([True, []], "view version must be int, got bool"),
        ([-1, []], "view version is -1"),
        ([2**64, []], "view version is 18,446,744,073,709,551,616"),
        ([1, {}], "nodes must be list, got dict"),
        ([1, [[0, [WORKER]]]], "node id is 0"),
        ([1, [[3, []]]], "number of workers of a node is 0; it must be 1 to 1,024"),
        ([1, [[3, [[0, ["unix:/run/w0"], 0]]]]], "worker id is 0"),
        ([1, [[3, [[7, [], 0]]]]], "number of addresses of a worker is 0; it must be 1 to 8"),
        ([1, [[3, [[7, ["unix:/run/w0"] * 9, 0]]]]], "number of addresses of a worker is 9"),
        ([1, [[3, [[7, ["http://x"], 0]]]]], "'http://x' is neither"),
        ([1, [[3, [[7, [b"unix:/x"], 0]]]]], "address must be str, got bytes"),
        ([1, [[3, [[7, ["unix:/run/w0"], 1024]]]]], "seat is 1,024"),
        ([1, [[3, [WORKER, [8, ["unix:/run/w1"], 0]]]]], "seats of node 0x3 must ascend"),
        ([1, [[3, [WORKER]], [3, [[8, ["unix:/x"], 0]]]]], "node ids of a view must ascend"),
        ([1, [[3, [WORKER]], [4, [WORKER]]]], "2 workers, 1 ids"),
    ],
)
def test_a_view_that_is_not_one_is_refused_with_the_reason(data: object, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=re.escape(complaint)):
        View.from_wire(data)


def test_a_replaced_worker_keeps_the_seat_and_moves_the_view_on() -> None:
    first = View(4, (NodeInfo(3, (WorkerInfo(7, ("unix:/a",), 0), WorkerInfo(8, ("unix:/b",), 1))),))
    after = first.with_worker(3, WorkerInfo(9, ("unix:/a",), 0))
    assert after == View(5, (NodeInfo(3, (WorkerInfo(9, ("unix:/a",), 0), WorkerInfo(8, ("unix:/b",), 1))),))
    with pytest.raises(KeyError, match="names no node 0x4"):
        first.with_worker(4, WorkerInfo(9, ("unix:/a",), 0))


def test_joined_nodes_are_kept_in_order() -> None:
    nine, two = (NodeInfo(i, (WorkerInfo(i, (f"unix:/{i}",)),)) for i in (9, 2))
    view = View(0, ()).with_node(nine).with_node(two)
    assert (view.version, [n.node_id for n in view.nodes]) == (2, [2, 9])


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
