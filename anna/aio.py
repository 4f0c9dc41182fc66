"""The asyncio client: `kvs = await anna.aio.connect()`, then what the blocking client has, awaited.

The one rule: it is thin over the same `Requester` as the blocking client. One connection to each worker carries every
request of the process's loop; answers find their requests by id, so any number are in flight, and each ends by its
deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, cast

import msgpack

from anna.ack import Ack
from anna.address import UnixAddress, parse_address
from anna.client import check_ack
from anna.config import TIMEOUT_S
from anna.errors import AnnaError, ConnectionLost, KeyNotFound, NoWorkers, ProtocolError, RequestTimeout
from anna.lattices import Lattice
from anna.messages import View
from anna.requester import Replies, Requester
from anna.wire import (
    DELETE,
    GET,
    MISSING,
    OK,
    PARTIAL,
    PUSH,
    STATUS,
    VIEW,
    WRONG_WORKER,
)

Key = str | bytes

ATTEMPTS_MAX: Final = 64
RETRY_PAUSE_S: Final = 0.005
_RAISE: Final = object()


class Answer(NamedTuple):
    """One reply frame."""

    status: int
    type: int
    payload: bytes


class _Channel(asyncio.Protocol):
    """A connection to one worker: frames out, answers matched to futures by request id."""

    def __init__(self, address: str, requester: Requester) -> None:
        self.address = address
        self.requester = requester
        self.waiting: dict[int, asyncio.Future[Answer]] = {}
        self.replies = Replies()
        self.failure: AnnaError | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            answers = self.replies.feed(data)
        except ProtocolError as error:
            self.fail(error)
            return
        for request, status, kind, flags, stamp, payload in answers:
            self.requester.note(stamp)
            future = self.waiting.pop(request, None)
            if future is not None and not future.done():
                future.set_result(Answer(status, kind, payload))
            elif request == 0 and flags != PUSH:
                self.fail(self.requester.failure(status, payload))

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(ConnectionLost(f"the connection to {self.address} ended: {exc or 'closed by the worker'}"))

    def fail(self, error: Exception) -> None:
        """End the channel, and every request that waits on it, with `error`."""
        if self.failure is None:
            self.failure = error if isinstance(error, AnnaError) else ConnectionLost(str(error))
        waiting, self.waiting = self.waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(self.failure)
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


class AsyncClient:
    """A connection to an anna cluster for one event loop; methods and errors are `anna.Client`'s.

    Made by `anna.aio.connect`.
    """

    def __init__(self, seeds: Iterable[str], *, timeout: float, allow_pickle: bool, system: bool, lease: Any) -> None:
        self.seeds = tuple(seeds)
        self.timeout = timeout
        self.closed = False
        self._requester = Requester(View(0, ()), allow_pickle, system)
        self._channels: dict[str, _Channel] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._lease = lease

    async def get(self, key: Key, default: Any = _RAISE, *, timeout: float | None = None) -> Any:
        """Return the value under `key`. Raises KeyNotFound unless a `default` is given."""
        answer = await self._ask(GET, key, timeout)
        if answer.status == OK:
            return self._requester.decode(answer.type, answer.payload)
        return self._absent(answer, key, default)

    async def get_lattice(self, key: Key, default: Any = _RAISE, *, timeout: float | None = None) -> Lattice:
        """Return the lattice under `key`. Raises KeyNotFound unless a `default` is given."""
        answer = await self._ask(GET, key, timeout)
        if answer.status == OK:
            return self._requester.decode_lattice(answer.type, answer.payload)
        return cast(Lattice, self._absent(answer, key, default))

    async def put(self, key: Key, value: Any, *, ack: str | int | None = None, timeout: float | None = None) -> Ack:
        """Join `value` into `key` and return an Ack."""
        if ack is not None:
            check_ack(ack)
        answer = await self._ask(None, key, timeout, value)
        if answer.status != OK:
            raise self._requester.failure(answer.status, answer.payload)
        return Ack(1, 0, self._requester.seen)

    async def delete(self, key: Key, *, timeout: float | None = None) -> bool:
        """Forget `key`; return whether it was there."""
        answer = await self._ask(DELETE, key, timeout)
        if answer.status not in (OK, MISSING):
            raise self._requester.failure(answer.status, answer.payload)
        return answer.status == OK

    async def mget(self, keys: Iterable[Key], default: Any = None, *, timeout: float | None = None) -> list[Any]:
        """Return the values of `keys`, in their order, `default` for each that is missing."""
        names = list(keys)
        values = [default] * len(names)
        async with self._deadline(timeout):
            wanted = list(range(len(names)))
            while wanted:
                try:
                    wanted = await self._mget_once(names, values, wanted, default)
                except ConnectionLost:
                    await self._pause()
                if wanted:
                    await self._refresh()
        return values

    async def _mget_once(self, names: list[Key], values: list[Any], wanted: list[int], default: Any) -> list[int]:
        async def one(place: int, indexes: list[int]) -> list[int]:
            some = [names[i] for i in indexes]
            channel = await self._channel(place)
            answer = await channel.ask(*self._requester.multi_get_request(some))
            if answer.status != OK:
                raise self._requester.failure(answer.status, answer.payload)
            found, misplaced = self._requester.decode_multi_get(answer.payload, some, default)
            for index, value in zip(indexes, found):
                values[index] = value
            return [indexes[i] for i in misplaced]

        flights = [one(place, indexes) for place, indexes in self._group(names, wanted).items()]
        return [index for misplaced in await asyncio.gather(*flights) for index in misplaced]

    async def mput(
        self,
        items: Mapping[Any, Any] | Iterable[tuple[Key, Any]],
        *,
        ack: str | int | None = None,
        timeout: float | None = None,
    ) -> Ack:
        """Join each value into its key. Not atomic: the first refusal is raised after the others were written."""
        if ack is not None:
            check_ack(ack)
        pairs = list(items.items() if isinstance(items, Mapping) else items)
        keys, values = [key for key, _ in pairs], [value for _, value in pairs]
        refusals: list[Exception] = []
        async with self._deadline(timeout):
            wanted = list(range(len(keys)))
            while wanted:
                wanted = await self._mput_once(keys, values, wanted, refusals)
                if wanted:
                    await self._refresh()
        if refusals:
            raise refusals[0]
        return Ack(1, 0, self._requester.seen)

    async def _mput_once(
        self, keys: list[Key], values: list[Any], wanted: list[int], refusals: list[Exception]
    ) -> list[int]:
        async def one(place: int, indexes: list[int]) -> list[int]:
            request = self._requester.multi_put_request([keys[i] for i in indexes], [values[i] for i in indexes])
            channel = await self._channel(place)
            answer = await channel.ask(*request)
            if answer.status not in (OK, PARTIAL):
                raise self._requester.failure(answer.status, answer.payload)
            failures = msgpack.unpackb(answer.payload) if answer.status == PARTIAL else []
            for _, status, message in failures:
                if status != WRONG_WORKER:
                    refusals.append(self._requester.failure(status, message.encode()))
            return [indexes[i] for i, status, _ in failures if status == WRONG_WORKER]

        flights = [one(place, indexes) for place, indexes in self._group(keys, wanted).items()]
        return [index for misplaced in await asyncio.gather(*flights) for index in misplaced]

    def pipeline(self, *, timeout: float | None = None) -> AsyncPipeline:
        """Return a pipeline: many operations, one flight."""
        return AsyncPipeline(self, timeout)

    @property
    def view(self) -> View:
        """The workers as this client knows them."""
        return self._requester.view

    @property
    def stamp(self) -> int:
        """The greatest stamp that this client has seen."""
        return self._requester.seen

    async def status(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """Return each worker's figures, in the view's order."""
        async with self._deadline(timeout):
            channels = [await self._channel(place) for place in range(len(self.view.workers))]
            answers = [await channel.ask(*self._requester.request(STATUS)) for channel in channels]
        return [msgpack.unpackb(answer.payload) for answer in answers]

    async def close(self) -> None:
        """Close every connection, and the lease of an embedded cluster. Closing twice is harmless."""
        self.closed = True
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.fail(ConnectionLost("this client was closed"))
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, op: int | None, key: Key, timeout: float | None, value: Any = None) -> Answer:
        """Send one single-key request (`op` None: a put of `value`) to the key's owner, and follow the view."""
        async with self._deadline(timeout):
            for _ in range(ATTEMPTS_MAX):
                # The owner is asked for before the frame is made, so that a bad key is refused before any wait.
                place = self._requester.owner(key)
                channel = await self._channel(place)
                request = self._requester.put_request(key, value) if op is None else self._requester.request(op, key)
                try:
                    answer = await channel.ask(*request)
                except ConnectionLost:
                    if op != GET:
                        raise
                    await self._pause()
                    continue
                if answer.status != WRONG_WORKER:
                    return answer
                view = View.from_wire(msgpack.unpackb(answer.payload))
                if view.version <= self.view.version:
                    await self._pause()
                self._requester.adopt(view)
        raise NoWorkers(f"no worker owned the key {key!r} in {ATTEMPTS_MAX} attempts")

    def _absent(self, answer: Answer, key: Key, default: Any) -> Any:
        if answer.status != MISSING:
            raise self._requester.failure(answer.status, answer.payload)
        if default is _RAISE:
            raise KeyNotFound(f"no value is stored under {key!r}")
        return default

    def _group(self, keys: list[Key], wanted: list[int]) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = {}
        for index in wanted:
            groups.setdefault(self._requester.owner(keys[index]), []).append(index)
        return groups

    def _deadline(self, timeout: float | None) -> contextlib.AbstractAsyncContextManager[None]:
        seconds = self.timeout if timeout is None else timeout
        if not seconds > 0:
            raise ValueError(f"timeout is {seconds} s; it must be positive")
        return _within(seconds)

    async def _pause(self) -> None:
        await asyncio.sleep(RETRY_PAUSE_S)

    async def _channel(self, place: int) -> _Channel:
        """Return the channel to the worker at `place`, opening it when needed, until the deadline ends the attempts."""
        if self.closed:
            raise NoWorkers("this client is closed")
        workers = self.view.workers
        if not 0 <= place < len(workers):
            raise NoWorkers("the view names no worker")
        address = workers[place].addresses[0]
        channel = self._channels.get(address)
        if channel is not None and channel.failure is None:
            return channel
        async with self._opening.setdefault(address, asyncio.Lock()):
            while True:
                channel = self._channels.get(address)
                if channel is not None and channel.failure is None:
                    return channel
                try:
                    channel = self._channels[address] = await self._open(address)
                    return channel
                except OSError:
                    await self._pause()

    async def _open(self, address: str) -> _Channel:
        place = parse_address(address)
        loop = asyncio.get_running_loop()
        if isinstance(place, UnixAddress):
            _, channel = await loop.create_unix_connection(lambda: _Channel(address, self._requester), place.path)
        else:
            _, channel = await loop.create_connection(
                lambda: _Channel(address, self._requester), place.host, place.port
            )
        return channel

    async def _refresh(self) -> None:
        """Ask the seeds, then the workers that are known, for the view. Raises NoWorkers when none answers."""
        reasons = []
        known = (address for worker in self.view.workers for address in worker.addresses)
        for address in dict.fromkeys([*self.seeds, *known]):
            try:
                channel = await self._open(address)
            except OSError as error:
                reasons.append(f"{address}: {error.strerror or error}")
                continue
            try:
                answer = await channel.ask(*self._requester.request(VIEW))
                self._requester.adopt(View.from_wire(msgpack.unpackb(answer.payload)))
                return
            except AnnaError as error:
                reasons.append(f"{address}: {error}")
            finally:
                channel.close()
        raise NoWorkers(f"no worker answered at {'; '.join(reasons) or 'any address: none was given'}")


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout` that raises RequestTimeout."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RequestTimeout(f"no answer came within {seconds} s") from None


class AsyncPipeline:
    """Operations that are sent together: `async with kvs.pipeline() as p: p.put(…); p.get(…)`, then `p.results`."""

    def __init__(self, client: AsyncClient, timeout: float | None) -> None:
        self.client = client
        self.timeout = timeout
        self.results: list[Any] = []
        self._operations: list[tuple[str, tuple[Any, ...]]] = []

    def get(self, key: Key, default: Any = None) -> Self:
        """Queue a get."""
        self._operations.append(("get", (key, default)))
        return self

    def put(self, key: Key, value: Any) -> Self:
        """Queue a put."""
        self._operations.append(("put", (key, value)))
        return self

    def delete(self, key: Key) -> Self:
        """Queue a delete."""
        self._operations.append(("delete", (key,)))
        return self

    async def execute(self) -> list[Any]:
        """Send what is queued and return `results`.

        The first refused operation's error is raised after all were answered.
        """
        operations, self._operations = self._operations, []
        calls = [getattr(self.client, name)(*arguments, timeout=self.timeout) for name, arguments in operations]
        self.results = await asyncio.gather(*calls, return_exceptions=True)
        for result in self.results:
            if isinstance(result, BaseException):
                raise result
        return self.results

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.execute()


async def connect(
    address: str | None = None,
    *,
    timeout: float = TIMEOUT_S,
    allow_pickle: bool = True,
    ack: str | int | None = None,
    system: bool = False,
) -> AsyncClient:
    """Return an asyncio client; arguments and errors are `anna.connect`'s."""
    if ack is not None:
        check_ack(ack)
    address = address or os.environ.get("ANNA_ADDRESS")
    lease = None
    if address is None:
        from anna import local

        lease = await asyncio.to_thread(local.ensure)
        address = lease.address
    client = AsyncClient((address,), timeout=timeout, allow_pickle=allow_pickle, system=system, lease=lease)
    try:
        async with client._deadline(None):
            await client._refresh()
    except BaseException:
        await client.close()
        raise
    return client
