"""Transactions of the papers, run on our nodes by many clients, and what each of them read and wrote.

The one rule: what is judged is what functions saw, and it is written down by their clients. A function returns the
operations that it did beside those of the functions before it; each written value is a name that nobody else writes.

A graph of one function after the other would be one call in one executor. Here each function but the first has a
second predecessor that does nothing, so that it is a stage of its own and may run on any node: that is what the papers'
functions do. Source: HydroCache (SIGMOD 2020) §6, AFT (EuroSys 2020) §6.1.2, Cloudburst (VLDB 2020) §6.2.2.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

import cloudburst as cb
from bench.killing import client_of
from cloudburst import context
from cloudburst.cluster import Host
from cloudburst.judge.writing import Writer

Plan = list[tuple[str, ...]]
"""What a function does, in order: ("read", key) and ("write", key, value)."""
Seen = list[dict[str, Any]]
"""What functions did: each `function`, the ones that it came `after`, its `node`, its `operations` and its `stamp`."""

EVENTUAL: Final = "eventual"
KEYS: Final = 1_000_000
WARM_KEYS: Final = 10_000
"""The most frequent keys are read on every node before anything is counted."""
WARM_AT_ONCE: Final = 500
WARM_TRIES: Final = 20
REREAD_KEYS: Final = 20
ASIDE: Final = "aside"
REDIS_STAMP: Final = "stamp"
"""The counter that numbers a Redis server's writes."""
CLIENT_S: Final = 120.0
"""How long clients may take for all their transactions."""


def visit(*given: Any) -> Seen:
    """Do what the last argument plans; return what the functions before this one did, and what it did itself."""
    before: Seen = list({one["function"]: one for seen in given[:-1] for one in seen}.values())
    number, plan, redis = given[-1]
    read, write = on_redis(redis) if redis else (ours_read, ours_write)
    opened = context.session()
    carried = len(opened.context()) if opened is not None else 0
    operations: list[tuple[str, str, str | None]] = []
    stamp = 0
    for kind, key, *value in plan:
        if kind == "read":
            found = read(key)
            operations.append((kind, key, found and found.rstrip(".")))
        else:
            stamp = max(stamp, write(key, value[0]))
            operations.append((kind, key, value[0].rstrip(".")))
    after = sorted(one["function"] for one in before)
    mine = {"function": number, "after": after, "node": str(os.getppid()), "operations": operations, "stamp": stamp}
    return [*before, mine | {"carried": carried}]


def ours_read(key: str) -> str | None:
    """Read a key, at the level of the function's session."""
    found: str | None = cb.get(key, None)
    return found


def ours_write(key: str, value: str) -> int:
    """Write a key; return the write's stamp, 0 where only the transaction has one."""
    return getattr(cb.put(key, value), "stamp", None) or 0


@functools.cache
def on_redis(path: str) -> tuple[Callable[[str], str | None], Callable[[str, str], int]]:
    """Return the same two on the Redis server at a Unix socket; stamps are its order of writes."""
    import redis

    client: Any = redis.Redis(unix_socket_path=path, decode_responses=True)

    def write(key: str, value: str) -> int:
        with client.pipeline(transaction=True) as both:
            both.set(key, value).incr(REDIS_STAMP)
            stamp: int = both.execute()[1]
        return stamp

    return client.get, write


def aside() -> Seen:
    """Do nothing, elsewhere."""
    return []


def warm(keys: Sequence[str]) -> str:
    """Have this node's cache subscribe to `keys`; return the node's address."""
    for begin in range(0, len(keys), WARM_AT_ONCE):
        cb.mget(list(keys[begin : begin + WARM_AT_ONCE]))
    assert context.executing is not None
    return f"unix:{context.executing.directory}"


@dataclass(frozen=True, slots=True)
class Shape:
    """A graph of visits: which follow which, by number, how many keys each reads; the last one writes one of them."""

    name: str
    before: tuple[tuple[int, ...], ...]
    reads: tuple[int, ...]

    def nodes(self) -> dict[str, list[str]]:
        """Return the graph as `cb.dag` takes it."""
        found: dict[str, list[str]] = {}
        for number, before in enumerate(self.before):
            found[f"visit-{number}"] = [f"visit-{one}" for one in before]
            if len(before) == 1:
                found[f"aside-{number}"] = []
                found[f"visit-{number}"].append(f"aside-{number}")
        return found

    def functions(self) -> dict[str, str]:
        """Return which function runs at each step."""
        return {step: step.partition("-")[0] for step in self.nodes()}


