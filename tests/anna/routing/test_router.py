"""A router knows the cluster whenever it was started, and answers every frame."""

from __future__ import annotations

import struct
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna import config
from anna.errors import ProtocolError
from anna.messages import DEAD, JOINING, View
from anna.requester import Requester
from anna.routing.router import Connection, Router
from tests.anna import frames
from tests.anna.frames import multi_get, multi_put, put, replies, request
from tests.anna.routing.views import node_of, view_of

SECOND = 1_000_000_000
HEARTBEAT = config.HEARTBEAT_US * 1000
PAIR = view_of({3: [0], 5: [0, 1]})
UNAVAILABLE = 23


def answer(view: View) -> bytes:
    """Return a worker's answer to a question for its view."""
    payload = msgpack.packb(view.to_wire())
    return frames.REPLY.pack(frames.REPLY.size - 4 + len(payload), 1, frames.OK, 0, 0, 1, 0, 0) + payload


def router(view: View = PAIR) -> Router:
    """Return a router that has learnt a view."""
    learnt = Router(("tcp://seed:1",), 0)
    learnt.poll(0)
    learnt.hear("tcp://seed:1", answer(view), 0)
    learnt.check()
    return learnt


def asked(core: Router, now: int) -> list[str]:
    """Return whom a router asks for the view at a time."""
    questions = core.poll(now)
    for _, data in questions:
        assert frames.HEADER.unpack(data)[2] == frames.VIEW
    return [address for address, _ in questions]


# -- learning


def test_a_restarted_router_learns_the_view_at_its_start() -> None:
    """D31: it asks, and does not wait for the next join."""
    core = Router(("tcp://seed:1",), 7)
    assert (core.due(), asked(core, 7)) == (7, ["tcp://seed:1"])
    core.hear("tcp://seed:1", answer(PAIR), 9)
    assert core.view.nodes == PAIR.nodes
    (reply,) = replies(core.receive(Connection(), request(frames.VIEW)))
    assert View.from_wire(msgpack.unpackb(reply.payload)).nodes == PAIR.nodes


def test_seeds_that_are_down_are_passed_over_and_tried_for_ever() -> None:
    """D25: a start does not block."""
    core = Router(("tcp://a:1", "tcp://b:1"), 0)
    tried, now = [], 0
    while now < 120 * SECOND:
        tried += asked(core, now)
        assert core.due() <= now + 5 * SECOND
        now = core.due()
    assert tried[:4] == ["tcp://a:1", "tcp://b:1", "tcp://a:1", "tcp://b:1"]
    assert len(tried) > 20


def test_a_router_that_knows_nothing_says_so() -> None:
    """D31: it never answers from an empty ring."""
    core = Router(("tcp://seed:1",), 0)
    (reply,) = replies(core.receive(Connection(), request(frames.VIEW)))
    assert (reply.status, reply.payload) == (UNAVAILABLE, b"this router has not learnt the view yet")
    (reply,) = replies(core.receive(Connection(), request(frames.GET, b"key")))
    assert reply.status == UNAVAILABLE


def test_a_router_asks_the_workers_in_turn() -> None:
    core = router()
    found = [asked(core, core.due()) for _ in range(6)]
    addresses = [[worker.addresses[-1]] for worker in PAIR.workers]
    assert [a for a in found if a != ["tcp://seed:1"]][:3] == addresses


def test_a_router_asks_its_seeds_again_when_no_worker_answers() -> None:
    core = router()
    found: list[str] = []
    while core.due() <= 4 * SECOND:
        found += asked(core, core.due())
    assert found.count("tcp://seed:1") > 3
    core.hear("unix:/3-0", answer(PAIR), 4 * SECOND)
    found.clear()
    while core.due() < 7 * SECOND:
        found += asked(core, core.due())
    assert "tcp://seed:1" not in found


def test_what_several_workers_say_is_joined() -> None:
    core = router()
    dead, joining = replace(node_of(3, [0]), status=DEAD), replace(node_of(9, [0]), status=JOINING)
    core.hear("unix:/5-0", answer(PAIR.with_node(dead)), 1)
    core.hear("unix:/5-1", answer(PAIR.with_node(joining)), 2)
    core.hear("unix:/5-1", answer(PAIR), 3)
    assert [(n.node_id, n.status) for n in core.view.nodes] == [(3, DEAD), (5, 1), (9, JOINING)]
    assert core.view.version > PAIR.version + 1


def test_an_answer_in_pieces_is_understood() -> None:
    core = Router(("tcp://seed:1",), 0)
    for place in range(len(answer(PAIR))):
        core.hear("tcp://seed:1", answer(PAIR)[place : place + 1], 1)
    assert core.view.nodes == PAIR.nodes


def test_an_unfinished_answer_ends_with_its_connection() -> None:
    core = Router(("tcp://seed:1",), 0)
    core.hear("tcp://seed:1", answer(PAIR)[:40], 1)
    core.lost("tcp://seed:1")
    core.hear("tcp://seed:1", answer(PAIR), 1)
    assert core.view.nodes == PAIR.nodes


def test_another_router_that_knows_nothing_is_not_believed() -> None:
    core = router()
    core.hear("tcp://seed:1", Router((), 0).receive(Connection(), request(frames.VIEW)), 5)
    core.hear("tcp://seed:1", answer(View(0, ())), 6)
    assert core.view.nodes == PAIR.nodes


