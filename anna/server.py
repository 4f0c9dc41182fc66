"""Drives one worker's core: sockets and a clock in, sockets out.

The one rule: nothing is decided here. Bytes go to `Worker.receive`, what it returns goes back; a connection that the
core gave up on is closed. The loop is uvloop's. Unix connections are accepted from this user alone (SO_PEERCRED).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import Sequence
from time import monotonic_ns

import msgpack
import uvloop

from anna.config import EPOCH_US
from anna.errors import ProtocolError
from anna.kvs.clock import EPOCH_2020_S, Clock
from anna.kvs.worker import Connection, Worker
from anna.messages import View
from anna.peers import Peers
from anna.protocol import Protocol

log = logging.getLogger("anna.server")

SWEEP_S = 1.0
"""Pause between two looks for frames that were begun and not finished; while there are none, nobody looks."""

LOG_INTERVAL_S = 1.0
"""Least time between two log lines about malformed connections."""


def start_clock() -> Clock:
    """Return a clock set to this machine's wall time."""
    return Clock(int((time.time() - EPOCH_2020_S) * 1e6), monotonic_ns() // 1000)


class WorkerServer:
    """One worker behind its listening sockets, in the running loop."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.protocols: dict[Connection, Protocol] = {}
        self.peers = Peers(worker)
        # The loop does not keep its servers: one that is dropped stops to listen.
        self._servers: list[asyncio.AbstractServer] = []
        self._pushing: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._logged_at = 0.0
        self._unlogged = 0

    async def listen(self, listeners: list[socket.socket]) -> None:
        """Serve on sockets that are bound and listening."""
        loop = asyncio.get_running_loop()
        for listener in listeners:
            listener.setblocking(False)
            if listener.family == socket.AF_UNIX:
                accepting = await loop.create_unix_server(lambda: Protocol(self), sock=listener)
            else:
                accepting = await loop.create_server(lambda: Protocol(self), sock=listener)
            self._servers.append(accepting)

    def push_soon(self) -> None:
        """Do what is due at the end of this epoch, once it has ended."""
        if self._pushing is None:
            self._pushing = asyncio.get_running_loop().call_later(self.worker.epoch_left_us / 1e6, self._tick)

    def _tick(self) -> None:
        self._pushing = None
        self._deliver(self.worker.tick(monotonic_ns()))
        self.serve_now()
        if self.worker.pushes_due:
            self.push_soon()
        else:
            self._rest()

    def _rest(self) -> None:
        """Nothing is due each epoch: look again when something will be."""
        due = self.worker.next_due()
        if due is not None and self._pushing is None:
            pause = max((due - monotonic_ns()) / 1e9, EPOCH_US / 1e6)
            self._pushing = asyncio.get_running_loop().call_later(pause, self._tick)

    def serve_now(self) -> None:
        """Send what does not wait for the epoch to end: to other workers, and what was held back until now."""
        for target, frame in self.worker.outgoing():
            self.peers.send(target, frame)
        self._deliver(self.worker.take_released())

    def _deliver(self, answers: Sequence[tuple[Connection, bytes | list[bytes]]]) -> None:
        for connection, data in answers:
            protocol = self.protocols.get(connection)
            if protocol is not None:
                protocol.send(data)

    def sweep_soon(self) -> None:
        """See to it that a frame that has begun to arrive is whole in time, or its connection ends."""
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        awaited = [protocol.sweep() for protocol in list(self.protocols.values())]
        if any(awaited):
            self.sweep_soon()

    def log_malformed(self, why: str) -> None:
        """Write at most one line a second about connections that were closed for their bytes."""
        now = time.monotonic()
        self._unlogged += 1
        if now - self._logged_at >= LOG_INTERVAL_S:
            log.warning("closed %d connection(s) for malformed bytes; the last: %s", self._unlogged, why)
            self._logged_at = now
            self._unlogged = 0

    def close(self) -> None:
        """Stop listening and end every connection."""
        if self._pushing is not None:
            self._pushing.cancel()
        self.peers.close()
        for accepting in self._servers:
            accepting.close()
        for protocol in list(self.protocols.values()):
            protocol.transport.abort()


async def _serve(view: View, place: int, listeners: list[socket.socket], views: socket.socket | None) -> None:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not stop.done():
            stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    server = WorkerServer(Worker(view, place, start_clock()))
    await server.listen(listeners)
    reader = None if views is None else asyncio.ensure_future(_follow(server.worker, views, stop))
    gc.collect()
    gc.freeze()
    await stop
    if reader is not None:
        reader.cancel()
    server.close()


async def _follow(worker: Worker, views: socket.socket, stop: asyncio.Future[None]) -> None:
    """Adopt each view that the supervisor sends; stop when the supervisor is gone."""
    views.setblocking(False)
    loop = asyncio.get_running_loop()
    unpacker = msgpack.Unpacker()
    try:
        while data := await loop.sock_recv(views, 65536):
            unpacker.feed(data)
            for message in unpacker:
                try:
                    worker.adopt(View.from_wire(message))
                except (ProtocolError, ValueError):
                    log.exception("ignored a view from the supervisor")
    finally:  # however the link ends, a worker without a supervisor must not stay
        if not stop.done():
            stop.set_result(None)


def serve_worker(view: View, place: int, listeners: list[socket.socket], views: socket.socket | None = None) -> None:
    """Serve the worker at `view.workers[place]` on `listeners` until SIGTERM, SIGINT, or the end of `views`.

    `views` is a stream socket from the supervisor, on which newer views arrive as msgpack (`View.to_wire`). Runs its
    own event loop.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(view, place, listeners, views))
