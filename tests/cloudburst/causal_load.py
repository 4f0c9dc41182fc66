"""Causal transactions of every kind, for tests that kill and cut what runs them: a call, a graph, a `with` block.

The one rule: what one transaction writes, it writes to keys that others write together too, so that half of it shows.
"""

from __future__ import annotations

from typing import Any, Final

import cloudburst as cb
from cloudburst.client import Client

KEYS: Final = 8


def visit(keys: list[str], writes: dict[str, str], *before: Any) -> list[Any]:
    """Read keys, then write others."""
    found = [cb.get(key, None) for key in keys]
    for key, value in writes.items():
        cb.put(key, value)
    return found


def end(*parts: Any) -> list[Any]:
    """Read again what branches have read, and write."""
    *_, keys, writes = parts
    return visit(keys, writes)


def register(client: Client) -> None:
    """Register what transactions call."""
    for function in (visit, end):
        client.register(function)
    functions = {"left": "visit", "right": "visit", "end": "end"}
    client.dag("fork", {"left": [], "right": [], "end": ["left", "right"]}, functions=functions)


def transact(client: Client, value: str, number: int, timeout_s: float) -> None:
    """Do one transaction, the `number`-th of its client, which writes `value`."""
    one, two = f"one {number % KEYS}", f"two {(3 * number + 1) % KEYS}"
    calls = client.options(session="causal", timeout=timeout_s)
    if number % 3 == 0:
        calls.call("visit", [two, one], {one: value, two: value})
    elif number % 3 == 1:
        writes = {one: value, two: value}
        calls.call("fork", {"left": ([one, two], {}), "right": ([two, one], {}), "end": ([one, two], writes)})
    else:
        with client.session("causal") as session:
            session.options(timeout=timeout_s).call("visit", [two], {one: value})
            session.mget([one, two])
            session.put(two, value)


def read_all(client: Client, timeout_s: float) -> None:
    """Read every key in one session."""
    keys = [f"{prefix} {number}" for prefix in ("one", "two") for number in range(KEYS)]
    client.options(session="causal", timeout=timeout_s).call("visit", keys, {})
