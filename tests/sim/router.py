"""A host that runs a router: the compiled core's answers, and streams to the workers that it asks.

The one rule: it is driven as `anna.router` drives it: a question is a stream of its own, ended with its answer or
after ASK_NS. A router that is started again knows nothing but its seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anna.errors import ProtocolError
from anna.membership import NEVER
from anna.routing.router import Connection, Router
from tests.sim.network import Hear, Stream
from tests.sim.schedule import SECOND

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

ASK_NS = 2 * SECOND


class RouterHost:
    """A router at `address`, which learns from `seeds`. It accepts streams as a process of a node does."""

    worker_id = 0

    def __init__(self, cluster: Cluster, host: int, seeds: tuple[str, ...]) -> None:
        self.cluster = cluster
        self.schedule = cluster.schedule
        self.host = host
        self.seeds = seeds
        self.address = f"unix:/n{host}/router.sock"
        self.streams: dict[Stream, None] = {}
        self.up = False
        self.life = 0
        self.start()

    def start(self) -> None:
        """Begin to learn and to answer."""
        if not self.up:
            self.up = True
            self.router = Router(self.seeds, self.schedule.now)
            self.cluster.by_address[self.address] = self
            self.poll(self.life)

    def stop(self) -> None:
        """Be killed: every stream is reset."""
        if self.up:
            self.up = False
            self.life += 1
            del self.cluster.by_address[self.address]
            for stream in list(self.streams):
                stream.reset()
            self.streams.clear()

    def accept(self, stream: Stream) -> Hear:
        """Take a client's stream."""
        connection = Connection()
        self.streams[stream] = None
        return lambda data: self._hear_client(stream, connection, data)

    def poll(self, life: int) -> None:
        """Ask what is due, and plan the next time."""
        if life != self.life or not self.up:
            return
        for address, frame in self.router.poll(self.schedule.now):
            self._ask(address, frame)
        if self.router.due() != NEVER:
            self.schedule.at(self.router.due(), self.poll, life)

    def _ask(self, address: str, frame: bytes) -> None:
        life = self.life

        def hear(data: bytes | None) -> None:
            if life == self.life and data:
                try:
                    self.router.hear(address, data, self.schedule.now)
                except ProtocolError:
                    self.schedule.note(f"router {self.host} heard what is no view")
            if life == self.life and data != b"":
                over()

        def over() -> None:
            if life == self.life and stream.open and not stream.hung_up:
                stream.hang_up()
                self.router.lost(address)
                self.poll(life)

        stream = self.cluster.open_stream(self.host, address, hear)
        stream.to_far(frame)
        self.schedule.after(ASK_NS, over)

    def _hear_client(self, stream: Stream, connection: Connection, data: bytes | None) -> None:
        if data is None:
            self.streams.pop(stream, None)
            return
        stream.to_near(self.router.receive(connection, data))
        if connection.failure is not None:
            stream.reset()
