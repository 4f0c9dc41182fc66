"""The same for asyncio: nothing here blocks the loop.

    import cloudburst as cb
    client = await cb.aio.connect()
    await client.call("square", 3)
    async for found in client.map("square", range(100)): ...

Futures of `spawn` are awaited; a task that is cancelled cancels its call. What asks the node or the store goes through
a thread; a call of a function that is known does not.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cloudburst import config
from cloudburst.calloptions import NO_OPTIONS, CallOptions, options_of
from cloudburst.client import Client
from cloudburst.futures import Future

if TYPE_CHECKING:
    from cloudburst.graph import Graph

R = TypeVar("R")


async def connect(url: str | None = None, *, executors: int | None = None) -> AsyncClient:
    """Return a client of the node at `url`, or of the embedded node, as `cloudburst.connect`."""
    from cloudburst.entry import connect as connect_blocking

    return AsyncClient(await asyncio.to_thread(connect_blocking, url, executors=executors))


class AsyncClient:
    """A program's access to a node from a loop, over a blocking client that threads may use at the same time."""

    def __init__(self, client: Client, options: CallOptions = NO_OPTIONS) -> None:
        self.client = client
        self._options = options

    def options(self, **chosen: Any) -> AsyncClient:
        """Return the same with options for its calls: those of `Client.options`."""
        return AsyncClient(self.client, options_of(chosen, self._options))

    async def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run a function or a DAG and return its value. Raises what it raised, or one of `cloudburst.errors`."""
        return await self._finished(await self.spawn(name, *args, **kwargs))

    async def spawn(self, name: str, /, *args: Any, **kwargs: Any) -> Future:
        """Start a call and return its future, which can be awaited."""
        start = functools.partial(self.client.start, name, args, kwargs, self._options)
        if self.client.knows(name, self._options):
            return start()
        return await asyncio.to_thread(start)

    async def _finished(self, future: Future) -> Any:
        try:
            return await future
        except asyncio.CancelledError:
            future.cancel()
            raise

    async def map(self, name: str, /, *iterables: Iterable[Any]) -> AsyncIterator[Any]:
        """Yield the function's results for the items of the iterables, in order, a bounded number under way."""
        items = zip(*iterables, strict=False)
        under_way: deque[Future] = deque()
        try:
            more = True
            while more or under_way:
                while more and len(under_way) < config.MAP_IN_FLIGHT_MAX and not (under_way and under_way[0].done()):
                    item = next(items, None)
                    if item is None:
                        more = False
                    else:
                        under_way.append(await self.spawn(name, *item))
                if under_way:
                    yield await self._finished(under_way.popleft())
        finally:
            for future in under_way:
                future.cancel()

    async def gather(self, *futures: Future) -> list[Any]:
        """Return the results of futures in their order; the first that raises cancels the others, and is raised."""
        try:
            return list(await asyncio.gather(*futures))
        except BaseException:  # a failure, or the cancellation of this task: nobody waits for the others any more
            for future in futures:
                future.cancel()
            raise

    # -- what asks the node or the store

    async def _ask(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        return await asyncio.to_thread(function, *args, **kwargs)

    async def register(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """`Client.register`."""
        return await self._ask(self.client.register, function, **options)

    async def dag(self, name: str, steps: Mapping[str, Sequence[str]], **options: Any) -> Graph:
        """`Client.dag`."""
        return await self._ask(self.client.dag, name, steps, **options)

    async def put(self, key: str | bytes, value: Any, **options: Any) -> Any:
        """`Client.put`."""
        return await self._ask(self.client.put, key, value, **options)

    async def get(self, key: str | bytes, *default: Any) -> Any:
        """`Client.get`."""
        return await self._ask(self.client.get, key, *default)

    async def delete(self, name: str) -> None:
        """`Client.delete`: forgets a function or a DAG."""
        await self._ask(self.client.delete, name)

    async def functions(self) -> list[dict[str, Any]]:
        """`Client.functions`."""
        return await self._ask(self.client.functions)

    async def status(self) -> dict[str, Any]:
        """`Client.status`."""
        return await self._ask(self.client.status)

    async def close(self) -> None:
        """`Client.close`."""
        await self._ask(self.client.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
