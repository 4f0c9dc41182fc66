"""Functions that read and write in sessions, a node that has them, and ways to wait for what sessions see."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import cloudburst as cb
from cloudburst import local
from cloudburst.client import Client
from cloudburst.consistency import levels
from cloudburst.membership import Membership
from tests.cloudburst.samples import hold_until_told

THERE = [level.name for level in levels.LEVELS if level.at_epoch]


def add(key: str, number: int) -> int:
    import cloudburst

    cloudburst.put(key, cloudburst.get(key, 0) + number)
    return int(cloudburst.get(key))


def add_twice(key: str) -> tuple[int, int, int]:
    import cloudburst

    first = cloudburst.call("add", key, 1)
    second = cloudburst.spawn("add", key, 10).result()
    return first, second, cloudburst.get(key)


def fail_after(key: str, value: Any) -> None:
    import cloudburst

    cloudburst.put(key, value)
    raise ValueError("after all")


async def add_beside(key: str, number: int) -> int:
    import asyncio

    import cloudburst

    found = await asyncio.to_thread(cloudburst.get, key, 0)
    await asyncio.to_thread(cloudburst.put, key, found + number)
    return int(await asyncio.to_thread(cloudburst.get, key))


def count_down(key: str, number: int) -> Any:
    import cloudburst

    cloudburst.put(key, cloudburst.get(key, 0) + 1)
    return cloudburst.Continue("count_down", key, number - 1) if number else cloudburst.get(key)


def read_all(*keys: str) -> list[Any]:
    import cloudburst

    return cloudburst.mget(keys)


def given(value: Any) -> Any:
    return value


def mark(key: str, value: Any, *before: Any) -> Any:
    import cloudburst

    cloudburst.put(key, value)
    return value


def step(before: Any, key: str, value: Any) -> list[Any]:
    import cloudburst

    cloudburst.put(key, value)
    return [*before, value]


def gather_up(left: list[Any], right: list[Any], *keys: str) -> list[Any]:
    import cloudburst

    return [left, right, cloudburst.mget(keys)]


def outlive(key: str, address: str, own: str) -> tuple[Any, Any]:
    """Read a key before and after somebody says a word."""
    import cloudburst

    first = cloudburst.get(key)
    hold_until_told(address, own)
    return first, cloudburst.get(key)


def open_inside() -> None:
    import cloudburst

    with cloudburst.session("repeatable"):
        pass


def count_and_die(key: str, died: str) -> int:
    """Count, and have the executor end when that is committed, the first time."""
    import os

    import cloudburst
    from anna.lattices import Counter
    from cloudburst import context
    from cloudburst.consistency.session import epoch_of
    from cloudburst.executor.sessions import Held

    def end_and_die(held: Held) -> None:
        end(held)
        with open(died, "w") as file:
            file.write(str(held.open.state.last))
        os._exit(1)

    cloudburst.put(key, Counter(+5))
    if os.path.exists(died):
        with open(died) as file:
            first = epoch_of(int(file.read()))
        assert context.executing.store().pin(least=first, timeout=10).epoch >= first  # it sees the first attempt's
    else:
        end, Held.end = Held.end, end_and_die  # type: ignore[method-assign]
    return int(cloudburst.get(key))


FUNCTIONS = (
    count_and_die, add, add_twice, fail_after, add_beside, count_down, read_all, given, mark, step, gather_up, outlive,
    open_inside,
)  # fmt: skip


@contextmanager
def node_with_functions() -> Iterator[cb.Client]:
    """A node on which they are registered, and two graphs of them."""
    client = Client(lambda: Membership(local.ensure(executors=2)))  # the default client stays what it was
    for function in FUNCTIONS:
        client.register(function)
    source = {"start": [], "left": ["start"], "right": ["start"], "end": ["left", "right"]}
    functions = {"start": "given", "left": "step", "right": "step", "end": "gather_up"}
    client.dag("diamond", source, functions=functions)
    client.dag("two sources", {"one": [], "two": [], "end": ["one", "two"]}, functions=functions_of("mark"))
    yield client
    client.close()


def functions_of(name: str) -> dict[str, str]:
    return {"one": name, "two": name, "end": "gather_up"}


def branches(key: str) -> dict[str, tuple[Any, ...]]:
    return {
        "start": (["start"],), "left": (f"{key} left", "L"), "right": (f"{key} right", "R"),
        "end": (key, f"{key} left", f"{key} right"),
    }  # fmt: skip


at_every_level = pytest.mark.parametrize("level", THERE)


def after_a_while(client: cb.Client, level: str, read: Any, expected: Any) -> None:
    """Wait until a session's epoch has what was committed before, and compare."""
    end = time.monotonic() + 10
    while True:
        with client.session(level) as session:
            found = read(session)
        if found == expected or time.monotonic() > end:
            assert found == expected
            return
        time.sleep(0.005)


def soon(client: cb.Client, keys: list[str], expected: list[Any]) -> None:
    """Wait until plain reads, which are of what the node's cache has, show what was committed; compare."""
    end = time.monotonic() + 10
    while (found := client.mget(keys)) != expected and time.monotonic() < end:
        time.sleep(0.002)
    assert found == expected
