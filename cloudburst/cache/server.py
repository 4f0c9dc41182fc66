"""Drives a node's cache: executors at one side, the store's workers at the other.

The one rule: as in `anna.server`, nothing is decided here. There is one stream to each owner, so all that an owner says
arrives in order; when a stream ends the cache is told, and the stream is opened again until it succeeds.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import random
import signal
import socket
from collections.abc import Iterable
from time import monotonic_ns
from typing import Final, cast

import msgpack
import uvloop

from anna.address import UnixAddress, parse_address
from anna.errors import AnnaError, ProtocolError
from anna.keys import Keys, keys_from
from anna.kvs.worker import Connection
from anna.messages import NodeInfo, View, WorkerInfo
from anna.requester import Requester
from anna.requests import Replies
from anna.sealed import dial_sealed
from anna.server import WorkerServer, log, start_clock
from anna.wire import VIEW
from cloudburst import config
from cloudburst.cache.cache import Cache
from cloudburst.page import Page, summary_of
from cloudburst.segments.descriptors import VALUES, key_number
from cloudburst.segments.held import drop
from cloudburst.segments.shelf import Shelf

CACHE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Bytes of keys and states that a node's cache keeps."""

RECONNECT_S: Final = 0.01
"""Pause between two attempts to reach an owner."""

RETRY_S: Final = 0.005
"""How long a request is kept back that an owner did not take for its own."""

KEYS_S: Final = 0.1
"""How long after a change the keys that a cache has are told."""

KEYS_MAX: Final = 8192
"""Most keys that are told; with more, a summary would say of ever more keys that they are there."""

VIEW_LOOK_S: Final = 1.0
"""How often a cache looks whether there is a newer view, in a store of several nodes."""

REFRESH_VARIABLE: Final = "CLOUDBURST_REFRESH_S"
"""Environment variable: seconds between two moments at which caches take up what others wrote; at once without it."""


