"""The process of a node that moves large values between hosts: it gives what lies here, and fetches what others have.

One process for each node that other hosts can reach, or that reaches them, so that neither executors nor clients hold
up anything while bytes travel. Its own processes ask over a Unix socket of packets: a descriptor, and the answer is
that of a segment here, which stays while the connection does. Those who want the same value share one fetch; when the
last of them has gone, the fetch is given up, or its segment removed. Other porters ask over TCP, chunk by chunk
(`segments.chunks`); what they get goes from the file to the socket within the kernel. Where this node cannot be
reached, its clients have it go to the porter that needs a value of theirs, and offer that.

The one rule: a chunk at a time. What travels is never in memory as a whole, but in the segment it becomes.
Source: DESIGN §6; decision record 0024.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
import os
import socket
from collections.abc import AsyncIterator
from typing import Final

import msgpack

from cloudburst import config
from cloudburst.addresses import open_socket
from cloudburst.errors import CloudburstError, NodeLost, NoRoom, ProtocolError
from cloudburst.segments.chunks import ASK, GONE, HERE, LENGTH, OPENING_BYTES_MAX, Chunks, opening, unpack_opening
from cloudburst.segments.descriptors import FETCHED, OFFERED, SegmentGone, SegmentUnseen, address_of, unpack_descriptor
from cloudburst.segments.distant import ANSWER_BYTES_MAX, FULL, LOST, UNSEEN, pack_answer
from cloudburst.segments.distant import GONE as GONE_THERE
from cloudburst.segments.distant import HERE as HERE_NOW
from cloudburst.segments.shelf import Incoming, Shelf

log = logging.getLogger("cloudburst.porter")

GIVING_S: Final = 60.0
"""How long a reader may take for what it has asked for, and an open connection may ask for nothing."""


class _Fetch:
    """A value on its way here, or here, and how many want it."""

    __slots__ = ("task", "users")

    def __init__(self, task: asyncio.Task[bytes]) -> None:
        self.task = task
        self.users = 0


class Porter:
    """Serves a node's processes at `near`, and other porters at `far`: who have the `key`, or come by the relay."""

    def __init__(self, shelf: Shelf, key: bytes, near: socket.socket, far: socket.socket | None) -> None:
        self._shelf = shelf
        self._directory = os.path.dirname(shelf.porter)
        self._key = key
        self._near, self._far = near, far
        self._fetches: dict[tuple[int, str], _Fetch] = {}
        self._offers: dict[tuple[int, str], asyncio.Future[tuple[socket.socket, asyncio.Event]]] = {}
        self._numbers = itertools.count(1)
        self._room = asyncio.Semaphore(config.FETCHES_MAX)
        self._connections = asyncio.Semaphore(config.PORTER_CONNECTIONS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Work until this process ends."""
        self._shelf.dismiss(FETCHED)  # what one has left that was killed
        self._shelf.admit(FETCHED)
        listeners = [self._listen(self._near, self._serve_near)]
        if self._far is not None:
            listeners.append(self._listen(self._far, self._serve_far))
        await asyncio.gather(*listeners)

    async def _listen(self, listener: socket.socket, serve: object) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            await self._connections.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as fault:
                log.warning("a connection could not be accepted: %s", fault)
                self._connections.release()
                await asyncio.sleep(0.1)
                continue
            task = asyncio.ensure_future(self._attend(connection, serve))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _attend(self, connection: socket.socket, serve: object) -> None:
        with connection:
            connection.setblocking(False)
            try:
                await serve(connection)  # type: ignore[operator]
            except (OSError, TimeoutError):
                pass  # the other side has gone, or might as well have
            except (ProtocolError, SegmentGone) as fault:
                log.warning("closing a connection: %s", fault)
            finally:
                self._connections.release()

    # -- for the processes of this node

    async def _serve_near(self, connection: socket.socket) -> None:
        """Fetch what is asked for, and keep it until the connection is closed."""
        loop = asyncio.get_running_loop()
        descriptor = await loop.sock_recv(connection, ANSWER_BYTES_MAX)
        if not descriptor:
            return
        offer = _unpack_offer(descriptor)
        if offer is not None:
            await self._offer(*offer)
            return
        token, name, _, _ = unpack_descriptor(descriptor)
        fetch = self._fetches.get((token, name))
        if fetch is None:
            fetch = self._fetches[token, name] = _Fetch(asyncio.ensure_future(self._fetched(descriptor)))
        fetch.users += 1
        closed = asyncio.ensure_future(loop.sock_recv(connection, 1))
        try:
            await asyncio.wait((fetch.task, closed), return_when=asyncio.FIRST_COMPLETED)
            if fetch.task.done():
                await loop.sock_sendall(connection, _answer_of(fetch.task))
                await closed
        finally:
            closed.cancel()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await closed
            self._let_go((token, name), fetch)

    def _let_go(self, wanted: tuple[int, str], fetch: _Fetch) -> None:
        """Take in that one less wants a value; nobody: give it up."""
        fetch.users -= 1
        if fetch.users and not _failed(fetch.task):
            return
        if self._fetches.get(wanted) is fetch:
            del self._fetches[wanted]
        if not fetch.task.done():
            fetch.task.cancel()
        elif not fetch.users and not _failed(fetch.task):
            self._shelf.remove(unpack_descriptor(fetch.task.result())[1])

    async def _fetched(self, descriptor: bytes) -> bytes:
        """Return the descriptor here of what another node has, once it is. Raises NodeLost, SegmentGone, NoRoom."""
        async with self._room:
            _, name, size, _ = unpack_descriptor(descriptor)
            incoming = self._shelf.receive(f"{FETCHED:x}/f{next(self._numbers):x}", size)
            chunks, buffer = Chunks(size), memoryview(bytearray(min(size, config.CHUNK_BYTES)))
            try:
                while not chunks.complete:
                    try:
                        await self._fetch_on(descriptor, chunks, incoming, buffer)
                    except (OSError, TimeoutError) as fault:
                        if address_of(descriptor).startswith(OFFERED):
                            raise SegmentUnseen(name) from None
                        if isinstance(fault, ConnectionRefusedError) or not chunks.torn():
                            so_far = f"after {chunks.arrived:,} of {size:,} bytes"
                            words = str(fault) or type(fault).__name__
                            raise NodeLost(f"it cannot be fetched ({words}, {so_far})", definite=False) from None
                return incoming.finish()
            except BaseException:
                incoming.abandon()
                raise

    async def _fetch_on(self, descriptor: bytes, chunks: Chunks, incoming: Incoming, buffer: memoryview) -> None:
        """Take in what one connection to the holder brings, until that is all. Raises OSError, TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(config.FETCH_SILENCE_S) as silence:
            async with self._connected(descriptor) as connection:
                said = await loop.sock_recv(connection, 1)
                if said == GONE:
                    raise SegmentGone(unpack_descriptor(descriptor)[1])
                if said != HERE:
                    raise ConnectionResetError("the connection was closed")
                while not chunks.complete:
                    asks = chunks.asks()
                    if asks:
                        await loop.sock_sendall(connection, asks)
                    count = await loop.sock_recv_into(connection, buffer)
                    if not count:
                        raise ConnectionResetError("the connection was closed")
                    incoming.write(buffer[:count], chunks.take(count))
                    silence.reschedule(loop.time() + config.FETCH_SILENCE_S)

    @contextlib.asynccontextmanager
    async def _connected(self, descriptor: bytes) -> AsyncIterator[socket.socket]:
        """A connection to the holder of a value: a new one, or, where he comes by himself, that."""
        loop, address = asyncio.get_running_loop(), address_of(descriptor)
        if address.startswith(OFFERED):
            token, name, _, _ = unpack_descriptor(descriptor)
            offer = self._offers.setdefault((token, name), loop.create_future())
            try:
                connection, over = await offer
            except asyncio.CancelledError:
                self._offers.pop((token, name), None)
                raise
            try:
                yield connection
            finally:
                over.set()
            return
        connection, place, first = open_socket(address, self._directory)
        with connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, place)
            await loop.sock_sendall(connection, first + opening(self._key, descriptor))
            yield connection

    # -- for porters of other nodes

    async def _offer(self, descriptor: bytes, address: str) -> None:
        """Go to a porter that cannot come here, and give it a value."""
        loop = asyncio.get_running_loop()
        connection, place, first = open_socket(address, self._directory)
        with connection:
            connection.setblocking(False)
            async with asyncio.timeout(config.FETCH_SILENCE_S):
                await loop.sock_connect(connection, place)
                await loop.sock_sendall(connection, first + opening(self._key, descriptor, offers=True))
            await self._give(connection, descriptor)

    async def _take_offer(self, connection: socket.socket, descriptor: bytes) -> None:
        """Keep a connection over which a value is offered until it is there."""
        token, name, _, _ = unpack_descriptor(descriptor)
        offer = self._offers.setdefault((token, name), asyncio.get_running_loop().create_future())
        if offer.done():
            return  # it is offered already, or nobody waits for it any more
        over = asyncio.Event()
        offer.set_result((connection, over))
        try:
            async with asyncio.timeout(GIVING_S):
                await over.wait()
        finally:
            if self._offers.get((token, name)) is offer:
                del self._offers[token, name]

    async def _serve_far(self, connection: socket.socket) -> None:
        """Give a segment of this node, chunk by chunk, to who has the key, or take one that he offers."""
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(config.FETCH_SILENCE_S):
            size = LENGTH.unpack(await _exactly(connection, LENGTH.size))[0]
            if size > OPENING_BYTES_MAX:
                raise ProtocolError(f"{size:,} bytes would open a connection")
            key, descriptor, offers = unpack_opening(await _exactly(connection, size))
        by_relay = connection.family == socket.AF_UNIX  # which has seen his keys
        if not by_relay and (not self._key or not hmac.compare_digest(key, self._key)):
            raise ProtocolError("a connection from another host without the key")
        if offers:
            await self._take_offer(connection, descriptor)
        else:
            await self._give(connection, descriptor)

    async def _give(self, connection: socket.socket, descriptor: bytes) -> None:
        """Answer what is asked for of a segment of this node, until the connection is closed."""
        loop = asyncio.get_running_loop()
        token, name, size, _ = unpack_descriptor(descriptor)
        try:
            if token != self._shelf.token:
                raise SegmentGone(name)
            fd = self._shelf.open(name, size)
        except SegmentGone:
            await loop.sock_sendall(connection, GONE)
            return
        with os.fdopen(fd, "rb", buffering=0) as file:
            await loop.sock_sendall(connection, HERE)
            while True:
                async with asyncio.timeout(GIVING_S):
                    at, count = ASK.unpack(await _exactly(connection, ASK.size))
                    if count > config.CHUNK_BYTES or at + count > size:
                        raise ProtocolError(f"{count:,} bytes at {at:,} of a value of {size:,}")
                    await loop.sock_sendfile(connection, file, at, count)


