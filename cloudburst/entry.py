"""How a program reaches a node: `connect`, and a default client behind the module's own functions.

The one rule: where no address is given, the embedded node of this user is started or joined, and it stops with its
last user. Inside a function there is nothing to connect to: the default client is the executor's own.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from cloudburst import context
from cloudburst.client import Client
from cloudburst.errors import EnvironmentMismatch, NodeLost, RequestError
from cloudburst.membership import Membership
from cloudburst.optioned import Calls

if TYPE_CHECKING:
    from anna.watch import Watch
    from cloudburst.cluster import Cluster
    from cloudburst.futures import Future
    from cloudburst.graph import Graph
    from cloudburst.local import Lease
    from cloudburst.sessions import Session

T = TypeVar("T", bound=Callable[..., Any])

_default: Client | None = None
_lock = threading.RLock()
_declared: list[tuple[Callable[..., Any], dict[str, Any]]] = []


def connect(
    url: str | None = None,
    *,
    token: str | None = None,
    keys: str | Path | None = None,
    executors: int | None = None,
    min_executors: int | None = None,
    max_executors: int | None = None,
    sandbox: str | None = None,
    record: str | Path | None = None,
) -> Client:
    """Return a client, which becomes the default one, of the node at `url`, or of the embedded node.

    `url` is `unix:DIRECTORY` of a node that runs on this machine, or `tcp://HOST:PORT` of one on another that listens
    there (`cb node --listen`), to which `keys` are shown, of which this is the directory (None: `$ANNA_KEYS`; `cb keys`
    makes them), or whose secret is the `token`, where it has none. `executors` matters only when a node is started
    (None: one for each core), as do `min_executors` and `max_executors`, with which there are as many as calls keep
    busy: they come while calls wait, and go when they are idle, down to none with 0. `sandbox` is where user code runs,
    "none" or "bwrap" (`cloudburst.sandbox`). `record` is a file to which a history of the client's sessions is
    appended, for `cb check`. Raises NodeLost when there is no node, or it does not start; RequestError
    when it has another secret; EnvironmentMismatch when it is of another version, there can be no such sandbox here, or
    the node that runs has another.
    """
    global _default
    asked: dict[str, Any] = {"executors": executors, "least": min_executors, "most": max_executors}
    if record is None and context.executing is None:
        record = os.environ.get("CLOUDBURST_RECORD") or None
    client = Client(lambda: _join(url, token, keys, asked, sandbox), record)
    with _lock:
        before, _default = _default, client
    if before is not None:
        before.close()
    atexit.register(client.close)
    return client


def _join(
    url: str | None, token: str | None, keys: str | Path | None, asked: dict[str, Any], sandbox: str | None
) -> Membership:
    if context.executing is not None and url is None:
        return Membership(None)
    from cloudburst import local

    if url is None:
        return Membership(
            _confined(local.ensure(**asked, sandbox=sandbox), sandbox),
            lambda client: local.ensure(**asked, sandbox=sandbox, client=client),
        )
    scheme, _, path = url.partition(":")
    if scheme == "tcp":
        from anna.keys import keys_from
        from cloudburst.gateways import enter

        if sandbox is not None or any(value is not None for value in asked.values()):
            raise RequestError(f"what executors there are at {url}, and in which sandbox, is for those who start it")
        shown = keys_from(keys)
        return Membership(enter(url, token, 0, shown), lambda client: enter(url, token, client, shown))
    if scheme != "unix" or not path:
        raise RequestError(f"{url!r} is no address of a node: unix:DIRECTORY or tcp://HOST:PORT")
    lease = local.join(path)
    if lease is None:
        raise NodeLost(f"no node runs in {path}")
    return Membership(_confined(lease, sandbox), lambda client: local.join(path, client=client))


def _confined(lease: Lease, sandbox: str | None) -> Lease:
    """Return a lease on a node that has the sandbox that was asked for."""
    if sandbox is not None and lease.sandbox != sandbox:
        lease.close()
        raise EnvironmentMismatch(
            f"the node in {lease.directory} has the sandbox {lease.sandbox!r}, and not {sandbox!r}: end it, or start"
            " another in a directory of its own (CLOUDBURST_DIR)"
        )
    return lease


def up(
    hosts: int | str = 1,
    on: str = "local",
    *,
    executors: int | None = None,
    workers: int = 1,
    min_executors: int | None = None,
    max_executors: int | None = None,
    ready_in: float | None = None,
    ttl: float | None = None,
    idle_stop: float | None = None,
    max_cost: float | None = None,
    price: float | None = None,
    insecure: bool = False,
) -> Cluster:
    """Start a cluster of nodes, whose first one the default client is connected to until it ends; for a `with` block.

    Each has `executors` (None: as many as the machine's share of cores), or from `min_executors` to `max_executors`, a
    cache, and `workers` of a store that all of them share. `hosts="2..10"` has more of them while calls wait, and fewer
    when machines are idle. `on` is where: "local", on this machine, or what a provider has (docs/deploy.md). All are
    ready within `ready_in` seconds, or none. It ends by itself after `ttl` seconds, after `idle_stop` seconds without
    work, or when it has cost `max_cost` US dollars; `price` is what a machine costs in an hour, where you know better
    than the provider. `insecure` allows the run's keys to be handed over by what is not encrypted. Raises NodeLost,
    MachinesNotObtained, CostLimit, NotSupported.
    """
    from cloudburst.burst.terms import Terms
    from cloudburst.cluster import Cluster

    within = {} if ready_in is None else {"ready_in_s": ready_in}
    terms = Terms(**within, ttl_s=ttl, idle_stop_s=idle_stop, max_cost=max_cost, price=price)
    started = Cluster(hosts, executors, workers, min_executors, max_executors, on=on, terms=terms, insecure=insecure)
    make_default(started)
    return started


def make_default(started: Cluster) -> None:
    """Connect the default client to a cluster, until that ends; and end it with this program."""
    global _default
    client = started.client
    with _lock:
        before, _default = _default, client
    started.ended = lambda: _restore(client, before)
    atexit.register(started.down)


def _restore(client: Client, before: Client | None) -> None:
    """Make the client that was the default one before a cluster began the default one again."""
    global _default
    with _lock:
        if _default is client:
            _default = before


def default() -> Client:
    """Return the default client, connecting it at first use, with everything that `@function` has declared."""
    client = _default
    if client is None or client.closed:
        with _lock:
            client = _default
            if client is None or client.closed:
                client = connect()
    if _declared:
        register_declared(client)
    return client


def register_declared(client: Client) -> None:
    """Register what `@function` has declared and no client has been told of yet."""
    with _lock:
        while _declared:
            declared, options = _declared[0]
            client.register(declared, **options)
            del _declared[0]


def register(
    function: T,
    *,
    name: str | None = None,
    retries: int | None = None,
    timeout: float | None = None,
    memory: int | None = None,
    concurrency: int | None = None,
    batch: int | None = None,
    replicas: int | None = None,
    session: str | None = None,
) -> T:
    """`Client.register` of the default client."""
    return default().register(
        function, name=name, retries=retries, timeout=timeout, memory=memory, concurrency=concurrency, batch=batch,
        replicas=replicas, session=session,
    )  # fmt: skip


@overload
def function(declared: T, /) -> T: ...


@overload
def function(
    *, name: str | None = ..., retries: int | None = ..., timeout: float | None = ..., memory: int | None = ...,
    concurrency: int | None = ..., batch: int | None = ..., replicas: int | None = ..., session: str | None = ...,
) -> Callable[[T], T]: ...


def function(declared: Any = None, /, **options: Any) -> Any:
    """Declare a function or class: it is registered when the default client is first used, and stays what it was.

    `@function` or `@function(name=…, …)` with the options of `Client.register`.
    """
    if declared is None:
        return lambda declared: function_with(declared, options)
    return function_with(declared, options)


def function_with(declared: T, options: dict[str, Any]) -> T:
    """Declare a function with options, and return it."""
    if context.executing is None:  # a module that is imported by a function declares nothing
        _declared.append((declared, options))
    return declared


def dag(
    name: str,
    steps: Mapping[str, Sequence[str]],
    *,
    functions: Mapping[str, str] | None = None,
    together: Iterable[Sequence[str]] = (),
    retries: int | None = None,
    timeout: float | None = None,
    session: str | None = None,
) -> Graph:
    """`Client.dag` of the default client."""
    return default().dag(
        name, steps, functions=functions, together=together, retries=retries, timeout=timeout, session=session
    )


def call(name: str, /, *args: Any, **kwargs: Any) -> Any:
    """`Client.call` of the default client."""
    return default().call(name, *args, **kwargs)


def spawn(name: str, /, *args: Any, **kwargs: Any) -> Future:
    """`Client.spawn` of the default client."""
    return default().spawn(name, *args, **kwargs)


def map(name: str, /, *iterables: Any) -> Iterator[Any]:
    """`Client.map` of the default client."""
    return default().map(name, *iterables)


def options(**chosen: Any) -> Calls:
    """`Client.options` of the default client."""
    return default().options(**chosen)


def session(level: str = "causal", *, token: str | None = None) -> Session:
    """`Client.session` of the default client."""
    return default().session(level, token=token)


def put(key: str | bytes, value: Any, **options: Any) -> Any:
    """`Client.put` of the default client."""
    return default().put(key, value, **options)


def get(key: str | bytes, *default_value: Any) -> Any:
    """`Client.get` of the default client."""
    return default().get(key, *default_value)


def mput(items: Mapping[str, Any] | Iterable[tuple[str | bytes, Any]], **options: Any) -> Any:
    """`Client.mput` of the default client."""
    return default().mput(items, **options)


def mget(keys: Iterable[str | bytes], default_value: Any = None) -> list[Any]:
    """`Client.mget` of the default client."""
    return default().mget(keys, default_value)


def watch(key: str | bytes, *, timeout: float | None = None) -> Watch:
    """`Client.watch` of the default client."""
    return default().watch(key, timeout=timeout)


def functions() -> list[dict[str, Any]]:
    """`Client.functions` of the default client."""
    return default().functions()


def delete(name: str) -> None:
    """`Client.delete` of the default client: forgets a function."""
    default().delete(name)


def alias(name: str, function: str, version: int = 0) -> None:
    """`Client.alias` of the default client: a name that stands for one version of a function."""
    default().alias(name, function, version)


def versions(name: str) -> list[dict[str, Any]]:
    """`Client.versions` of the default client."""
    return default().versions(name)


def status() -> dict[str, Any]:
    """`Client.status` of the default client."""
    return default().status()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
