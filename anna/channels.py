"""A connection of the asyncio client to one worker: frames out, answers matched to futures by request id.

The one rule: a connection that failed in any way is ended, with every request that waits on it, and never used again.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, cast

from anna.address import UnixAddress, parse_address
from anna.errors import AnnaError, ConnectionLost, NotAdmitted, ProtocolError
from anna.gate import WANTS_KEYS, wants_keys
from anna.handshake import explained
from anna.keys import Keys
from anna.requester import Requester
from anna.requests import Replies
from anna.sealed import dial_sealed
from anna.wire import DURABLE, PUSH


class Answer(NamedTuple):
    """One reply frame."""

    status: int
    type: int
    flags: int
    stamp: int
    payload: bytes


class Channel(asyncio.Protocol):
    """A connection to one worker: frames out, answers matched to futures by request id."""

    def __init__(self, address: str, requester: Requester) -> None:
        self.address = address
        self.requester = requester
        self.waiting: dict[int, asyncio.Future[Answer]] = {}
        self.replies = Replies()
        self.failure: AnnaError | None = None
        self.transport: asyncio.Transport | None = None
        self.pushes: asyncio.Queue[Answer | None] = asyncio.Queue()
        """What subscriptions push, and answers to `ask_among_pushes`; None at the end of the connection."""
        self._among_pushes: set[int] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if data == WANTS_KEYS:
            self.fail(wants_keys(self.address))
            return
        try:
            answers = self.replies.feed(data)
        except ProtocolError as error:
            self.fail(error)
            return
        for request, status, kind, flags, stamp, payload in answers:
            # Of an answer, the upper bits tell of the worker's view; a push is told by all of them.
            self.requester.note(stamp, flags=flags if request else 0)
            answer = Answer(status, kind, flags & DURABLE if request else flags, stamp, payload)
            future = self.waiting.pop(request, None)
            if request in self._among_pushes:
                self._among_pushes.discard(request)
                self.pushes.put_nowait(answer)
            elif future is not None and not future.done():
                future.set_result(answer)
            elif request == 0 and flags == PUSH:
                self.pushes.put_nowait(answer)
            elif request == 0 and flags != PUSH:
                self.fail(self.requester.failure(status, payload))

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, AnnaError):
            self.fail(exc)
        self.fail(ConnectionLost(f"the connection to {self.address} ended: {exc or 'closed by the worker'}"))

    def fail(self, error: Exception) -> None:
        """End the channel, and every request that waits on it, with `error`."""
        if self.failure is None:
            self.failure = error if isinstance(error, AnnaError) else ConnectionLost(str(error))
        waiting, self.waiting = self.waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(self.failure)
        self.pushes.put_nowait(None)
        self.close()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def ask(self, request: int, frame: bytes) -> asyncio.Future[Answer]:
        """Send a frame; the future ends with its answer."""
        if self.failure is not None or self.transport is None:
            raise ConnectionLost(f"the connection to {self.address} has ended")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting[request] = future
        self.transport.write(frame)
        return future

    def tell(self, frame: bytes) -> None:
        """Send a frame that is not answered, if the connection is there still."""
        if self.failure is None and self.transport is not None:
            self.transport.write(frame)

    def ask_among_pushes(self, request: int, frame: bytes) -> None:
        """Send a frame whose answer comes in `pushes`, behind what the worker has pushed before it."""
        if self.failure is None and self.transport is not None:
            self._among_pushes.add(request)
            self.transport.write(frame)


async def dial(address: str, requester: Requester, keys: Keys | None = None) -> Channel:
    """Return a new connection to the worker at `address`. Raises OSError, of which NotAdmitted is one."""
    place = parse_address(address)
    loop = asyncio.get_running_loop()
    if isinstance(place, UnixAddress):
        _, channel = await loop.create_unix_connection(lambda: Channel(address, requester), place.path)
    else:
        try:
            _, channel = await dial_sealed(lambda: Channel(address, requester), place, keys)
        except NotAdmitted as error:
            raise await asyncio.to_thread(explained, error, address) from None
    return channel
