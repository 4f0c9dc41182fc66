"""An event loop in virtual time: what the asyncio client runs on in a simulation, one loop for each client's host.

The one rule: whatever a loop does happens at a moment of the schedule, in the order in which it was asked for; it
asks the machine for nothing. So the client that is simulated is the one that users have, down to its timers.
Connecting is a round trip: a host without power never answers, one whose process is gone refuses.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any

from tests.sim.network import Stream
from tests.sim.schedule import Schedule

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

Tap = Callable[[bytes, "Transport"], None]


class VirtualLoop(asyncio.AbstractEventLoop):
    """The part of an event loop that a client uses. `failures` are errors that nobody caught.

    `on_sent` and `on_heard` are told the bytes that pass, and on which transport.
    """

    def __init__(self, cluster: Cluster, host: int, on_sent: Tap, on_heard: Tap) -> None:
        self.cluster = cluster
        self.host = host
        self.on_sent = on_sent
        self.on_heard = on_heard
        self.failures: list[dict[str, Any]] = []
        self.transports: dict[Transport, None] = {}
        self.closed = False
        self._schedule: Schedule = cluster.schedule

    # -- what asyncio asks of a loop

    def time(self) -> float:
        """Return the seconds of virtual time."""
        return self._schedule.now / 1e9

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._schedule.at(self._schedule.now, self._run, handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._schedule.at(round(when * 1e9), self._run, handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer stays in the schedule, and does nothing there."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.closed:
            self.failures.append(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.closed

    def is_closed(self) -> bool:
        return self.closed

    async def create_unix_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], path: str
    ) -> tuple[Transport, asyncio.BaseProtocol]:
        """Connect to whoever listens at a path of the simulated cluster. Raises ConnectionRefusedError."""
        protocol = protocol_factory()
        transport = Transport(self, protocol, f"unix:{path}")
        try:
            await transport.connected
        except BaseException:
            transport.stream.hang_up()
            raise
        protocol.connection_made(transport)
        return transport, protocol

    # -- what the simulation asks

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a task from outside of the loop."""
        return asyncio.Task(work, loop=self)

    def break_streams(self) -> None:
        """Lose every connection, as a fault."""
        for transport in list(self.transports):
            transport.stream.reset()

    def close(self) -> None:
        """Run nothing any more."""
        self.closed = True

    def _run(self, handle: asyncio.Handle) -> None:
        if handle.cancelled() or self.closed:
            return
        events._set_running_loop(self)
        try:
            handle._run()
        finally:
            events._set_running_loop(None)


class Transport(asyncio.Transport):
    """The client's end of one stream. `connected` is done when the other end has accepted."""

    def __init__(self, loop: VirtualLoop, protocol: Any, address: str) -> None:
        super().__init__()
        self.loop = loop
        self.protocol = protocol
        self.closing = False
        self.connected: asyncio.Future[None] = loop.create_future()
        self.stream: Stream = loop.cluster.open_stream(loop.host, address, self._hear)
        self.stream.dial()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.loop.on_sent(bytes(data), self)
        self.stream.to_far(bytes(data))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        """Hang up: what was sent is delivered, nothing more is heard."""
        if not self.closing:
            self.stream.hang_up()
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        self.closing = True
        self.loop.transports.pop(self, None)
        self.loop.call_soon(self.protocol.connection_lost, error)

    def _hear(self, data: bytes | None) -> None:
        if not self.connected.done():
            if data is None:
                self.connected.set_exception(ConnectionRefusedError("nobody listens there"))
                return
            self.loop.transports[self] = None
            self.connected.set_result(None)
        if data is None:
            if not self.closing:
                self._end(ConnectionResetError("the connection was reset"))
        elif data:
            self.loop.call_soon(self._take, data)

    def _take(self, data: bytes) -> None:
        if not self.closing:
            self.loop.on_heard(data, self)
            self.protocol.data_received(data)
