"""`call`, `spawn` and `map` with options, which so never mix with the function's own arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cloudburst.calloptions import CallOptions
from cloudburst.futures import Future

if TYPE_CHECKING:
    from cloudburst.client import Client
    from cloudburst.sessions import Session


class Calls:
    """What `Client.options` returns."""

    __slots__ = ("_client", "_options")

    def __init__(self, client: Client | Session, options: CallOptions) -> None:
        self._client = client
        self._options = options

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """`Client.call`."""
        return self._client.run(name, args, kwargs, self._options)

    def spawn(self, name: str, /, *args: Any, **kwargs: Any) -> Future:
        """`Client.spawn`."""
        return self._client.start(name, args, kwargs, self._options)

    def map(self, name: str, /, *iterables: Any) -> Iterator[Any]:
        """`Client.map`."""
        return self._client.spread(name, iterables, self._options)
