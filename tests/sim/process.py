"""One worker process, driven as the real driver drives it.

The one rule: a process is a core and nothing else. Bytes go in by `receive`, time by `tick`, and whatever the core
gives (answers, frames for peers, batches for the log) is carried on at once. A crash forgets the core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from anna.kvs.worker import Connection
from tests.anna.frames import joined
from tests.sim.durability import Durability
from tests.sim.network import Stream
from tests.sim.schedule import MS, US

if TYPE_CHECKING:
    from tests.sim.node import Node

TICK_PAUSE_NS = MS
"""A process is not ticked more often than this, whatever its core says is due."""


class Process:
    """One incarnation of a worker: its core, its streams, its peers' connections, and the commits under way."""

    def __init__(self, node: Node, seat: int, worker_id: int) -> None:
        self.node = node
        self.cluster = node.cluster
        self.seat = seat
        self.worker_id = worker_id
        self.alive = True
        self.paused = False
        self.streams: dict[Stream, Any] = {}
        self.stream_of: dict[Any, Stream] = {}
        self.peers: dict[int, Any] = {}
        self.durability = Durability(self, node.disks[seat], self.cluster.plan["checkpoint_bytes"])
        self.worker = self.cluster.make_worker(self)
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._armed: int | None = None
        self._ticked = 0
        self.cluster.by_id[worker_id] = self
        self.cluster.by_address[node.address(seat)] = self

    def run(self, action: Callable[..., None], *arguments: Any) -> None:
        """Let something happen to the process: later if it is paused, never if it is dead."""
        if self.paused:
            self._backlog.append((action, arguments))
        elif self.alive:
            action(*arguments)
            if self.alive:
                self.pump()

    def accept(self, stream: Stream) -> Callable[[bytes | None], None]:
        """Take a client's stream."""
        connection = self.streams[stream] = Connection()
        self.stream_of[connection] = stream
        return lambda data: self.run(self._from_client, stream, connection, data)

    def from_peer(self, sender: int, frame: bytes) -> None:
        """Take a frame of another worker."""
        self.run(self._from_peer, sender, frame)

    def pause(self) -> None:
        """Stop the process without its noticing."""
        self.paused = True

    def resume(self) -> None:
        """Let it run again: first, all that has come meanwhile."""
        self.paused = False
        backlog, self._backlog = self._backlog, []
        for action, arguments in backlog:
            self.run(action, *arguments)
        if self.alive:
            self.tick(self._armed)

    def held(self) -> dict[bytes, bytes]:
        """Return the encoded state of each key."""
        return {key: state.encode() for key, state in self.worker.store.states.items()}

    def die(self, without_power: bool = False) -> None:
        """End, with all streams; without power nobody is told."""
        self.alive = False
        del self.cluster.by_id[self.worker_id]
        del self.cluster.by_address[self.node.address(self.seat)]
        self._backlog.clear()
        for stream in list(self.streams):
            if without_power:
                stream.abandon()
            else:
                stream.reset()

    def pump(self) -> None:
        """Carry on what the core has given, and plan its next tick."""
        worker = self.worker
        self.durability.carry_on()
        for target, parts in worker.outgoing():
            self.cluster.send_peer(self, target, joined(parts))
        self._answer(worker.take_released())
        due = worker.next_due()
        if worker.pushes_due:
            at_epochs_end = self.node.clock.monotonic() + worker.epoch_left_us * US
            due = at_epochs_end if due is None else min(due, at_epochs_end)
        if due is not None:
            when = max(self.node.clock.moment_of(due), self._ticked + TICK_PAUSE_NS, self.cluster.schedule.now)
            if self._armed is None or when < self._armed:
                self._armed = when
                self.cluster.schedule.at(when, self.tick, when)

    def tick(self, armed: int | None) -> None:
        """Give the core its time, unless it was armed anew since."""
        if armed is not None and armed == self._armed and self.alive and not self.paused:
            self._armed = None
            self._ticked = self.cluster.schedule.now
            self._answer(self.worker.tick(self.node.clock.monotonic()))
            self.pump()

    def _from_client(self, stream: Stream, connection: Any, data: bytes | None) -> None:
        if data is None:
            self.worker.leave(connection)
            self.streams.pop(stream, None)
            self.stream_of.pop(connection, None)
            return
        self._answer([(connection, self.worker.receive(connection, data, self.node.clock.monotonic()))])
        if connection.failure is not None:
            stream.reset()

    def _from_peer(self, sender: int, frame: bytes) -> None:
        connection = self.peers.get(sender)
        if connection is None or connection.failure is not None:
            connection = self.peers[sender] = Connection()
        answer = self.worker.receive(connection, frame, self.node.clock.monotonic())
        assert not answer, "a peer's message is not answered on its connection"

    def _answer(self, answers: Any) -> None:
        """Send what the core answers: [(connection, bytes or list of bytes), …]."""
        for connection, data in answers or ():
            data = data if isinstance(data, bytes) else b"".join(data)
            stream = self.stream_of.get(connection)
            if data and stream is not None:
                stream.to_near(data)
