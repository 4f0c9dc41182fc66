"""Bytes that claim to come from another worker: what is not between these two incarnations changes nothing.

Whoever knows both ids and lies is one of the Byzantine peers that are not promised to be survived; authentication keeps
them out. Here are strangers, earlier lives, and damage.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import anna
from anna.messages import NodeInfo, View
from tests.anna import frames
from tests.anna.conftest import RunningWorkers, running_workers

SEED = 21
PEER = 17
LINK, HEARTBEAT, CLOSED = 1, 2, 3


@pytest.fixture
def replicated() -> Iterator[RunningWorkers]:
    """Two nodes of one worker each, which both keep every key."""
    with running_workers(2) as cluster:
        workers = cluster.view.workers
        for place in (0, 1):
            cluster.kill(place)
        cluster.view = View(1, tuple(NodeInfo(n + 1, (replace(workers[n], seat=0),)) for n in (0, 1)), factor=2)
        for place in (0, 1):
            cluster.start(place)
        yield cluster


def connect(address: str) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(20)
    peer.connect(address.removeprefix("unix:"))
    return peer


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def peer_frame(chance: random.Random, mine: int, other: int) -> bytes:
    """Return a message from a stranger or to one, with any body, or between the two with one that is too short."""
    sender, receiver = chance.choice(((5, mine), (5, 0), (other, 6), (mine, mine), (0, mine), (other, mine)))
    body = chance.choice(
        (
            lambda: chance.randbytes(chance.choice((28, 60, 500))),
            lambda: struct.pack("<IIQQI", 1, 1, chance.randrange(5), chance.randrange(5), 40) + chance.randbytes(40),
            lambda: struct.pack("<IIQQI", 1, 1, 2**63, 2**63, 2**31) + chance.randbytes(40),
            lambda: struct.pack("<QQQB", chance.randrange(4), 2**63, 2**63, 1),
        )
    )()
    if sender == other and receiver == mine:
        body = body[: chance.randrange(8)]
    kind = chance.choice((LINK, LINK, LINK, HEARTBEAT, CLOSED, 0, 4, 255))
    stamp = chance.choice((0, 1, chance.randrange(2**40)))
    return frames.request(PEER, b"", struct.pack("<QQ", sender, receiver) + body, type=kind, flags=1, stamp=stamp)


def test_forged_messages_of_workers_neither_crash_nor_grow_nor_stop_the_replication(replicated: RunningWorkers) -> None:
    """D22, D26: a peer's bytes are checked like a client's. Prints its seed."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    ids = [worker.worker_id for worker in replicated.view.workers]

    def fuzz(connections: int) -> None:
        for _ in range(connections):
            with connect(replicated.unix(0)) as peer, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                peer.sendall(b"".join(peer_frame(chance, *ids) for _ in range(20)))
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(65536):
                    pass

    with anna.Client([replicated.unix(0)]) as kvs:
        kvs.put("before", 1)
        fuzz(200)
        grown = resident_bytes(replicated.pids[0])
        fuzz(400)
        assert resident_bytes(replicated.pids[0]) - grown < 4 * 1024 * 1024
        assert kvs.get("before") == 1
        with connect(replicated.unix(0)) as peer:
            peer.sendall(frames.request(frames.PUT, b"after", frames.register(b"2"), type=1, ack=2))
            (answer,) = frames.replies(peer.recv(1000))
            assert (answer.status, answer.type) == (frames.OK, 1), "the write is on both workers"
