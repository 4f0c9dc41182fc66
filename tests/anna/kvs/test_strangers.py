"""What claims to come from another worker and does not moves nothing here."""

from __future__ import annotations

import struct

import pytest

from anna.kvs.worker import Connection
from tests.anna import frames
from tests.anna.frames import put, request
from tests.anna.kvs.workers import Workers, view_of

PEER, SYSTEM = 17, 1


def message(kind: int, sender: int, receiver: int, stamp: int) -> bytes:
    return request(PEER, b"", struct.pack("<QQ", sender, receiver), type=kind, flags=SYSTEM, id=0, stamp=stamp)


@pytest.mark.parametrize("stamp", [2**63 - 1, 2**64 - 1, 1])
@pytest.mark.parametrize(("sender", "receiver"), [(7, 100), (200, 7), (7, 7), (7, 0)])
@pytest.mark.parametrize("kind", [1, 2, 3, 9])
def test_a_strangers_stamp_does_not_move_the_clock(kind: int, sender: int, receiver: int, stamp: int) -> None:
    workers = Workers(view_of(2, factor=2))
    epoch = workers.workers[100].status()["epoch"]
    workers.workers[100].receive(Connection(), message(kind, sender, receiver, stamp), workers.now)
    (answer,) = workers.ask(100, put(b"k", b"v", ack=1))
    assert answer.status == frames.OK
    assert workers.workers[100].status()["epoch"] == epoch
    workers.check()


def test_a_known_workers_clock_of_another_century_is_not_followed() -> None:
    workers = Workers(view_of(2, factor=2))
    epoch = workers.workers[100].status()["epoch"]
    workers.workers[100].receive(Connection(), message(3, 200, 100, 2**63 - 1), workers.now)
    assert workers.workers[100].status()["epoch"] == epoch
