"""Drives one worker's core: sockets and a clock in, sockets out.

The one rule: nothing is decided here. Bytes go to `Worker.receive`, what it returns goes back; a connection that the
core gave up on is closed. The loop is uvloop's. Unix connections are accepted from this user alone (SO_PEERCRED).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic_ns

import msgpack
import uvloop

from anna.config import EPOCH_US, RINGS_MAX
from anna.durability import Durability
from anna.errors import Damaged, NoWorkers, ProtocolError
from anna.keys import Keys
from anna.kvs.clock import EPOCH_2020_S, Clock
from anna.kvs.worker import Connection, Worker
from anna.logs import Event
from anna.messages import NodeStatus, View
from anna.peers import Peers
from anna.plan import CLUSTER
from anna.protocol import Protocol
from anna.sealed import Door
from anna.shared.poller import Poller
from anna.shared.segment import rings_wanted
from anna.supervisor import EXIT_STORAGE, EXIT_SUPERSEDED, LEAVE
from anna.waiting import Waiting

log = logging.getLogger("anna.server")

SWEEP_S = 1.0
"""Pause between two looks for frames that were begun and not finished; while there are none, nobody looks."""

REST_S_MAX = 60.0
"""The longest that a worker does not look whether something is due."""

LOG_INTERVAL_S = 1.0
"""Least time between two log lines about malformed connections."""


def wall_offset_us() -> int:
    """Return how far this machine's wall clock is ahead of its monotonic one, in microseconds since 2020."""
    return int((time.time() - EPOCH_2020_S) * 1e6) - monotonic_ns() // 1000


def start_clock(offset_us: int | None = None) -> Clock:
    """Return a clock set to this machine's wall time, as it is now or was when `offset_us` was taken."""
    now_us = monotonic_ns() // 1000
    return Clock(now_us + (wall_offset_us() if offset_us is None else offset_us), now_us)