@pytest.mark.parametrize(
    "data",
    [b"\x00" * 24, b"\xff" * 40, answer(PAIR)[:28] + b"\xc1" * (len(answer(PAIR)) - 28)],
    ids=["no length", "no version", "no view"],
)
def test_what_is_no_answer_is_refused_and_changes_nothing(data: bytes) -> None:
    core = router()
    before = core.view
    with pytest.raises(ProtocolError):
        core.hear("unix:/3-0", data, 1)
    assert (core.view, core.counts.malformed) == (before, 1)


# -- telling


def test_a_key_is_answered_with_the_view() -> None:
    core = router()
    for data in (request(frames.GET, b"key"), put(b"key", b"v"), request(frames.DELETE, b"key")):
        (reply,) = replies(core.receive(Connection(), data))
        assert (reply.status, reply.request) == (frames.WRONG_WORKER, 7)
        assert View.from_wire(msgpack.unpackb(reply.payload)).nodes == PAIR.nodes
    assert core.counts.redirected == 3


def test_every_key_of_a_batch_has_its_answer() -> None:
    """D33: no key waits for what is to be known of another."""
    core, keys = router(), [b"a", b"b", b"c"]
    (reply,) = replies(core.receive(Connection(), multi_get(*keys)))
    assert frames.items(reply.payload) == [(frames.WRONG_WORKER, 0, b"")] * 3
    assert Requester(View(0, ())).decode_multi_get(reply.payload, keys, None)[1] == [0, 1, 2]
    (reply,) = replies(core.receive(Connection(), multi_put(*((key, 1, b"state") for key in keys))))
    assert reply.status == frames.PARTIAL
    assert msgpack.unpackb(reply.payload) == [[index, frames.WRONG_WORKER, ""] for index in range(3)]


def test_a_cluster_of_disk_nodes_is_routed() -> None:
    """D32: no tier is special; whatever a view says is served."""
    disk = View(4, tuple(replace(node_of(node, [0]), tier="disk") for node in (2, 4)))
    core = router(disk)
    (reply,) = replies(core.receive(Connection(), request(frames.VIEW)))
    served = View.from_wire(msgpack.unpackb(reply.payload))
    client = Requester(served)
    assert {node.tier for node in served.nodes} == {"disk"}
    assert {client.owner(b"%d" % n) for n in range(50)} == {0, 1}


def test_status_counts_what_a_router_did() -> None:
    core = router()
    core.receive(Connection(), request(frames.VIEW) + request(frames.GET, b"k") + request(99))
    (reply,) = replies(core.receive(Connection(), request(frames.STATUS)))
    counts = {"asked": 1, "learnt": 1, "malformed": 0, "served": 1, "redirected": 1, "refused": 1}
    known = {"view": core.view.version, "nodes": 2, "workers": 3}
    assert msgpack.unpackb(reply.payload) == {"role": "router", **known, **counts}


def test_what_a_router_cannot_do_is_refused_and_the_connection_stays() -> None:
    core, connection = router(), Connection()
    data = request(77, payload=b"x" * 100) + request(frames.VIEW)
    first, second = replies(core.receive(connection, data))
    assert (first.status, first.payload) == (frames.NOT_SUPPORTED, b"operation 77 is not known to this router")
    assert (second.status, connection.failure) == (frames.OK, None)


def test_a_peers_message_has_no_answer() -> None:
    assert router().receive(Connection(), request(17, payload=b"x" * 40)) == b""


@given(st.lists(st.integers(1, 40)))
def test_frames_may_come_in_pieces(sizes: list[int]) -> None:
    core, connection, got = router(), Connection(), b""
    data = request(frames.VIEW) + multi_get(b"a" * 60, b"b") + put(b"k" * 300, b"v" * 90) + request(frames.STATUS)
    whole = replies(router().receive(Connection(), data))
    for size in sizes:
        got += core.receive(connection, data[:size])
        data = data[size:]
    got += core.receive(connection, data)
    assert [r.status for r in replies(got)] == [r.status for r in whole] == [frames.OK, frames.OK, 2, frames.OK]


def test_of_a_large_request_only_the_head_is_kept() -> None:
    core, connection = router(), Connection()
    large = put(b"k", b"v" * 1_000_000)
    got = core.receive(connection, large[:500_000])
    assert (replies(got)[0].status, len(connection.head)) == (frames.WRONG_WORKER, 0)
    assert core.receive(connection, large[500_000:]) == b""
    assert replies(core.receive(connection, request(frames.VIEW)))[0].status == frames.OK


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x03" + b"\x00" * 23, "a frame says that 3 bytes follow"),
        (b"\xff" * 24, "a frame says that 4,294,967,295 bytes follow"),
        (request(frames.VIEW)[:4] + b"\x09" + request(frames.VIEW)[5:], "a frame has protocol version 9"),
        (request(frames.GET)[:12] + b"\x05\x00" + request(frames.GET)[14:], "a frame says that its key has 5 bytes"),
        (request(frames.MGET, payload=struct.pack("<I", 10**6)), "a batch has 1,000,000 keys"),
    ],
)
def test_bytes_that_are_not_of_the_protocol_end_the_connection(data: bytes, why: str) -> None:
    core, connection = router(), Connection()
    (reply,) = replies(core.receive(connection, data + request(frames.VIEW)))
    assert reply.status == frames.MALFORMED
    assert reply.payload.decode().startswith(why)
    assert connection.failure is not None
    assert core.receive(connection, request(frames.VIEW)) == b""


@given(st.binary(max_size=200))
def test_random_bytes_do_no_harm(data: bytes) -> None:
    core, connection = router(), Connection()
    core.receive(connection, data)
    core.check()
    assert len(connection.head) <= 2**16 + 28
