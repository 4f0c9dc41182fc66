"""The worker's driver: what it logs, whom it lets in, and that order holds when a client reads slowly."""

from __future__ import annotations

import logging
import socket

import pytest

from anna.kvs.clock import Clock
from anna.kvs.worker import Worker
from anna.messages import NodeInfo, View, WorkerInfo
from anna.server import WorkerServer
from tests.anna import frames
from tests.anna.conftest import RunningWorkers


def test_malformed_connections_are_logged_at_most_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    view = View(1, (NodeInfo(1, (WorkerInfo(1, ("unix:/run/0.sock",)),)),))
    server = WorkerServer(Worker(view, 0, Clock(0, 0)))
    with caplog.at_level(logging.WARNING):
        for number in range(50):
            server.log_malformed(f"reason {number}")
    assert [record.getMessage() for record in caplog.records] == [
        "closed 1 connection(s) for malformed bytes; the last: reason 0"
    ]


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_answers_keep_their_order_when_the_client_reads_late(one_worker: RunningWorkers, transport: str) -> None:
    """More answers than the socket holds: the rest waits in the loop's buffer, and later ones wait behind it."""
    if transport == "unix":
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(one_worker.unix().removeprefix("unix:"))
    else:
        host, port = one_worker.tcp().removeprefix("tcp://").rsplit(":", 1)
        peer = socket.create_connection((host, int(port)))
    with peer:
        peer.settimeout(30)
        value = b"x" * 10_000
        peer.sendall(frames.put(b"k", value, id=0))
        count = 700  # 4.7 MB of answers: fewer than WRITE_BUFFER_BYTES_MAX, beyond which requests are not read
        for number in range(1, count):
            key = b"k" if number % 3 else b"missing"
            peer.sendall(frames.request(frames.GET, key, id=number))
        data = b""
        found: list[int] = []
        while len(found) < count:
            data += peer.recv(1 << 20)
            while len(data) >= 4 and len(data) >= 4 + int.from_bytes(data[:4], "little"):
                end = 4 + int.from_bytes(data[:4], "little")
                (answer,) = frames.replies(data[:end])
                found.append(answer.request)
                assert answer.status == (frames.OK if answer.request % 3 or not answer.request else frames.MISSING)
                data = data[end:]
    assert found == list(range(count))
