"""What is said at the beginning of a stream between relays."""

from __future__ import annotations

import pytest

from anna.gate import Right
from cloudburst import openings
from cloudburst.errors import ProtocolError, RequestError
from cloudburst.openings import GUESTS, NODES, PORTER, RECORD, Opening


@pytest.mark.parametrize(
    ("name", "least"),
    [
        (NODES, Right.ADMIN), (GUESTS, Right.CODE), (PORTER, Right.CODE), (RECORD, Right.CODE),
        ("e0-1.sock", Right.CODE), ("control.sock", None), ("relay.sock", None), ("lease.sock", None),
        ("e0-1.sock/../control.sock", None), ("e-1.sock", None), ("../a/e0-1.sock", None), ("", None),
    ],
)  # fmt: skip
def test_each_name_takes_a_right_and_others_lead_nowhere(name: str, least: Right | None) -> None:
    assert openings.needed(name) == least
    for right in Right:
        assert (openings.refusal(name, "alice", right) == "") == (least is not None and right >= least)


def test_refusal_says_whose_keys_have_which_right_and_which_it_takes() -> None:
    assert openings.refusal(RECORD, "alice", Right.DATA) == (
        "the keys of alice have the right data; to call or register functions needs code"
    )
    assert openings.refusal(NODES, "bob", Right.CODE) == (
        "the keys of bob have the right code; to be one of its nodes needs admin"
    )


def test_opening_comes_in_any_pieces_and_what_follows_is_kept() -> None:
    said = openings.pack({"to": "e3-7.sock", "at": "h:1", "tell": True})
    assert [openings.split(said[:count]) for count in range(len(said))] == [None] * len(said)
    found = openings.split(said + b"hello")
    assert found is not None
    assert (Opening.unpack(found[0]), found[1]) == (Opening("e3-7.sock", "h:1", tell=True), b"hello")


@pytest.mark.parametrize(
    "body", [{"to": 5}, {"what": "x"}, {"to": "a/b"}, {"to": "a", "listen": "../x.sock"}, [1], b"x", None]
)
def test_what_is_no_opening_is_an_error_of_the_protocol(body: object) -> None:
    found = openings.split(openings.pack(body))
    assert found is not None
    with pytest.raises(ProtocolError, match="stream"):
        Opening.unpack(found[0])
    with pytest.raises(ProtocolError, match="65,535 bytes would open a stream; 1,024 may"):
        openings.split(b"\xff\xff")


def test_answer_is_bytes_or_raises_why_not() -> None:
    def body(said: object) -> bytes:
        found = openings.split(openings.pack(said))
        assert found is not None
        return found[0]

    assert openings.unpack_answer(body([True, b"record"])) == b"record"
    with pytest.raises(RequestError, match="not with these"):
        openings.unpack_answer(body([False, "not with these"]))
    for garbage in (b"", body(7), body([True, b"", 1])):
        with pytest.raises(ProtocolError):
            openings.unpack_answer(garbage)


def test_address_leads_to_a_name_at_a_place() -> None:
    for host in ("10.0.0.5", "::1", "node.example"):
        assert openings.place_of(openings.address(host, 6600, "e0-1.sock")) == (f"{host}:6600", "e0-1.sock")
