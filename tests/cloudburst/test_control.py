"""Requests to the node: each answer comes home, late ones to nobody, and none is waited for beyond its deadline."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

import cloudburst as cb
from cloudburst.control import Control, client_of, identity, pack_answer, pack_request, unpack_request


@pytest.fixture
def router(directory: Path) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 20_000)
    socket.bind(f"ipc://{directory}/control.sock")
    yield socket
    context.destroy(linger=0)


@pytest.fixture
def control(directory: Path, router: zmq.Socket[bytes]) -> Iterator[Control]:
    made = Control(f"ipc://{directory}/control.sock", 7)
    yield made
    made.close()


def test_late_answer_is_not_given_to_the_next_request(router: zmq.Socket[bytes], control: Control) -> None:
    """D46, D63: replies without an id were handed to whoever asked next."""
    with pytest.raises(cb.NodeLost, match=r"did not answer 'first' within 0\.05 s") as caught:
        control.ask("first", {}, 0.05)
    assert not caught.value.definite
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(control.ask("second", {"n": 1}, 20)))
    asking.start()
    who, first, request = router.recv_multipart()
    assert unpack_request(request) == ("first", {})
    assert client_of(who) == 7
    router.send_multipart([who, first, pack_answer("too late")])
    who, second, request = router.recv_multipart()
    assert unpack_request(request) == ("second", {"n": 1})
    router.send_multipart([who, second, pack_answer(["in", "time"])])
    asking.join(20)
    assert answers == [["in", "time"]]


def test_who_moves_on_is_answered_while_its_sockets_of_before_are_still_there(
    router: zmq.Socket[bytes], control: Control, directory: Path
) -> None:
    """A client whose gateway was killed asks the next one under the same address, where an idle socket of before has
    come back by itself: of two with one name the router knew the older, and nobody was told."""
    answers: list[object] = []
    for number, one in enumerate((control, Control(f"ipc://{directory}/control.sock", 7))):
        asking = threading.Thread(target=lambda one=one: answers.append(one.ask("status", {}, 10)))  # type: ignore[misc]
        asking.start()
        who, request, _ = router.recv_multipart()
        assert client_of(who) == 7
        router.send_multipart([who, request, pack_answer(number)])
        asking.join(20)
    one.close()
    assert answers == [0, 1]


def test_error_of_the_node_is_raised_as_what_it_is(router: zmq.Socket[bytes], control: Control) -> None:
    faults: list[BaseException] = []

    def ask() -> None:
        try:
            control.ask("any", {}, 20)
        except cb.CloudburstError as fault:
            faults.append(fault)

    asking = threading.Thread(target=ask)
    asking.start()
    who, number, _ = router.recv_multipart()
    router.send_multipart([who, number, pack_answer(cb.Overloaded("full", definite=True))])
    asking.join(20)
    assert [(type(fault), str(fault)) for fault in faults] == [(cb.Overloaded, "full")]


def test_garbage_is_a_protocol_error() -> None:
    for garbage in (b"\xc1", pack_answer(5), pack_request("verb", {})[:-1] + b"\x05"):
        with pytest.raises(cb.ProtocolError):
            unpack_request(garbage)


def test_identity_names_its_client() -> None:
    assert client_of(identity(2**63 - 1, 5, "ipc:")) == 2**63 - 1
    assert client_of(b"somebody else") == 0
    assert client_of(b"") == 0


def test_closed_control_asks_nothing(control: Control) -> None:
    control.close()
    with pytest.raises(cb.NodeLost, match="this client is closed"):
        control.ask("any", {}, 1)
