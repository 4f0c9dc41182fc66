"""The face that `concurrent.futures` gives its pools: `submit(fn, …)` and `map(fn, …)` with functions, not names.

What takes an `Executor`, a library or a program of long ago, so runs on the node's executors without a change.
A function is registered when it is first submitted, under its name and the hash of its code.
"""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from cloudburst.calloptions import NO_OPTIONS, CallOptions
from cloudburst.client import Client
from cloudburst.errors import NodeLost, RequestError
from cloudburst.futures import Future
from cloudburst.pickling import dumps_function
from cloudburst.records import body_hash

HASH_DIGITS: Final = 12
NAME_CHARS_MAX: Final = 60


class Executor(concurrent.futures.Executor):
    """A `concurrent.futures.Executor` over a client (None: the default one).

    >>> with Executor() as pool:
    ...     pool.submit(pow, 2, 10).result(), list(pool.map(abs, [-1, 2]))
    (1024, [1, 2])
    """

    def __init__(self, client: Client | None = None, *, options: CallOptions = NO_OPTIONS) -> None:
        if client is None:
            from cloudburst.entry import default

            client = default()
        self._client = client
        self._options = options
        self._names: weakref.WeakKeyDictionary[Callable[..., Any], str] = weakref.WeakKeyDictionary()
        self._under_way: weakref.WeakSet[Future] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._shut = False

    def submit(self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> Future:
        """Start `fn(*args, **kwargs)` and return its future. A text names a function that is registered.

        Raises NotSerializable, RuntimeError after `shutdown`, and what `Client.spawn` raises.
        """
        with self._lock:
            if self._shut:
                raise RuntimeError("cannot submit a call after shutdown")
        future = self._client.start(fn if isinstance(fn, str) else self._name(fn), args, kwargs, self._options)
        self._under_way.add(future)
        return future

    def _name(self, function: Callable[..., Any]) -> str:
        if not callable(function):
            raise RequestError(f"a function or a name is submitted; got a {type(function).__name__}")
        try:
            known = self._names.get(function)
        except TypeError:  # it cannot be hashed, or not referred to weakly
            known = None
        if known is not None:
            return known
        plain = getattr(function, "__qualname__", type(function).__qualname__).replace("@", "_")
        printable = "".join(letter for letter in plain if letter.isprintable())[:NAME_CHARS_MAX]
        name = f"{printable}-{body_hash(dumps_function(function, printable))[:HASH_DIGITS]}"
        self._client.register(function, name=name)
        try:
            self._names[function] = name
        except TypeError:
            pass  # it is pickled each time
        return name

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for those under way, after cancelling them if `cancel_futures`. The node goes on."""
        with self._lock:
            self._shut = True
        under_way = list(self._under_way)
        if cancel_futures:
            for future in under_way:
                future.cancel()
        if wait and not self._client.closed:
            try:
                concurrent.futures.wait(under_way)
            except NodeLost:
                pass