class WorkerServer:
    """One worker behind its listening sockets, in the running loop."""

    def __init__(
        self, worker: Worker, end: Callable[[int], None] = lambda code: None, keys: Keys | None = None
    ) -> None:
        self.worker = worker
        self.door = None if keys is None else Door(keys)
        self.end = end
        self.durability: Durability | None = None
        self.report: socket.socket | None = None
        self._reported = worker.view.digest
        self._told = worker.view
        self._complete = worker.is_complete
        self._incomplete_since = time.monotonic()
        self._waiting: Waiting | None = None
        self.protocols: dict[Connection, Protocol] = {}
        self.peers = Peers(worker, keys)
        self.rings = Poller(self, RINGS_MAX if rings_wanted() else 0)
        # The loop does not keep its servers: one that is dropped stops to listen.
        self._servers: list[asyncio.AbstractServer] = []
        self._pushing: asyncio.TimerHandle | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._serving: asyncio.Handle | None = None
        self._logged_at = 0.0
        self._unlogged = 0

    def begin(self) -> None:
        """Begin to do what is due though nobody asks: heartbeats above all."""
        self._tick()

    def obey(self, message: object) -> None:
        """Do what the supervisor says. Raises ProtocolError or ValueError for what it cannot mean."""
        if message != LEAVE:
            self.worker.adopt(View.from_wire(message))
            self.serve_now()
            return
        try:
            self.worker.depart()
        except NoWorkers:
            self.end(0)  # nobody could take the keys: there is nothing to wait for
            return
        self._tick()

    async def listen(self, listeners: list[socket.socket]) -> None:
        """Serve on sockets that are bound and listening."""
        loop = asyncio.get_running_loop()
        for listener in listeners:
            listener.setblocking(False)
            if listener.family == socket.AF_UNIX:
                accepting = await loop.create_unix_server(lambda: Protocol(self), sock=listener)
            elif self.door is not None:
                accepting = await loop.create_server(self.door.accepting(lambda: Protocol(self)), sock=listener)
            else:
                accepting = await loop.create_server(lambda: Protocol(self), sock=listener)
            self._servers.append(accepting)

    def push_soon(self) -> None:
        """Do what is due at the end of this epoch, once it has ended."""
        if self._pushing is None:
            self._pushing = asyncio.get_running_loop().call_later(self.worker.epoch_left_us / 1e6, self._tick)

    def _tick(self) -> None:
        for timer in (self._pushing, self._resting):
            if timer is not None:
                timer.cancel()
        self._pushing = self._resting = None
        self._deliver(self.worker.tick(monotonic_ns()))
        self.serve_now()
        if self.durability is not None:
            self.durability.tick()
        self._tell_supervisor()
        if self.worker.pushes_due:
            self.push_soon()
        else:
            self._rest()

    def _tell_supervisor(self) -> None:
        """Report a view that changed, and end when this worker is not wanted any more."""
        if self.worker.superseded:
            log.error("this node was forgotten, or its seat given to another worker", extra=Event.of("superseded"))
            self.end(EXIT_SUPERSEDED)
        elif self.worker.has_left:
            self.end(0)
        self._tell_waiting(time.monotonic())
        view = self.worker.view
        if view.digest != self._told.digest:
            self._tell_changes(self._told, view)
            self._told = view
        if self.worker.is_complete != self._complete:
            self._complete = self.worker.is_complete
            self._tell_handoff()
        if self.report is not None and view.digest != self._reported:
            self._reported = view.digest
            with contextlib.suppress(OSError):  # a supervisor that does not read will be told the next view
                self.report.send(msgpack.packb(view.to_wire()))

    def _tell_waiting(self, now: float) -> None:
        """Log that no seed has answered for a cluster yet; the first worker of the node does so for all."""
        membership, own = self.worker.membership, self.worker.worker_id
        seeds = () if membership is None or self.worker.superseded else membership.awaited
        if membership is None or not seeds or membership.view.node_of(own).workers[0].worker_id != own:
            self._waiting = None
            return
        if self._waiting is None:
            self._waiting = Waiting(now)
        if not self._waiting.is_due(now):
            return
        known = {address for worker in membership.view.workers for address in worker.addresses}
        reasons = {seed: "is new itself" if seed in known else self.peers.how_it_went(seed) for seed in seeds}
        told = Event.of("waiting", seeds=reasons, seconds=round(now - self._waiting.begun, 1), tries=membership.tries)
        log.warning(self._waiting.say(now, membership.tries, reasons, membership.counts.foreign), extra=told)

    def _tell_changes(self, before: View, view: View) -> None:
        """Log who joined, left or died; the first worker of each node does so for all."""
        own = [node.workers[0].worker_id for node in view.nodes if node.workers]
        if self.worker.worker_id not in own:
            return
        was = {node.node_id: node.status for node in before.nodes}
        now = {node.node_id: node.status for node in view.nodes}
        changed: dict[str, list[str]] = {"joined": [], "left": [], "died": []}
        for node, status in now.items():
            old = was.get(node)
            if status == old:
                continue
            if status == NodeStatus.DEAD:
                changed["died"].append(f"{node:016x}")
            elif status == NodeStatus.LEFT:
                changed["left"].append(f"{node:016x}")
            elif status in (NodeStatus.ALIVE, NodeStatus.LEAVING) and old not in (NodeStatus.ALIVE, NodeStatus.LEAVING):
                changed["joined"].append(f"{node:016x}")
        words = "".join(f"; {what}: {', '.join(nodes)}" for what, nodes in changed.items() if nodes)
        counts = {"version": view.version, "nodes": len(view.nodes), "workers": len(view.workers)}
        log.info("view %d%s", view.version, words, extra=Event.of("view", **counts, **changed))

    def _tell_handoff(self) -> None:
        """Log that keys are under way to this worker, or that all have arrived."""
        view, keys = self.worker.view.version, len(self.worker.store)
        if not self._complete:
            self._incomplete_since = time.monotonic()
            told = Event.of("handoff-begun", view=view, keys=keys)
            log.info("hand-off for view %d begins with %d keys", view, keys, extra=told)
            return
        seconds = round(time.monotonic() - self._incomplete_since, 3)
        fields = Event.of("handoff-ended", view=view, keys=keys, seconds=seconds)
        log.info("complete for view %d with %d keys after %.2f s", view, keys, seconds, extra=fields)

    def _rest(self) -> None:
        """Nothing is due each epoch: look again when something will be, as far as is known now."""
        if self._pushing is not None:
            return
        due = self.worker.next_due()
        if due is None:
            return
        pause = min(max((due - monotonic_ns()) / 1e9, EPOCH_US / 1e6), REST_S_MAX)
        if self._resting is not None:
            self._resting.cancel()
        self._resting = asyncio.get_running_loop().call_later(pause, self._tick)

    def serve_soon(self) -> None:
        """`serve_now`, when all has been read that has arrived: one commit, and one message, for all of it."""
        if self._serving is None:
            self._serving = asyncio.get_running_loop().call_soon(self.serve_now)

    def serve_now(self) -> None:
        """Send what does not wait for the epoch to end: to other workers, and what was held back until now."""
        if self._serving is not None:
            self._serving.cancel()
            self._serving = None
        for target, frame in self.worker.outgoing():
            self.peers.send(target, frame)
        self._deliver(self.worker.take_released())
        if self.durability is not None and self.worker.log_wanted:
            self.durability.commit()
        self._rest()

    def keep(self, durability: Durability) -> None:
        """Make writes durable from now on."""
        self.durability = durability
        durability.released = self.serve_now
        durability.begin()

    def _deliver(self, answers: Sequence[tuple[Connection, bytes | list[bytes]]]) -> None:
        for connection, data in answers:
            protocol = self.protocols.get(connection)
            if protocol is not None:
                protocol.send(data)
                if connection.failure is not None:
                    protocol.transport.close()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Do this after what has arrived meanwhile."""
        asyncio.get_running_loop().call_soon(callback)

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
            told = Event.of("malformed", connections=self._unlogged, why=why)
            log.warning("closed %d connection(s) for malformed bytes; the last: %s", self._unlogged, why, extra=told)
            self._logged_at = now
            self._unlogged = 0

    def close(self) -> None:
        """Stop listening and end every connection."""
        for timer in (self._pushing, self._resting, self._sweeping, self._serving):
            if timer is not None:
                timer.cancel()
        self.peers.close()
        if self.door is not None:
            self.door.close()
        for accepting in self._servers:
            accepting.close()
        for protocol in list(self.protocols.values()):
            protocol.transport.abort()


async def _serve(
    view: View,
    place: int,
    listeners: list[socket.socket],
    supervisor: socket.socket | None,
    seeds: tuple[str, ...],
    cluster: str,
    data: str | None,
    memory_bytes: int | None,
    offset_us: int | None,
    keys: str | None,
) -> int:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def end(code: int = 0) -> None:
        if not stop.done():
            stop.set_result(code)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    own = view.workers[place]
    worker = Worker(view, place, start_clock(offset_us), seeds, cluster)
    server = WorkerServer(worker, end, None if keys is None else Keys(keys))
    on_disk = view.node_of(own.worker_id).tier == "disk"
    if memory_bytes is not None and not on_disk:
        server.worker.store.hold_at_most(memory_bytes)
    if data is not None:
        in_memory = memory_bytes if on_disk else None
        durability = Durability(server.worker, Path(data), own.seat, lambda: end(EXIT_STORAGE), in_memory)
        try:
            durability.recover()
        except Damaged as error:
            log.error("%s", error)
            return EXIT_STORAGE
        server.keep(durability)
    await server.listen(listeners)
    following = None if supervisor is None else asyncio.ensure_future(_follow(server, supervisor, end))
    server.begin()
    gc.collect()
    gc.freeze()
    code = await stop
    if following is not None:
        following.cancel()
    if server.durability is not None:
        await server.durability.close()
    server.close()
    return code


async def _follow(server: WorkerServer, supervisor: socket.socket, end: Callable[[int], None]) -> None:
    """Do what the supervisor says, and tell it what is known of the cluster; stop when it is gone."""
    supervisor.setblocking(False)
    server.report = supervisor
    loop = asyncio.get_running_loop()
    unpacker = msgpack.Unpacker()
    try:
        while data := await loop.sock_recv(supervisor, 65536):
            unpacker.feed(data)
            for message in unpacker:
                try:
                    server.obey(message)
                except (ProtocolError, ValueError):
                    log.exception("ignored a message of the supervisor")
    finally:  # however the link ends, a worker without a supervisor must not stay
        end(0)


def serve_worker(
    view: View,
    place: int,
    listeners: list[socket.socket],
    supervisor: socket.socket | None = None,
    *,
    seeds: tuple[str, ...] = (),
    cluster: str = CLUSTER,
    data: str | None = None,
    memory_bytes: int | None = None,
    offset_us: int | None = None,
    keys: str | None = None,
) -> int:
    """Serve the worker at `view.workers[place]` on `listeners` until SIGTERM, SIGINT, or the end of `supervisor`.

    `supervisor` is a stream socket on which newer views (`View.to_wire`) and `LEAVE` arrive as msgpack, and on which
    views go back. `seeds` are addresses of a cluster to join, `data` is the directory in which writes are logged,
    `memory_bytes` what keys and values may take of the worker's memory, None for no limit,
    `offset_us` is `wall_offset_us` as the node was started: the wall clock may jump meanwhile. `keys` is the directory
    of the keys with which its TCP streams are encrypted, None for plain ones. Runs its own event loop.
    Returns the code to exit with.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(
            _serve(view, place, listeners, supervisor, seeds, cluster, data, memory_bytes, offset_us, keys)
        )