def _failed(task: asyncio.Task[bytes]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _answer_of(task: asyncio.Task[bytes]) -> bytes:
    try:
        return pack_answer(HERE_NOW, task.result())
    except SegmentUnseen as fault:
        return pack_answer(UNSEEN, str(fault).encode())
    except SegmentGone as fault:
        return pack_answer(GONE_THERE, str(fault).encode())
    except NoRoom as fault:
        return pack_answer(FULL, str(fault).encode())
    except NodeLost as fault:
        return pack_answer(LOST, str(fault).encode())
    except (CloudburstError, OSError) as fault:
        log.warning("a value could not be fetched: %s", fault)
        return pack_answer(LOST, f"{type(fault).__name__}: {fault}".encode())


def _unpack_offer(said: bytes) -> tuple[bytes, str] | None:
    """Return (descriptor, address) of what a client has offered; None for a descriptor that is asked for."""
    try:
        offer = msgpack.unpackb(said)
        return (bytes(offer["offer"]), str(offer["to"])) if isinstance(offer, dict) else None
    except (TypeError, ValueError, KeyError) as fault:
        raise ProtocolError(f"{len(said)} bytes are no request: {fault}") from None


async def _exactly(connection: socket.socket, size: int) -> bytes:
    """Return the next `size` bytes. Raises ConnectionResetError at the end."""
    data = b""
    while len(data) < size:
        more = await asyncio.get_running_loop().sock_recv(connection, size - len(data))
        if not more:
            raise ConnectionResetError("the connection was closed")
        data += more
    return data


def serve_porter(shelf: Shelf, key: bytes, near: socket.socket, far: socket.socket | None) -> None:
    """Be a node's porter, and never return."""

    async def serve() -> None:
        await Porter(shelf, key, near, far).serve()

    asyncio.run(serve())