class CacheServer(WorkerServer):
    """A cache behind its listening socket, in the running loop."""

    worker: Cache

    def __init__(self, cache: Cache, seeds: tuple[str, ...], page: Page | None = None) -> None:
        super().__init__(cache)
        self.seeds = seeds
        self.owners: dict[int, asyncio.Transport] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._version = -1
        self._several = asyncio.Event()
        self._retrying = False
        self._page = page
        self._told_keys = 0
        self._telling_keys = False

    def connect_owners(self) -> None:
        """Keep a stream open to each owner of the present view, and to nobody else."""
        view = self.worker.owner_view
        self._version = view.version
        if len(view.nodes) > 1:
            self._several.set()
        addresses = {worker.worker_id: worker.addresses for worker in view.workers}
        for owner, places in addresses.items():
            if owner not in self.tasks:
                self.tasks[owner] = asyncio.ensure_future(self._stay_connected(owner, places))
        for owner in [owner for owner in self.tasks if owner not in addresses]:
            self.tasks.pop(owner).cancel()
            if owner in self.owners:
                self.owners[owner].abort()

    def push_soon(self) -> None:
        """Send what the cache has for its owners, now: a read waits for it."""
        for owner, frames in self.worker.outgoing():
            self.owners[owner].writelines(frames)

    def answer(self, answers: Iterable[tuple[Connection, list[bytes]]]) -> None:
        """Send what became answerable."""
        for connection, parts in answers:
            protocol = self.protocols.get(connection)
            if protocol is not None:
                protocol.send(parts)
        if self.worker.owner_view.version != self._version:
            self.connect_owners()
        if self._page is not None and self.worker.keys_version != self._told_keys and not self._telling_keys:
            self._telling_keys = True
            asyncio.get_running_loop().call_later(KEYS_S, self._tell_keys)
        if self.worker.holds and not self._retrying:
            self._retrying = True
            asyncio.get_running_loop().call_later(RETRY_S, self._retry)
        if self.worker.pushes_due:
            self.push_soon()
        if self.worker.has_news:
            self._deliver(self.worker.take_pushes())

    def _tell_keys(self) -> None:
        """Say in the node's page which keys are here, when there are other nodes that want to know."""
        assert self._page is not None
        self._telling_keys, self._told_keys = False, self.worker.keys_version
        if self._page.foreign():
            keys = self.worker.newest_keys(KEYS_MAX)
            self._page.summarize(0, self._page.incarnation, summary_of(keys))

    def _retry(self) -> None:
        self._retrying = False
        self.answer(self.worker.retry(monotonic_ns()))

    async def _stay_connected(self, owner: int, addresses: tuple[str, ...]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            ended = loop.create_future()
            for address in addresses:
                try:
                    await connect(address, lambda: _Owner(self, owner, ended))  # noqa: B023 (called before the loop goes on)
                    await ended
                    break
                except OSError:
                    continue
            await asyncio.sleep(RECONNECT_S)
            await self.look_for_view()

    async def look_for_view(self) -> None:
        """Take up a newer view of the owners if one of them has it."""
        known = [address for worker in self.worker.owner_view.workers for address in worker.addresses[:1]]
        random.shuffle(known)
        view = await fetch_view((*known, *self.seeds))
        if view is not None:
            self.worker.adopt_owners(view)
            self.answer(())

    async def refresh_each(self, seconds: float) -> None:
        """Take up what others wrote each so many seconds."""
        self.worker.delays = True
        while True:
            await asyncio.sleep(seconds)
            self.worker.refresh()
            self.answer(())

    async def follow_view(self) -> None:
        """Look for a newer view now and then: of owners that are silent nobody else may tell."""
        while True:
            await self._several.wait()
            await asyncio.sleep(VIEW_LOOK_S)
            await self.look_for_view()


class _Owner(asyncio.Protocol):
    """The stream to one owner."""

    transport: asyncio.Transport

    def __init__(self, server: CacheServer, owner: int, ended: asyncio.Future[None]) -> None:
        self.server = server
        self.owner = owner
        self.ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.owners[self.owner] = self.transport
        self.server.worker.owner_up(self.owner)
        self.server.answer(())

    def data_received(self, data: bytes) -> None:
        try:
            self.server.answer(self.server.worker.hear(self.owner, data, monotonic_ns()))
        except ProtocolError as error:
            log.error("owner %016x does not speak the protocol: %s", self.owner, error)
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.owners.pop(self.owner, None)
        self.server.answer(self.server.worker.owner_down(self.owner))
        if not self.ended.done():
            self.ended.set_result(None)


async def connect(address: str, factory: type[asyncio.Protocol] | object) -> None:
    """Open a stream to `address` for a protocol that `factory` makes, under TLS if it is TCP and there are keys.

    Raises OSError.
    """
    place = parse_address(address)
    loop = asyncio.get_running_loop()
    make = cast("type[asyncio.Protocol]", factory)
    if isinstance(place, UnixAddress):
        await loop.create_unix_connection(make, place.path)
    else:
        await dial_sealed(make, place, _keys())


@functools.cache
def _keys() -> Keys | None:
    """Return the keys that this node shows to owners on other hosts, those of its environment."""
    return keys_from(None)


class _ViewReader(asyncio.Protocol):
    """Asks for the view and ends."""

    def __init__(self, result: asyncio.Future[View]) -> None:
        self.result = result
        self.replies = Replies()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(Requester(View(0, ())).request(VIEW)[1])

    def data_received(self, data: bytes) -> None:
        try:
            for answer in self.replies.feed(data):
                self.result.set_result(View.from_wire(msgpack.unpackb(answer[-1])))
                self.transport.close()
        except (AnnaError, ValueError, asyncio.InvalidStateError):
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.result.done():
            self.result.set_exception(ConnectionError("the worker ended the stream before it gave its view"))


async def fetch_view(seeds: Iterable[str]) -> View | None:
    """Return the view as the first seed that answers knows it, or None."""
    for address in dict.fromkeys(seeds):
        result: asyncio.Future[View] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(1.0):
                await connect(address, lambda: _ViewReader(result))  # noqa: B023 (called before the loop goes on)
                return await result
        except OSError:
            continue
    return None


class Keeper:
    """Puts large values where executors map them: in the node's shared memory, under names of the cache's own.

    A key keeps its number from one value to the next, so that a reader lets go of the last one when it maps a new one.
    A name stays for a while after its value was replaced: whoever was told of it just now still finds it.
    """

    bytes_min = config.SEGMENT_BYTES_MIN

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._number = os.getpid() << 32
        shelf.dismiss(VALUES)  # those of a cache that died
        shelf.admit(VALUES)

    def keep(self, value: bytes, former: bytes | None) -> bytes | None:
        """Return where `value` is now, None when there is no room."""
        self._number += 1
        number = self._number if former is None else key_number(former)
        return self._shelf.write_value(number, self._number, value)

    def drop(self, where: bytes) -> None:
        """Remove a value that was replaced or is not kept any more."""
        asyncio.get_running_loop().call_later(config.SEGMENT_GRACE_S, drop, where)


async def _serve(
    listener: socket.socket, address: str, seeds: tuple[str, ...], bytes_max: int, shelf: Shelf | None,
    page: Page | None,
) -> None:  # fmt: skip
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    own = View(1, (NodeInfo(1, (WorkerInfo(1, (address,)),)),))
    owners = await fetch_view(seeds)
    while owners is None or not owners.serving:  # a node that joins a store has no share in it at first
        await asyncio.sleep(RECONNECT_S)
        owners = await fetch_view(seeds)
    keeper = None if shelf is None else Keeper(shelf)
    shared_bytes_max = 0 if shelf is None else int(shelf.bytes_max * config.CACHE_SHARE)
    cache = Cache(own, owners, start_clock(), bytes_max, keeper, shared_bytes_max)
    server = CacheServer(cache, seeds, page)
    server.connect_owners()
    lasting = [asyncio.ensure_future(server.follow_view())]
    if refresh_s := float(os.environ.get(REFRESH_VARIABLE) or 0):
        lasting.append(asyncio.ensure_future(server.refresh_each(refresh_s)))
    await server.listen([listener])
    gc.collect()
    gc.freeze()
    await stop.wait()
    for task in (*lasting, *server.tasks.values()):
        task.cancel()
    server.close()


def serve_cache(
    listener: socket.socket, address: str, seeds: tuple[str, ...], bytes_max: int = CACHE_BYTES_MAX,
    shelf: Shelf | None = None, page: Page | None = None,
) -> None:  # fmt: skip
    """Serve a node's cache on `listener`, which is bound to `address`, until SIGTERM or SIGINT.

    `seeds` are addresses of the store's workers; the cache waits for the first of them that answers. Large values go
    to `shelf`, and what keys there are is told in the node's `page`. Runs its own event loop.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(listener, address, seeds, bytes_max, shelf, page))
