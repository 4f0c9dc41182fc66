"""`anna router`: a process that tells newcomers who is in the cluster, at an address that stays when nodes come and
go.

The one rule: nothing is decided here; what is asked and answered is the core's (`anna.routing.router`). A question is
a stream of its own to one worker, ended with its answer or after ASK_S; a client's stream is answered as its bytes
come. The loopback rule is that of `anna serve`. Source: DESIGN §5 (placement); the defect D31: a router that was
started again knew nobody until somebody joined.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from time import monotonic_ns
from typing import Final

import uvloop

from anna.address import TcpAddress, parse_address
from anna.errors import ProtocolError
from anna.keys import Keys, keys_from
from anna.listening import SeatSockets, check_local
from anna.logs import Event, configure
from anna.routing.router import Connection, Router
from anna.sealed import Door, dial_sealed

log = logging.getLogger("anna.router")

ASK_S: Final = 2.0
"""How long a worker may take to answer with the view."""

REST_S_MAX: Final = 60.0
REST_S_MIN: Final = 0.01

RECEIVE_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """What `anna router` is told: workers of the cluster, where to listen, and how to log."""

    join: tuple[str, ...]
    listen: tuple[str, ...]
    insecure: bool = False
    keys: str | None = None
    as_json: bool = False
    log_format: str = "text"


def serve_router(options: RouterOptions) -> int:
    """Run a router until SIGTERM, SIGINT or SIGHUP; return the exit code.

    Raises NotLocal, CannotListen, and ValueError for an address that is malformed or missing.
    """
    if not options.join or not options.listen:
        raise ValueError("a router needs --join, a worker to learn from, and --listen, an address to be asked at")
    for text in options.join:
        parse_address(text)
    addresses = [parse_address(text) for text in options.listen]
    keys = keys_from(options.keys)
    for warning in check_local(addresses, options.insecure, keys is not None):
        sys.stderr.write(f"anna router: warning: {warning}\n")
    configure(options.log_format)
    sockets = SeatSockets()
    try:
        for address in addresses:
            sockets.listen(address)
        _announce(sockets.addresses, options.as_json)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(Router(options.join, monotonic_ns()), sockets.sockets, keys))
    finally:
        sockets.unlink()
        sockets.close()
    return 0


def _announce(addresses: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"pid": os.getpid(), "addresses": addresses}), flush=True)
    else:
        print(f"anna router listens at {'  '.join(addresses)}; stop with Ctrl-C", flush=True)


async def _serve(router: Router, listeners: list[socket.socket], keys: Keys | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    driver = RouterDriver(router, keys)
    servers = [await driver.listen(listener) for listener in listeners]
    driver.poll()
    await stop.wait()
    for server in servers:
        server.close()
    driver.close()


class RouterDriver:
    """The sockets and the clock of one router's core, in the running loop."""

    def __init__(self, router: Router, keys: Keys | None = None) -> None:
        self.router = router
        self._keys = keys
        self._door = None if keys is None else Door(keys)
        self.clients: set[asyncio.BaseTransport] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._told = router.view.digest

    async def listen(self, listener: socket.socket) -> asyncio.AbstractServer:
        """Serve clients on a socket that is bound and listening."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        if listener.family == socket.AF_UNIX:
            return await loop.create_unix_server(lambda: Client(self), sock=listener)
        if self._door is not None:
            return await loop.create_server(self._door.accepting(lambda: Client(self)), sock=listener)
        return await loop.create_server(lambda: Client(self), sock=listener)

    def poll(self) -> None:
        """Ask what is due, and look again when the next question is."""
        if self._timer is not None:
            self._timer.cancel()
        for address, request in self.router.poll(monotonic_ns()):
            task = asyncio.ensure_future(self._ask(address, request))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        pause = (self.router.due() - monotonic_ns()) / 1e9
        self._timer = asyncio.get_running_loop().call_later(min(max(pause, REST_S_MIN), REST_S_MAX), self.poll)

    async def _ask(self, text: str, request: bytes) -> None:
        """Send one question, and let the core hear the answer. One that does not come is the core's to ask again."""
        try:
            async with asyncio.timeout(ASK_S):
                reader, writer = await _open(text, self._keys)
                try:
                    writer.write(request)
                    learnt = self.router.counts.learnt
                    while self.router.counts.learnt == learnt and (data := await reader.read(RECEIVE_BYTES)):
                        self.router.hear(text, data, monotonic_ns())
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            log.debug("no answer from %s: %s", text, error)
        except ProtocolError as error:
            log.warning("%s answered what is no view: %s", text, error)
        finally:
            self.router.lost(text)
        if self.router.view.digest != self._told:
            self._told = self.router.view.digest
            view = self.router.view
            log.info(
                "view %d: %d workers on %d nodes",
                view.version,
                len(view.workers),
                len(view.nodes),
                extra=Event.of("view", version=view.version, workers=len(view.workers), nodes=len(view.nodes)),
            )
        self.poll()

    def close(self) -> None:
        """Ask no more, and end every stream."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._asking:
            task.cancel()
        if self._door is not None:
            self._door.close()
        for transport in list(self.clients):
            transport.close()


async def _open(text: str, keys: Keys | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = parse_address(text)
    if isinstance(address, TcpAddress):
        reader = asyncio.StreamReader()
        transport, protocol = await dial_sealed(lambda: asyncio.StreamReaderProtocol(reader), address, keys)
        writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
        return reader, writer
    return await asyncio.open_unix_connection(address.path)


class Client(asyncio.Protocol):
    """One client's stream: bytes to the core, its answers back."""

    def __init__(self, driver: RouterDriver) -> None:
        self._driver = driver
        self._connection = Connection()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._driver.clients.add(transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(self._driver.router.receive(self._connection, data))
        if self._connection.failure is not None:
            log.warning("closed a connection for malformed bytes: %s", self._connection.failure)
            self._transport.close()

    def pause_writing(self) -> None:
        assert self._transport is not None
        with contextlib.suppress(RuntimeError):
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        assert self._transport is not None
        with contextlib.suppress(RuntimeError):
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._driver.clients.discard(self._transport)
