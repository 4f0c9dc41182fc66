"""The streams on which a worker's messages leave for other workers.

The one rule: a frame is sent or dropped, never kept: who needs it to arrive sends it again (`anna.kvs.link`). There
is one stream to each worker, dialled from here; what that worker has to say comes on its own stream to us. A stream
that cannot be opened, or that ends, is dialled again when there is something to send, after a pause that grows; one
whose bytes the other machine does not confirm is ended, for after a cut the kernel tries it ever more seldom.

With keys, streams to other machines are under TLS (`anna.sealed`).

A worker on this machine is dialled at its Unix socket; one on another machine never is, even if a file of that name
exists here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from time import monotonic
from typing import Final

from anna.address import TcpAddress, UnixAddress, parse_address
from anna.backoff import Backoff
from anna.errors import NotAdmitted
from anna.keys import Keys
from anna.kvs.worker import Worker
from anna.sealed import dial_sealed

log = logging.getLogger("anna.peers")

UNSENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""What may wait in one stream that its peer does not read; beyond it frames are dropped."""

DIAL_TIMEOUT_S: Final = 2.0

UNCONFIRMED_MS: Final = 3000
"""How long bytes may be under way to another machine before their stream is ended, and dialled again."""

REDIAL_PAUSE_S_MAX: Final = 1.0
"""The longest pause before a stream is dialled again: so much later, at most, a heal is noticed."""


class Peers:
    """The streams to the other workers that `worker` knows, and to addresses that it wants to try."""

    def __init__(self, worker: Worker, keys: Keys | None = None) -> None:
        self._worker = worker
        self._keys = keys
        self._streams: dict[int | str, Outbound] = {}

    def send(self, target: int | str, frame: bytes | list[bytes]) -> None:
        """Send a frame to a worker id or an address, if there is a stream; begin to open one if there is none."""
        stream = self._streams.get(target)
        if stream is None:
            stream = self._streams[target] = Outbound(self._addresses(target), self._keys)
            self._forget_strangers()
        stream.send(frame)

    def how_it_went(self, address: str) -> str:
        """Return what became of the last frames to an address, in words."""
        stream = self._streams.get(address)
        if stream is None:
            return "not asked yet"
        return "connected, without an answer" if stream.is_open else stream.failure or "no connection yet"

    def _addresses(self, target: int | str) -> tuple[str, ...]:
        if isinstance(target, str):
            return (target,)
        view = self._worker.view_of_peers
        info = next((worker for worker in view.workers if worker.worker_id == target), None)
        if info is None:
            return ()
        own = self._worker.view.node_of(self._worker.worker_id)  # who is superseded has no place in a newer view
        here = view.node_of(target).node_id == own.node_id
        near = [address for address in info.addresses if isinstance(parse_address(address), UnixAddress)]
        far = [address for address in info.addresses if address not in near]
        return tuple((near or far) if here else (far or near))

    def _forget_strangers(self) -> None:
        """Close the streams to workers that the view does not name any more."""
        known = {worker.worker_id for worker in self._worker.view_of_peers.workers}
        for target in [t for t in self._streams if isinstance(t, int) and t not in known]:
            self._streams.pop(target).close()

    def close(self) -> None:
        """End every stream."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()


class Outbound(asyncio.Protocol):
    """One stream to a peer: closed, being dialled, or open."""

    def __init__(self, addresses: tuple[str, ...], keys: Keys | None = None) -> None:
        self._keys = keys
        self._addresses = addresses
        self._transport: asyncio.Transport | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._backoff = Backoff()
        self._not_before = 0.0
        self._closed = False
        self.failure = ""
        """Why the stream could not be opened when that was tried last; empty where it could."""

    def send(self, frame: bytes | list[bytes]) -> None:
        """Send a frame now or not at all; the first one after a dial may wait for it."""
        transport = self._transport
        if transport is not None:
            if transport.get_write_buffer_size() <= UNSENT_BYTES_MAX:
                transport.writelines([frame] if isinstance(frame, bytes) else frame)
        elif self._dialling is None and not self._closed and self._addresses and monotonic() >= self._not_before:
            self._dialling = asyncio.ensure_future(self._dial(frame))

    async def _dial(self, first: bytes | list[bytes]) -> None:
        self._backoff.started(monotonic())
        try:
            for address in self._addresses:
                try:
                    async with asyncio.timeout(DIAL_TIMEOUT_S):
                        await self._connect(address)
                    self.failure = ""
                    break
                except (OSError, TimeoutError) as error:
                    self.failure = _reason(error)
                    log.debug("no stream to %s: %s", address, error)
            if self._transport is None:
                now = monotonic()
                self._not_before = now + min(self._backoff.crashed(now), REDIAL_PAUSE_S_MAX)
            else:
                self._transport.writelines([first] if isinstance(first, bytes) else first)
        finally:
            self._dialling = None

    async def _connect(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        address = parse_address(text)
        if isinstance(address, TcpAddress):
            transport, _ = await dial_sealed(lambda: self, address, self._keys)
            peer = transport.get_extra_info("socket")
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNCONFIRMED_MS)
        else:
            await loop.create_unix_connection(lambda: self, address.path)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._closed:
            transport.close()
            return
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if isinstance(error, NotAdmitted):
            self.failure = str(error)
            self._not_before = monotonic() + REDIAL_PAUSE_S_MAX

    @property
    def is_open(self) -> bool:
        """Whether frames leave now."""
        return self._transport is not None

    def close(self) -> None:
        """End the stream for good."""
        self._closed = True
        if self._dialling is not None:
            self._dialling.cancel()
        if self._transport is not None:
            self._transport.abort()


def _reason(error: OSError) -> str:
    """Return in a few words why a dial failed; asyncio's own say which call it was."""
    if isinstance(error, TimeoutError) and not error.errno:
        return f"no answer to the dial in {DIAL_TIMEOUT_S:.0f} s"
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)
