"""Waiting awake for a moment: what is there is taken, and nobody waits for long for what does not come."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from cloudburst.attention import Attention

LONG_US = 20_000_000
SHORT_US = 100


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_what_is_there_is_taken_and_so_is_what_comes_soon(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    attention = Attention(LONG_US)
    there.send(b"at once")
    assert attention.receive(here.fileno()) == b"at once"
    thread = threading.Thread(target=there.send, args=(b"soon",))
    thread.start()  # it needs the GIL, which must not be held meanwhile
    assert attention.receive(here.fileno()) == b"soon"
    thread.join()


def test_the_end_of_a_connection_is_told_and_its_failure_left_to_who_reads_in_earnest(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    here, there = ends
    there.close()
    assert Attention(LONG_US).receive(here.fileno()) == b""
    assert Attention(LONG_US).receive(-1) is None


def test_what_does_not_come_is_not_waited_for(ends: tuple[socket.socket, socket.socket]) -> None:
    attention = Attention(SHORT_US)
    assert attention.receive(ends[0].fileno()) is None
    attention.stay(ends[0].fileno())


def test_staying_ends_when_there_is_something_to_read(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    thread = threading.Thread(target=there.send, args=(b"x",))
    thread.start()
    Attention(LONG_US).stay(here.fileno())
    thread.join()
    assert here.recv(1, socket.MSG_DONTWAIT) == b"x"
