"""`cb selftest`: whether nodes work here, shown by using one that is started for it and ended after.

The one rule: each step says what must come out and compares; one that fails does not keep the next from being tried.
Nothing that runs here already is touched.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cloudburst import config

if TYPE_CHECKING:
    from cloudburst.cluster import Cluster

LARGE_BYTES: Final = 32 * 1024 * 1024
EXECUTORS: Final = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one step went: what was seen, or why it failed."""

    name: str
    ok: bool
    seconds: float
    said: str


class Wrong(Exception):
    """Something else came out than must."""


def outcomes(on: str = "local", insecure: bool = False) -> Iterator[Outcome]:
    """Start a node, use it, end it; yield how each step went. Raises NotSupported for a place that there is not.

    `insecure` allows keys to be handed over by what is not encrypted.
    """
    from cloudburst.cluster import Cluster
    from cloudburst.errors import CloudburstError, RequestError

    begun = time.monotonic()
    try:
        cluster = Cluster(1, EXECUTORS, 1, on=on, insecure=insecure)
    except RequestError:
        raise
    except (CloudburstError, OSError) as fault:
        yield Outcome("start", False, time.monotonic() - begun, _line(fault))
        return
    try:
        said = f"a node with {EXECUTORS} executors: {cluster.machines[0].place}"
        yield Outcome("start", True, time.monotonic() - begun, said)
        for name, step in STEPS.items():
            yield attempt(name, lambda step=step: step(cluster.client))  # type: ignore[misc]
    finally:
        begun = time.monotonic()
        cluster.down()
    yield attempt("end", lambda: _gone(cluster), begun)


def attempt(name: str, step: Callable[[], str], begun: float | None = None) -> Outcome:
    """Take one step; return how it went."""
    begun = time.monotonic() if begun is None else begun
    try:
        said, ok = step(), True
    except Exception as fault:  # whatever it is, the next step is tried
        said, ok = _line(fault), False
    return Outcome(name, ok, time.monotonic() - begun, said)


def _line(fault: BaseException) -> str:
    return f"{type(fault).__name__}: {' '.join(str(fault).split())}"


def _same(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise Wrong(f"{what} is {found!r:.200}, and must be {wanted!r:.200}")


# -- the steps


def _put_and_get(client: Any) -> str:
    client.put("selftest/value", {"n": 1, "text": "ä"})
    _same(client.get("selftest/value"), {"n": 1, "text": "ä"}, "what was put")
    client.mput({f"selftest/{n}": n for n in range(100)})
    _same(client.mget([f"selftest/{n}" for n in range(100)]), list(range(100)), "what was put together")
    return "101 keys"


def _merge(client: Any) -> str:
    from anna.lattices import Counter, Set

    for element in ("a", "b"):
        client.put("selftest/set", Set({element}))
        client.put("selftest/count", Counter(+2))
    _same(client.get("selftest/set"), {"a", "b"}, "the set")
    _same(client.get("selftest/count"), 4, "the counter")
    return "a set and a counter"


def _call(client: Any) -> str:
    client.register(square, name="selftest-square")
    calls = client.options(timeout=config.SELFTEST_S)
    _same(calls.call("selftest-square", 12), 144, "12 squared")
    _same(list(calls.map("selftest-square", range(100))), [n * n for n in range(100)], "the squares")
    return "101 calls"


def _graph(client: Any) -> str:
    client.register(increment, name="selftest-increment")
    client.register(add, name="selftest-add")
    steps = {"one": [], "square": ["one"], "more": ["one"], "both": ["square", "more"]}
    functions = {"one": "selftest-increment", "square": "selftest-square", "more": "selftest-increment",
                 "both": "selftest-add"}  # fmt: skip
    client.dag("selftest-graph", steps, functions=functions)
    _same(client.options(timeout=config.SELFTEST_S).call("selftest-graph", {"one": (2,)}), 13, "(2+1)² + (2+1+1)")
    return "four functions"


def _session(client: Any) -> str:
    client.register(add_to, name="selftest-add-to")
    with client.session("causal") as session:
        session.put("selftest/balance", 5)
        _same(session.call("selftest-add-to", "selftest/balance", 2), 7, "what a function reads of the session")
    with client.session("causal", token=session.token) as later:
        _same(later.get("selftest/balance"), 7, "what a later session reads")
    return "causal, with a function in it"


def _kill(client: Any) -> str:
    client.register(die_once, name="selftest-die-once")
    dead, alive = client.options(timeout=config.SELFTEST_S).call("selftest-die-once", "selftest/dead")
    if dead == alive:
        raise Wrong(f"executor {dead} was to kill itself, and has answered")
    return f"executor {dead} died, {alive} answered"


def _large_value(client: Any) -> str:
    value = os.urandom(4096) * (LARGE_BYTES // 4096)
    client.put("selftest/large", value)
    _same(client.get("selftest/large") == value, True, "whether the value is the one that was put")
    client.register(length, name="selftest-length")
    _same(client.options(timeout=config.SELFTEST_S).call("selftest-length", value), LARGE_BYTES, "its length")
    return f"{LARGE_BYTES:,} bytes, to the store and to a function"


def _gone(cluster: Cluster) -> str:
    place = cluster.directory
    _same(place.exists(), False, f"whether {place} is left")
    left = [one.name for one in cluster.provider.reap(None, dry=True) if one.run == cluster.run]
    _same(left, [], f"what is left of run {cluster.run} where it ran")
    return "nothing is left"


STEPS: Final[dict[str, Callable[[Any], str]]] = {
    "put and get": _put_and_get,
    "merge": _merge,
    "call": _call,
    "graph": _graph,
    "session": _session,
    "killed executor": _kill,
    "large value": _large_value,
}


# -- what runs in executors


def square(x: int) -> int:
    return x * x


def increment(x: int) -> int:
    return x + 1


def add(a: int, b: int) -> int:
    return a + b


def length(value: bytes) -> int:
    return len(value)


def add_to(key: str, more: int) -> int:
    import cloudburst as cb

    total = int(cb.get(key)) + more
    cb.put(key, total)
    return total


def die_once(key: str) -> tuple[int, int]:
    """Kill this executor, the first time; return which one died, and which one this is."""
    import cloudburst as cb

    if cb.get(key, None) is None:
        cb.put(key, os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)
    return int(cb.get(key)), os.getpid()
