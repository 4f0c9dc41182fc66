"""Whom a worker's frames reach, over real sockets: those whom it has heard of, whatever has become of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from anna.kvs.clock import Clock
from anna.kvs.worker import Worker
from anna.messages import NodeInfo, View, WorkerInfo
from anna.peers import Peers

PATIENCE_S = 10.0
FRAME = b"frame"

LEAVER, OLD, NEW = 100, 200, 201


def worker_of_two_nodes(address: str) -> Worker:
    """Return the core of node 1, which is to leave; node 2 listens at `address`."""
    nodes = (
        NodeInfo(1, (WorkerInfo(LEAVER, ("unix:/run/leaver.sock",), 0),)),
        NodeInfo(2, (WorkerInfo(OLD, (address,), 0),)),
    )
    return Worker(View(1, nodes, 1, 1), 0, Clock(200_000_000_000_000, 0))


def leave_unheard(worker: Worker) -> None:
    """Let the node have left, as its other worker has found, while nobody else hears of it."""
    worker.depart()
    view = worker.view
    worker.adopt(view.with_node(view.node(1).left(view.version)))


def replace_the_other(worker: Worker, address: str) -> None:
    """Let node 2 have another process in its seat."""
    known = worker.membership
    assert known is not None
    worker.adopt(known.view.with_worker(2, WorkerInfo(NEW, (address,), 0)))


async def what_arrives(path: Path, send: Callable[[], None]) -> bytes:
    """Return the first bytes that whoever listens at `path` is sent."""
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await arrived.put(await reader.readexactly(len(FRAME)))
        writer.close()

    server = await asyncio.start_unix_server(take, path)
    try:
        send()
        async with asyncio.timeout(PATIENCE_S):
            return await arrived.get()
    finally:
        server.close()


def test_who_has_left_still_reaches_a_worker_that_started_since(tmp_path: Path) -> None:
    """P18: else that one never hears that the node has left, calls it dead, and the node waits for ever."""
    path = tmp_path / "seat.sock"
    worker = worker_of_two_nodes(f"unix:{path}")
    leave_unheard(worker)
    replace_the_other(worker, f"unix:{path}")

    async def story() -> bytes:
        peers = Peers(worker)
        try:
            return await what_arrives(path, lambda: peers.send(NEW, FRAME))
        finally:
            peers.close()

    assert asyncio.run(story()) == FRAME


def test_who_is_superseded_may_still_send_what_it_had_to_say(tmp_path: Path) -> None:
    """The newer view has no place for it, which must not be an error in the middle of its last frames."""
    path = tmp_path / "seat.sock"
    worker = worker_of_two_nodes(f"unix:{path}")
    worker.adopt(worker.view.with_worker(1, WorkerInfo(LEAVER + 1, ("unix:/run/leaver.sock",), 0)))
    assert worker.superseded

    async def story() -> bytes:
        peers = Peers(worker)
        try:
            return await what_arrives(path, lambda: peers.send(OLD, FRAME))
        finally:
            peers.close()

    assert asyncio.run(story()) == FRAME
