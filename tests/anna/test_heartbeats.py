"""What one worker makes of the heartbeats that it hears, written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anna.errors import ProtocolError
from anna.membership import Membership
from anna.messages import ALIVE, DEAD, JOINING, Heartbeat, NodeInfo, View, WorkerInfo
from tests.anna.heartbeat_network import SECOND

OWN = NodeInfo(1, (WorkerInfo(11, ("tcp://10.0.0.1:1",)),))
OTHER = NodeInfo(2, (WorkerInfo(21, ("tcp://10.0.0.2:1",)),))
PAIR = View(3, (OWN, OTHER))


def said(sequence: int = 1, *, view: View | None = None, complete_for: int = 0, **changes: object) -> bytes:
    """Return a heartbeat of the other node's worker."""
    told = PAIR if view is None else view
    fields = (21, 2, "tcp://10.0.0.2:1", sequence, 0, told.version, told.digest, complete_for, ())
    return replace(Heartbeat("anna", *fields, view, b"rider"), **changes).encode()  # type: ignore[arg-type]


def pair(now: int = 0) -> Membership:
    return Membership(11, 1, PAIR, (), now)


def test_a_repeated_heartbeat_is_ignored() -> None:
    membership = pair()
    assert membership.hear(21, said(2), 5) == b"rider"
    assert membership.hear(21, said(2), 6) == b""
    assert membership.hear(21, said(1), 7) == b""
    assert membership.counts.stale == 2


def test_a_late_view_is_joined_all_the_same() -> None:
    membership = pair()
    membership.hear(21, said(2), 5)
    dead = PAIR.with_node(NodeInfo(3, (WorkerInfo(31, ("tcp://10.0.0.3:1",)),)))
    membership.hear(21, said(1, view=dead), 6)
    assert membership.take_change() == dead
    assert membership.take_change() is None


def test_any_message_of_a_peer_is_a_sign_of_life() -> None:
    membership = pair()
    membership.hear(21, said(), 0)
    for now in range(0, 10 * SECOND, SECOND // 2):
        membership.alive(21, now)
        membership.poll(now)
    assert membership.view.node(2).status == ALIVE
    for now in range(10 * SECOND, 13 * SECOND, SECOND // 2):
        membership.alive(999, now)
        membership.poll(now)
    assert membership.view.node(2).status == DEAD


def test_the_view_is_sent_only_to_who_has_another() -> None:
    membership = pair()
    ((_, first),) = membership.poll(0)
    assert Heartbeat.decode(first).view == PAIR
    membership.hear(21, said(7), 1)
    ((target, second),) = membership.poll(SECOND)
    heartbeat = Heartbeat.decode(second)
    assert (target, heartbeat.view, heartbeat.echo) == (21, None, 7)
    assert heartbeat.sequence > Heartbeat.decode(first).sequence


def test_an_equal_view_of_a_greater_version_is_taken_up() -> None:
    membership = pair()
    membership.hear(21, said(version=9), 1)
    assert membership.take_change() == replace(PAIR, version=9)


def test_a_node_is_alive_only_by_a_view_that_all_have() -> None:
    """D11: who moves keys by another view of the same version may still have some of them."""
    joining = View(3, (replace(OWN, status=JOINING), OTHER))
    membership = Membership(11, 1, joining, (), 0)
    membership.completed(3)
    membership.hear(21, said(1, version=3, digest=5, complete_for=3), 1)
    membership.poll(2)
    assert membership.view == joining
    membership.hear(21, said(2, version=2, digest=joining.digest, complete_for=2), 3)
    membership.poll(4)
    assert membership.view == joining
    membership.hear(21, said(3, version=3, digest=joining.digest, complete_for=3), 5)
    membership.poll(6)
    assert membership.view.node(1).status == ALIVE


def test_the_rider_goes_along() -> None:
    membership = pair()
    membership.rider = b"closed 7"
    ((_, data),) = membership.poll(0)
    assert Heartbeat.decode(data).rider == b"closed 7"


@pytest.mark.parametrize(
    ("sender", "data", "complaint"),
    [
        (21, b"", "no msgpack"),
        (21, b"\xc1", "no msgpack"),
        (21, b"\x90", "12 fields, got 0"),
        (22, said(), "a heartbeat of 0x15 came in a message of 0x16"),
        (21, said(view=View(1, (NodeInfo(9, OWN.workers),))), "worker ids of a view repeat"),
    ],
)
def test_a_malformed_heartbeat_is_refused_and_changes_nothing(sender: int, data: bytes, complaint: str) -> None:
    membership = pair()
    with pytest.raises(ProtocolError, match=complaint):
        membership.hear(sender, data, 1)
    assert (membership.view, membership.take_change()) == (PAIR, None)


def test_a_worker_needs_a_place_in_its_view() -> None:
    with pytest.raises(KeyError, match="names no worker 0x63"):
        Membership(99, 1, PAIR, (), 0)
    with pytest.raises(KeyError, match="at node 0x1, not 0x2"):
        Membership(11, 2, PAIR, (), 0)