LINEAR: Final = Shape("linear", ((), (0,), (1,)), (2, 2, 2))
V_SHAPED: Final = Shape("v-shaped", ((), (), (0, 1)), (2, 2, 3))
ALONE: Final = Shape("alone", ((),), (1,))
PAIR: Final = Shape("pair", ((), (0,)), (2, 2))
MIXED: Final = (
    PAIR,
    LINEAR,
    V_SHAPED,
    Shape("diamond", ((), (0,), (0,), (1, 2)), (2, 2, 2, 2)),
    Shape("five", ((), (0,), (0,), (2,), (1, 3)), (2, 2, 2, 2, 2)),
)
"""Two to five functions, about three in the mean, as Cloudburst's table 2 has them."""
SHAPES: Final = {shape.name: shape for shape in (ALONE, *MIXED)}


class Draw:
    """Draws keys: number k, from 1, as often as Zipf's law with `exponent` says."""

    def __init__(self, exponent: float, keys: int, seed: int, prefix: str = "") -> None:
        self._prefix = prefix
        weights = np.arange(1, keys + 1, dtype=float) ** -exponent
        self._sums = np.cumsum(weights / weights.sum())
        self._random = np.random.default_rng(seed)
        self._drawn: list[int] = []

    def key(self) -> str:
        """Return the next key."""
        if not self._drawn:
            self._drawn = np.searchsorted(self._sums, self._random.random(4096)).tolist()
        return f"{self._prefix}/{self._drawn.pop()}"

    def keys(self, count: int) -> list[str]:
        """Return so many different keys."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[self.key()] = None
        return list(found)


@dataclass(frozen=True, slots=True)
class Load:
    """What each client does: `count` transactions of random `shapes` at a level, on keys of one distribution.

    With `writes_each` every function writes first and reads then (AFT's transaction), otherwise the last one writes
    a key that was read; what one function reads, another may read `again`. Values have `value_bytes`. Each
    transaction must end within `timeout_s`. Caches are `warm` or not. With `reread` each client reads at the end
    what it was last told is written. Keys begin with `run`, so that all that was written to them is in one history.
    With `redis`, the path of its server's socket, functions read and write there, and not in our store.
    """

    run: str
    level: str
    exponent: float
    count: int
    shapes: tuple[str, ...]
    keys: int = KEYS
    writes_each: bool = False
    again: bool = False
    value_bytes: int = 8
    timeout_s: float = 30.0
    warm: bool = True
    reread: bool = False
    redis: str = ""


@dataclass(slots=True)
class Ran:
    """What one client's transactions took: each one's µs, those that failed surely, those of unknown outcome, why the
    first of them did, the slowest of all; how many were begun again, and the bytes of a session that came with each
    function."""

    us: list[float] = field(default_factory=list)
    failed: int = 0
    unknown: int = 0
    why: str = ""
    slowest_s: float = 0.0
    again: int = 0
    carried: list[int] = field(default_factory=list)


def plans(load: Load, shape: Shape, draw: Draw, name: Callable[[], str]) -> list[Plan]:
    """Return what each function of one transaction does."""

    def value() -> str:
        return name().ljust(load.value_bytes, ".")

    if load.writes_each:
        return [[("write", draw.key(), value()), *(("read", key) for key in draw.keys(reads))] for reads in shape.reads]
    each = shape.reads if load.again else (sum(shape.reads),)
    keys = [key for reads in each for key in draw.keys(reads)]
    chosen = iter(keys)
    found: list[Plan] = [[("read", next(chosen)) for _ in range(reads)] for reads in shape.reads]
    found[-1].append(("write", draw._random.choice(keys), value()))
    return found


def run(load: Load, session: str, history: Writer, seed: int) -> Ran:
    """Do one client's transactions, and write each down when it has ended."""
    draw, shapes, ran = Draw(load.exponent, load.keys, seed, load.run), random.Random(seed), Ran()
    numbers = iter(range(1 << 40))

    def name() -> str:
        return f"{session}.{next(numbers)}"

    caller = cb.options(session=load.level, timeout=load.timeout_s)
    written: dict[str, None] = {}
    for number in range(load.count + load.reread):
        shape = SHAPES[shapes.choice(load.shapes)] if number < load.count else ALONE
        last: list[Plan] = [[("read", key) for key in written]]
        planned = plans(load, shape, draw, name) if number < load.count else last
        arguments = {f"visit-{at}": ((at, plan, load.redis),) for at, plan in enumerate(planned)}
        begun = time.perf_counter()
        try:
            future = caller.spawn(shape.name, arguments)
            seen: Seen = future.result()
            stamp = future.stamp
        except cb.CloudburstError as error:
            ran.failed += error.definite
            ran.unknown += not error.definite
            ran.why = ran.why or f"{type(error).__name__}: {error}"
            seen = [
                {"function": at, "after": [], "node": None, "stamp": 0,
                 "operations": [one for one in plan if one[0] == "write"]}
                for at, plan in enumerate(planned)
            ]  # fmt: skip
            outcome, stamp = "failed" if error.definite else "unknown", 0
        else:
            ran.us.append((time.perf_counter() - begun) * 1e6)
            outcome = "ok"
            ran.again += future.attempts > 1
            ran.carried += [one["carried"] for one in seen]
            for one in seen:
                written |= {key: None for kind, key, _ in one["operations"] if kind == "write"}
            for key in list(written)[:-REREAD_KEYS]:
                del written[key]
        ran.slowest_s = max(ran.slowest_s, time.perf_counter() - begun)
        for one in seen:
            history.write(
                session, [(kind, key, value and value.rstrip(".")) for kind, key, value in one["operations"]], outcome,
                invocation=f"{session}/{number}", function=one["function"], after=one["after"], node=one["node"],
                commit=one["stamp"] or stamp or None,
            )  # fmt: skip
    return ran


def client(pipe: Connection, url: str) -> None:
    """In a process of its own: run one load after the other that comes through `pipe`, until it is closed."""
    with cb.connect(url):
        pipe.send(None)
        while True:
            try:
                load, session, path, seed = pipe.recv()
            except EOFError:
                return
            with Writer(path) as history:
                pipe.send(run(load, session, history, seed))


class Clients:
    """Processes that are clients of nodes, of the first one to begin with."""

    def __init__(self, hosts: Sequence[Host], count: int) -> None:
        self.hosts = hosts
        spawning = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(count):
            mine, its = spawning.Pipe()
            process = spawning.Process(
                target=client, args=(its, hosts[0].address), name=f"client-{number}", daemon=True
            )
            process.start()
            its.close()
            self._pipes.append(mine)
            self._processes.append(process)
        for pipe in self._pipes:
            self._answer(pipe)

    @staticmethod
    def _answer(pipe: Connection) -> Any:
        if not pipe.poll(CLIENT_S):
            raise TimeoutError(f"a client has not answered within {CLIENT_S:g} s")
        return pipe.recv()

    def run(self, load: Load, path: Path, seed: int) -> list[Ran]:
        """Have all clients do the load beside each other; what they saw is then the history at `path`."""
        if load.warm:
            warm_caches(load, self.hosts)
        for number, pipe in enumerate(self._pipes):
            pipe.send((load, f"c{number}", path, seed + number))
        return [self._answer(pipe) for pipe in self._pipes]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def cluster(nodes: int, clients: int, environment: Mapping[str, str]) -> Iterator[Clients]:
    """Run nodes of ours with two executors each, their functions and graphs registered and their caches warm."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with cb.up(hosts=nodes, executors=2) as up:
            register()
            found = Clients(up.hosts, clients)
            try:
                yield found
            finally:
                found.close()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def register() -> None:
    """Register the functions and the graphs."""
    for function in (visit, aside, warm):
        cb.register(function)
    for shape in SHAPES.values():
        cb.dag(shape.name, shape.nodes(), functions=shape.functions())


def warm_caches(load: Load, hosts: Sequence[Host]) -> None:
    """Have every node's cache subscribe to the most frequent keys: a client of each node has a function do it there."""
    keys = [f"{load.run}/{number}" for number in range(min(load.keys, WARM_KEYS))]
    warmed: set[str] = set()
    for host in hosts:
        with client_of(host) as client:
            for _ in range(WARM_TRIES):
                warmed.update(future.result() for future in [client.spawn("warm", keys) for _ in range(2)])
                if host.address in warmed:
                    break
    if missing := {host.address for host in hosts} - warmed:
        raise RuntimeError(f"nodes that were not reached to warm their caches: {', '.join(sorted(missing))}")
