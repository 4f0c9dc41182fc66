"""The asyncio client: `kvs = await anna.aio.connect()`, then what the blocking client has, awaited.

The one rule: it is thin over the same `Requester` as the blocking client. One connection to each worker carries every
request of the process's loop; answers find their requests by id, so any number are in flight, and each ends by its
deadline. How a request finds its worker is in `anna.flights`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from time import monotonic_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

import msgpack

from anna.ack import Ack, ack_number
from anna.channels import Answer, Channel
from anna.commits import transaction_of
from anna.config import TIMEOUT_S
from anna.errors import AnnaError, KeyNotFound, NoWorkers, UnavailableError
from anna.flights import Batch, Flight, Flights, Key
from anna.keys import Keys, keys_from
from anna.lattices import Lattice
from anna.messages import View
from anna.requester import Requester
from anna.scan import Scan
from anna.watching import Watched, pushed
from anna.wire import DELETE, GET, MISSING, OK, PARTIAL, STATUS, SUBSCRIBE, WRONG_WORKER

if TYPE_CHECKING:
    from anna.commits import Writes

_RAISE: Final = object()


class AsyncClient(Flights):
    """A connection to an anna cluster for one event loop; methods and errors are `anna.Client`'s.

    Made by `anna.aio.connect`. `now` gives the monotonic time in ns, `entropy` so many random bytes.
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
        keys: Keys | None = None,
        now: Callable[[], int] = monotonic_ns,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__(seeds, timeout, Requester(View(0, ()), allow_pickle, system, ack), now, keys)
        self._lease = lease
        self._entropy = entropy

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
        return await self._put(key, self._requester.put_request(key, value, ack, ttl, if_stamp), timeout=timeout)

    async def _put(self, key: Key, request: tuple[int, bytes], *, timeout: float | None) -> Ack:
        answer = await self._ask(key, timeout, False, lambda _: request)
        if answer.status != OK:
            raise self._requester.failure(answer.status, answer.payload)
        return _ack_of(answer)

    async def delete(self, key: Key, *, ack: str | int | None = None, timeout: float | None = None) -> bool:
        """Forget `key`; return whether it was there."""
        request = self._requester.request(DELETE, key, ack=ack)
        answer = await self._ask(key, timeout, False, lambda _: request)
        if answer.status not in (OK, MISSING):
            raise self._requester.failure(answer.status, answer.payload)
        return answer.status == OK

    async def mget(self, keys: Iterable[Key], default: Any = None, *, timeout: float | None = None) -> list[Any]:
        """Return the values of `keys`, in their order, `default` for each that is missing."""
        batch = Batch(list(keys), True, self._until(timeout))
        values = [default] * len(batch.keys)

        async def fly(flight: Flight) -> list[int]:
            some = [batch.keys[index] for index in flight.indexes]
            answer = await self._fly(flight, lambda: self._requester.multi_get_request(some, flight.strict))
            if answer is None:
                return flight.indexes
            if answer.status != OK:
                raise self._requester.failure(answer.status, answer.payload)
            found, misplaced = self._requester.decode_multi_get(answer.payload, some, default)
            for index, value in zip(flight.indexes, found):
                values[index] = value
            return [flight.indexes[i] for i in misplaced]

        await self._rounds(batch, fly)
        return values

    async def mput(
        self,
        items: Mapping[Any, Any] | Iterable[tuple[Key, Any]],
        *,
        ack: str | int | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> Ack:
        """Join each value into its key; return the least Ack. Not atomic: the first refusal is raised at the end."""
        pairs = list(items.items() if isinstance(items, Mapping) else items)
        if ttl is not None:
            puts = [self.put(key, value, ack=ack, ttl=ttl, timeout=timeout) for key, value in pairs]
            return least_ack(await _all_of(puts), self._requester.seen)
        batch = Batch([key for key, _ in pairs], False, self._until(timeout))
        refusals: list[Exception] = []
        acks: list[Ack] = []

        async def fly(flight: Flight) -> list[int]:
            some = [pairs[index] for index in flight.indexes]
            request = self._requester.multi_put_request([key for key, _ in some], [value for _, value in some], ack)
            answer = await self._fly(flight, lambda: request)
            if answer is None:
                return flight.indexes
            if answer.status not in (OK, PARTIAL):
                raise self._requester.failure(answer.status, answer.payload)
            acks.append(_ack_of(answer))
            failures = msgpack.unpackb(answer.payload) if answer.status == PARTIAL else []
            for _, status, message in failures:
                if status != WRONG_WORKER:
                    refusals.append(self._requester.failure(status, message.encode()))
            return [flight.indexes[i] for i, status, _ in failures if status == WRONG_WORKER]

        await self._rounds(batch, fly)
        if refusals:
            raise refusals[0]
        return least_ack(acks, self._requester.seen)

    async def commit(
        self,
        writes: Writes,
        *,
        id: bytes | None = None,
        after: int = 0,
        ack: str | int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write many keys together, and return the stamp at which they take effect; see `anna.Client.commit`."""
        commit = transaction_of(self._requester, writes, id, self._entropy)
        self._requester.note(after)
        return await self._commit(commit, ack, self._until(timeout))

    async def scan(
        self, prefix: Key = "", limit: int | None = None, *, timeout: float | None = None
    ) -> AsyncIterator[str | bytes]:
        """Give the keys that begin with `prefix`, in order; see `anna.Client.scan`."""
        await self._refresh(self._until(timeout))
        scan = Scan(self.view, prefix, limit)
        while pages := scan.wanted():
            for place, cursor in pages:
                if not await self._has_page(scan, place, cursor, self._until(timeout)):
                    break
            for key in scan.ready():
                yield key
        for key in scan.ready():
            yield key

    async def _has_page(self, scan: Scan, place: int, cursor: bytes, deadline: int) -> bool:
        """Get one worker's next page, or do without it; False when the view has changed, and the scan begins anew."""
        while True:
            self._requester.behind = False
            try:
                async with self._ended_by(deadline):
                    while not scan.take(place, *await self._page(scan, place, cursor, deadline)):
                        await self._pause()
                if not self._requester.behind:
                    return True
                served = True
            except UnavailableError:
                served = scan.can_spare(place)
                if not served and self._now() >= deadline:
                    raise
            with contextlib.suppress(NoWorkers):
                await self._refresh(self._share(deadline, 2))
            if self.view is not scan.view:
                scan.restart(self.view)
                return False
            if served:
                return True
            await self._pause()

    async def _page(self, scan: Scan, place: int, cursor: bytes, deadline: int) -> tuple[list[bytes], bool]:
        channel = await self._channel(place, deadline)
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
        """Return what comes next on a subscription, None at its end; when nothing does for long, ask again."""
        try:
            async with asyncio.timeout(self.timeout):
                answer = await channel.pushes.get()
        except TimeoutError:
            channel.ask_among_pushes(*self._requester.request(SUBSCRIBE, key))
            async with self._ended_by(self._until(None)):
                answer = await channel.pushes.get()
        return answer if answer is not None and answer.status in (OK, MISSING) else None

    async def _subscribe(self, key: Key) -> tuple[Channel, Answer]:
        """Return a connection of its own to an owner of `key`, and what that holds now."""
        made: list[Channel] = []

        async def connect(place: int, reach: int) -> Channel:
            made.append(await self._open(place, reach))
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

    async def replicate(
        self, *keys: Key, memory: int = 0, disk: int = 0, default: bool = False, timeout: float | None = None
    ) -> None:
        """Give keys so many copies on each tier, or the default again; see `anna.Client.replicate`."""
        request = self._requester.replicate_request(keys, memory, disk, default)
        answer = await self._ask(keys[0], timeout, True, lambda _: request)
        if answer.status != OK:
            raise self._requester.failure(answer.status, answer.payload)
        self._requester.adopt(View.from_wire(msgpack.unpackb(answer.payload)))

    def pipeline(self, *, ack: str | int | None = None, timeout: float | None = None) -> AsyncPipeline:
        """Return a pipeline: many operations, one flight."""
        return AsyncPipeline(self, timeout, ack)

    @property
    def stamp(self) -> int:
        """The greatest stamp that this client has seen."""
        return self._requester.seen

    async def status(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """Return each worker's figures, in the view's order; {"place", "error"} for one that does not answer."""
        deadline = self._until(timeout)
        return await asyncio.gather(*(self._figures(place, deadline) for place in range(len(self.view.workers))))

    async def _figures(self, place: int, deadline: int) -> dict[str, Any]:
        try:
            async with self._ended_by(deadline):
                channel = await self._channel(place, deadline)
                answer = await channel.ask(*self._requester.request(STATUS))
        except AnnaError as error:
            return {"place": place, "error": str(error)}
        return cast(dict[str, Any], msgpack.unpackb(answer.payload))

    async def close(self) -> None:
        """Close every connection, and the lease of an embedded cluster. Closing twice is harmless."""
        self.closed = True
        looking = self._looking
        self._drop_channels()
        if looking is not None:
            await asyncio.wait([looking])  # it ends its own connection
        await asyncio.sleep(0)  # a transport lets go of its socket when the loop comes round
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _absent(self, answer: Answer, key: Key, default: Any) -> Any:
        if answer.status != MISSING:
            raise self._requester.failure(answer.status, answer.payload)
        if default is _RAISE:
            raise KeyNotFound(f"no value is stored under {key!r}")
        return default


def _ack_of(answer: Answer) -> Ack:
    return Ack(answer.type + 1, answer.flags, answer.stamp)


def least_ack(acks: Iterable[Ack], stamp: int) -> Ack:
    """Return what all of these acknowledgements say; `stamp` is one that is past all of theirs."""
    told = list(acks)
    replicas, durable = min((ack.replicas for ack in told), default=1), min((ack.durable for ack in told), default=0)
    return Ack(replicas, durable, stamp)


async def _all_of(calls: Iterable[Coroutine[Any, Any, Ack]]) -> list[Ack]:
    """Return what all calls give, or raise the first error of one after all have ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[Ack], results)


class AsyncPipeline:
    """Operations that are sent together: `async with kvs.pipeline() as p: p.put(…); p.get(…)`, then `p.results`."""

    def __init__(self, client: AsyncClient, timeout: float | None, ack: str | int | None = None) -> None:
        if ack is not None:
            ack_number(ack)
        self._ack = ack
        self.client = client
        self.timeout = timeout
        self.results: list[Any] = []
        self._operations: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def get(self, key: Key, default: Any = None) -> Self:
        """Queue a get."""
        self._operations.append(("get", (key, default), {}))
        return self

    def put(self, key: Key, value: Any, *, ttl: float | None = None, if_stamp: int | None = None) -> Self:
        """Queue a put of `value` as it is now. Raises BadKey, NotSerializable or ValueTooLarge at once."""
        request = self.client._requester.put_request(key, value, self._ack, ttl, if_stamp)
        self._operations.append(("_put", (key, request), {}))
        return self

    def delete(self, key: Key) -> Self:
        """Queue a delete."""
        self._operations.append(("delete", (key,), {"ack": self._ack}))
        return self

    async def execute(self) -> list[Any]:
        """Send what is queued and return `results`.

        The first refused operation's error is raised after all were answered.
        """
        operations, self._operations = self._operations, []
        calls = [
            getattr(self.client, name)(*words, timeout=self.timeout, **options) for name, words, options in operations
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
    keys: str | os.PathLike[str] | None = None,
) -> AsyncClient:
    """Return an asyncio client; arguments and errors are `anna.connect`'s."""
    address = address or os.environ.get("ANNA_ADDRESS")
    lease = None
    if address is None:
        from anna import local

        lease = await asyncio.to_thread(local.ensure)
        address = lease.address
    shown = keys_from(keys)
    client = AsyncClient(
        (address,), timeout=timeout, allow_pickle=allow_pickle, system=system, ack=ack, lease=lease, keys=shown
    )
    try:
        await client.reach()
    except BaseException:
        await client.close()
        raise
    return client
