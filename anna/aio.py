"""The asyncio client: `kvs = await anna.aio.connect()`, then what the blocking client has, awaited.

The one rule: it is thin over the same `Requester` as the blocking client. One connection to each worker carries every
request of the process's loop; answers find their requests by id, so any number are in flight, and each ends by its
deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from time import monotonic_ns
from types import TracebackType
from typing import Any, Final, Self, cast

import msgpack

from anna.ack import Ack, ack_number
from anna.channels import Answer, Channel, dial
from anna.config import OWNER_SHARE_MIN_NS, TIMEOUT_S
from anna.errors import (
    AnnaError,
    ConnectionLost,
    KeyNotFound,
    NoWorkers,
    RequestTimeout,
    StaleReplica,
    UnavailableError,
)
from anna.lattices import Lattice
from anna.messages import View
from anna.requester import Requester
from anna.routes import Route, may_ask_again, time_to_reach
from anna.scan import Scan
from anna.watching import Watched, pushed
from anna.wire import DELETE, GET, MISSING, OK, PARTIAL, STALE, STATUS, SUBSCRIBE, VIEW, WRONG_WORKER

Key = str | bytes

RETRY_PAUSE_S: Final = 0.005
GRACE_S: Final = 0.1
"""How long after its deadline a call is ended from outside, should it not have ended by itself."""
_RAISE: Final = object()


class AsyncClient:
    """A connection to an anna cluster for one event loop; methods and errors are `anna.Client`'s.

    Made by `anna.aio.connect`. `now` gives the monotonic time in ns.
    """

    def __init__(
        self,
        seeds: Iterable[str],
        *,
        timeout: float,
        allow_pickle: bool,
        system: bool,
        ack: str | int | None,
        lease: Any,
        now: Callable[[], int] = monotonic_ns,
    ) -> None:
        self.seeds = tuple(seeds)
        self.timeout = timeout
        self.closed = False
        self._requester = Requester(View(0, ()), allow_pickle, system, ack)
        self._channels: dict[str, Channel] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._lease = lease
        self._now = now

    async def reach(self) -> None:
        """Learn who is in the cluster from the first seed that answers. Raises NoWorkers or RequestTimeout."""
        async with self._deadline(None):
            await self._refresh()

    async def get(self, key: Key, default: Any = _RAISE, *, timeout: float | None = None) -> Any:
        """Return the value under `key`. Raises KeyNotFound unless a `default` is given."""
        answer = await self._ask(key, timeout, True, lambda strict: self._requester.request(GET, key, strict=strict))
        if answer.status == OK:
            return self._requester.decode(answer.type, answer.payload)
        return self._absent(answer, key, default)

    async def get_lattice(self, key: Key, default: Any = _RAISE, *, timeout: float | None = None) -> Lattice:
        """Return the lattice under `key`. Raises KeyNotFound unless a `default` is given."""
        answer = await self._ask(key, timeout, True, lambda strict: self._requester.request(GET, key, strict=strict))
        if answer.status == OK:
            return self._requester.decode_lattice(answer.type, answer.payload)
        return cast(Lattice, self._absent(answer, key, default))

    async def put(
        self,
        key: Key,
        value: Any,
        *,
        ack: str | int | None = None,
        ttl: float | None = None,
        if_stamp: int | None = None,
        timeout: float | None = None,
    ) -> Ack:
        """Join `value` into `key` and return an Ack; the options are those of `anna.Client.put`."""
        request = self._requester.put_request(key, value, ack, ttl, if_stamp)
        answer = await self._ask(key, timeout, False, lambda _: request)
        if answer.status != OK:
            raise self._requester.failure(answer.status, answer.payload)
        return Ack(answer.type + 1, answer.flags, answer.stamp)

    async def delete(self, key: Key, *, ack: str | int | None = None, timeout: float | None = None) -> bool:
        """Forget `key`; return whether it was there."""
        request = self._requester.request(DELETE, key, ack=ack)
        answer = await self._ask(key, timeout, False, lambda _: request)
        if answer.status not in (OK, MISSING):
            raise self._requester.failure(answer.status, answer.payload)
        return answer.status == OK

    async def mget(self, keys: Iterable[Key], default: Any = None, *, timeout: float | None = None) -> list[Any]:
        """Return the values of `keys`, in their order, `default` for each that is missing."""
        names = list(keys)
        values = [default] * len(names)

        async def one(place: int, strict: int, indexes: list[int]) -> list[int]:
            some = [names[i] for i in indexes]
            try:
                async with asyncio.timeout(share):
                    answer = await (await self._channel(place)).ask(*self._requester.multi_get_request(some, strict))
            except (ConnectionLost, NoWorkers, TimeoutError) as error:
                if self.closed:
                    raise
                return self._missed(place, indexes, error)
            self._heard(place, some, answer)
            if answer.status == STALE:
                return indexes
            if answer.status != OK:
                raise self._requester.failure(answer.status, answer.payload)
            found, misplaced = self._requester.decode_multi_get(answer.payload, some, default)
            for index, value in zip(indexes, found):
                values[index] = value
            return [indexes[i] for i in misplaced]

        seconds = self.timeout if timeout is None else timeout
        share = max(seconds / max(self._requester.copies, 1), OWNER_SHARE_MIN_NS / 1e9)
        await self._rounds(names, timeout, True, one)
        return values

    async def mput(
        self,
        items: Mapping[Any, Any] | Iterable[tuple[Key, Any]],
        *,
        ack: str | int | None = None,
        timeout: float | None = None,
    ) -> Ack:
        """Join each value into its key; return the least Ack. Not atomic: the first refusal is raised at the end."""
        pairs = list(items.items() if isinstance(items, Mapping) else items)
        keys, values = [key for key, _ in pairs], [value for _, value in pairs]
        deadline = self._now() + int((self.timeout if timeout is None else timeout) * 1e9)
        refusals: list[Exception] = []
        acks: list[tuple[int, int]] = []

        async def one(place: int, _: int, indexes: list[int]) -> list[int]:
            some = [keys[i] for i in indexes]
            request = self._requester.multi_put_request(some, [values[i] for i in indexes], ack)
            now = self._now()
            reach = time_to_reach(now, deadline, self._requester.copies)
            try:
                async with asyncio.timeout((reach - now) / 1e9):
                    channel = await self._channel(place)
            except (NoWorkers, TimeoutError) as error:
                if self.closed:
                    raise
                return self._missed(place, indexes, error)
            answer = await channel.ask(*request)
            self._heard(place, some, answer)
            if answer.status not in (OK, PARTIAL):
                raise self._requester.failure(answer.status, answer.payload)
            acks.append((answer.type + 1, answer.flags))
            failures = msgpack.unpackb(answer.payload) if answer.status == PARTIAL else []
            for _, status, message in failures:
                if status != WRONG_WORKER:
                    refusals.append(self._requester.failure(status, message.encode()))
            return [indexes[i] for i, status, _ in failures if status == WRONG_WORKER]

        await self._rounds(keys, timeout, False, one)
        if refusals:
            raise refusals[0]
        replicas, durable = min((n for n, _ in acks), default=1), min((n for _, n in acks), default=0)
        return Ack(replicas, durable, self._requester.seen)

    async def scan(
        self, prefix: Key = "", limit: int | None = None, *, timeout: float | None = None
    ) -> AsyncIterator[str | bytes]:
        """Give the keys that begin with `prefix`, in order; see `anna.Client.scan`."""
        scan = Scan(self.view, prefix, limit)
        while pages := scan.wanted():
            for place, cursor in pages:
                try:
                    async with self._deadline(timeout):
                        while not scan.take(place, *await self._page(scan, place, cursor)):
                            await self._pause()
                except UnavailableError as error:
                    scan.failed(place, error)
            for key in scan.ready():
                yield key
        for key in scan.ready():
            yield key

    async def _page(self, scan: Scan, place: int, cursor: bytes) -> tuple[list[bytes], bool]:
        channel = await self._channel(place)
        answer = await channel.ask(*self._requester.scan_request(scan.prefix, cursor, scan.page_keys))
        if answer.status != OK:
            raise self._requester.failure(answer.status, answer.payload)
        keys, more = msgpack.unpackb(answer.payload)
        return keys, more

    async def watch(self, key: Key, *, timeout: float | None = None) -> AsyncIterator[Any]:
        """Give the values of `key` as they change; see `anna.Client.watch`."""
        watched = Watched()
        while not self.closed:
            channel: Channel | None = None
            try:
                async with asyncio.timeout(timeout):
                    channel, answer = await self._subscribe(key)
                while True:
                    payload = pushed(answer.payload) if answer.flags else answer.payload
                    state = self._requester.decode_lattice(answer.type, payload) if answer.status == OK else None
                    shown = watched.show(state)
                    if shown is not None:
                        yield shown.read(self._requester.allow_pickle)
                    async with asyncio.timeout(timeout):
                        push = await self._next_push(channel, key)
                    if push is None:
                        break
                    answer = push
            except UnavailableError:
                await self._pause()
            except TimeoutError:
                return
            finally:
                if channel is not None:
                    channel.close()

    async def _next_push(self, channel: Channel, key: Key) -> Answer | None:
        """Return what comes next on a subscription. When nothing does for long, its owner is asked again."""
        try:
            async with asyncio.timeout(self.timeout):
                return await channel.pushes.get()
        except TimeoutError:
            async with self._deadline(None):
                answer = await channel.ask(*self._requester.request(SUBSCRIBE, key))
            return answer if answer.status in (OK, MISSING) else None

    async def _subscribe(self, key: Key) -> tuple[Channel, Answer]:
        """Return a connection of its own to an owner of `key`, and what that holds now."""
        made: list[Channel] = []

        async def connect(place: int) -> Channel:
            made.append(await self._open(place))
            return made[-1]

        try:
            answer = await self._ask(
                key, None, True, lambda strict: self._requester.request(SUBSCRIBE, key, strict=strict), connect
            )
            if answer.status not in (OK, MISSING):
                raise self._requester.failure(answer.status, answer.payload)
            return made.pop(), answer
        finally:
            for channel in made:
                channel.close()

    def pipeline(self, *, ack: str | int | None = None, timeout: float | None = None) -> AsyncPipeline:
        """Return a pipeline: many operations, one flight."""
        return AsyncPipeline(self, timeout, ack)

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

    async def _ask(
        self,
        key: Key,
        timeout: float | None,
        reads: bool,
        frame: Callable[[int], tuple[int, bytes]],
        connect: Callable[[int], Any] | None = None,
    ) -> Answer:
        """Send one single-key request on its route; `frame` makes it from the stamp up to which to be current."""
        seconds = self.timeout if timeout is None else timeout
        now = self._now()
        deadline = now + int(seconds * 1e9)
        async with self._deadline(seconds + GRACE_S if seconds > 0 else seconds):
            error: Exception | None = None
            # The route knows the key before any wait, so a bad key is refused at once.
            route = self._requester.route(key, reads, now, deadline)
            while (now := self._now()) + OWNER_SHARE_MIN_NS // 50 < deadline:
                step = route.step(now)
                if step is None:
                    await self._look_around(route)
                    continue
                sent = False
                reach = min(step.limit, time_to_reach(now, deadline, self._requester.copies))
                try:
                    async with asyncio.timeout((reach - now) / 1e9):
                        channel = await (connect or self._channel)(step.place)
                    async with asyncio.timeout((step.limit - self._now()) / 1e9):
                        sent = True
                        answer: Answer = await channel.ask(*frame(step.strict))
                except (ConnectionLost, NoWorkers, TimeoutError) as problem:
                    if self.closed or not may_ask_again(reads, sent):
                        raise
                    error = problem
                    self._missed(step.place, [], problem)
                    continue
                self._heard(step.place, [key], answer)
                if answer.status == STALE:
                    route.stale = True
                elif answer.status != WRONG_WORKER:
                    return answer
                else:
                    if not self._requester.adopt(View.from_wire(msgpack.unpackb(answer.payload))):
                        await self._pause()
                    route.restart(self._now())
            raise self._given_up(repr(key), route.stale, error)

    async def _look_around(self, route: Route) -> None:
        """All owners were tried: pause, look for a newer view, and begin again."""
        await self._pause()
        if not route.stale:
            with contextlib.suppress(NoWorkers, TimeoutError):
                async with asyncio.timeout(self.timeout / 2):
                    await self._refresh()
        route.restart(self._now())

    def _given_up(self, what: str, stale: bool, error: Exception | None) -> Exception:
        if stale:
            return StaleReplica(f"no owner of {what} had all that this client has seen before the deadline")
        if isinstance(error, NoWorkers):
            return error
        if error is None:
            return NoWorkers(f"no worker took {what} for its own before the deadline")
        return RequestTimeout(f"no owner of {what} answered before the deadline, though each was tried again")

    def _missed(self, place: int, indexes: list[int], error: Exception) -> list[int]:
        """A worker was not reached or did not answer: others are asked first for a while."""
        self._requester.suspect(place, self._now())
        return indexes

    def _heard(self, place: int, keys: list[Key], answer: Answer) -> None:
        """A worker has answered about these keys."""
        self._requester.note(answer.stamp, place)
        if self._requester.troubled:
            stable = max((channel.replies.stable for channel in self._channels.values()), default=0)
            for key in keys:
                self._requester.answered(key, place, answer.stamp, stable)

    async def _rounds(
        self,
        keys: list[Key],
        timeout: float | None,
        reads: bool,
        one: Callable[[int, int, list[int]], Any],
    ) -> None:
        """Ask for the keys in groups, one for each worker, until no group has any left."""
        async with self._deadline(timeout):
            wanted = list(range(len(keys)))
            while wanted:
                groups = self._group(keys, wanted, reads)
                flights = [one(place, strict, indexes) for (place, strict), indexes in groups.items()]
                wanted = sorted(index for left in await asyncio.gather(*flights) for index in left)
                if wanted:
                    await self._pause()
                    with contextlib.suppress(NoWorkers):
                        await self._refresh()

    def _absent(self, answer: Answer, key: Key, default: Any) -> Any:
        if answer.status != MISSING:
            raise self._requester.failure(answer.status, answer.payload)
        if default is _RAISE:
            raise KeyNotFound(f"no value is stored under {key!r}")
        return default

    def _group(self, keys: list[Key], wanted: list[int], reads: bool) -> dict[tuple[int, int], list[int]]:
        """Return {(place, stamp up to which it must be current): indexes of its keys}."""
        groups: dict[tuple[int, int], list[int]] = {}
        requester, now = self._requester, self._now()
        for index in wanted:
            key = keys[index]
            if not requester.troubled:
                groups.setdefault((requester.owner(key), 0), []).append(index)
                continue
            place = requester.trusted_owner(key, now)
            strict = requester.strict_stamp(key, place) if reads and place >= 0 else 0
            groups.setdefault((place, strict), []).append(index)
        return groups

    def _deadline(self, timeout: float | None) -> contextlib.AbstractAsyncContextManager[None]:
        seconds = self.timeout if timeout is None else timeout
        if not seconds > 0:
            raise ValueError(f"timeout is {seconds} s; it must be positive")
        return _within(seconds)

    async def _pause(self) -> None:
        await asyncio.sleep(RETRY_PAUSE_S)

    async def _channel(self, place: int) -> Channel:
        """Return the channel to the worker at `place`, opening it when needed. Raises NoWorkers."""
        if self.closed:
            raise NoWorkers("this client is closed")
        if not 0 <= place < len(self.view.workers):
            raise NoWorkers("the view names no worker")
        addresses = self._requester.addresses(place)
        for address in addresses:
            channel = self._channels.get(address)
            if channel is not None and channel.failure is None:
                return channel
        async with self._opening.setdefault(addresses[0], asyncio.Lock()):
            for address in addresses:
                channel = self._channels.get(address)
                if channel is not None and channel.failure is None:
                    return channel
            channel = await self._open(place)
            self._channels[channel.address] = channel
            return channel

    async def _open(self, place: int) -> Channel:
        """Return a new connection to the worker at `place`. Raises NoWorkers."""
        reasons = []
        for address in self._requester.addresses(place):
            try:
                return await dial(address, self._requester)
            except OSError as error:
                reasons.append(f"{address}: {error.strerror or error}")
        raise NoWorkers(f"worker {place} could not be reached ({'; '.join(reasons)})")

    async def _refresh(self) -> None:
        """Ask the workers that are known, then the seeds, for the view. Raises NoWorkers when none answers."""
        reasons = []
        requester, workers = self._requester, self.view.workers
        known = [(w.worker_id in requester.suspects, requester.addresses(i)) for i, w in enumerate(workers)]
        likely = [address for suspected, addresses in known if not suspected for address in addresses]
        addresses = list(dict.fromkeys([*likely, *self.seeds, *(a for _, some in known for a in some)]))
        for number, address in enumerate(addresses):
            try:
                async with asyncio.timeout(max(self.timeout / (len(addresses) - number), OWNER_SHARE_MIN_NS / 1e9)):
                    await self._learn_view(address)
                return
            except (AnnaError, OSError) as error:
                reasons.append(f"{address}: {getattr(error, 'strerror', None) or error}")
        raise NoWorkers(f"no worker answered at {'; '.join(reasons) or 'any address: none was given'}")

    async def _learn_view(self, address: str) -> None:
        channel = await dial(address, self._requester)
        try:
            answer = await channel.ask(*self._requester.request(VIEW))
            if answer.status != OK:
                raise self._requester.failure(answer.status, answer.payload)
            self._requester.settle(channel.replies.stable)
            self._requester.adopt(View.from_wire(msgpack.unpackb(answer.payload)))
            self._requester.reached(address)
        finally:
            channel.close()


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

    def __init__(self, client: AsyncClient, timeout: float | None, ack: str | int | None = None) -> None:
        if ack is not None:
            ack_number(ack)
        self._ack = ack
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
        calls = [
            getattr(self.client, name)(*words, timeout=self.timeout, **({} if name == "get" else {"ack": self._ack}))
            for name, words in operations
        ]
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
    address = address or os.environ.get("ANNA_ADDRESS")
    lease = None
    if address is None:
        from anna import local

        lease = await asyncio.to_thread(local.ensure)
        address = lease.address
    client = AsyncClient((address,), timeout=timeout, allow_pickle=allow_pickle, system=system, ack=ack, lease=lease)
    try:
        await client.reach()
    except BaseException:
        await client.close()
        raise
    return client
