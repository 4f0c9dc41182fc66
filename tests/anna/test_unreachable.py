"""Owners to which a connection hangs, as at a machine that lost its power: every operation, both clients.

What must not happen is that a call spends its time in front of one closed door: it has to have some left to ask another
owner, or to learn that the key has others by now.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import anna
import anna.aio
from anna.messages import DEAD
from tests.anna.conftest import RunningWorkers, running_workers
from tests.anna.test_failover import key_at, until_stable

TIMEOUT_S = 2.0

Call = Callable[[Any, str], Any]

OPERATIONS: dict[str, Call] = {
    "get": lambda kvs, key: kvs.get(key, None),
    "put": lambda kvs, key: kvs.put(key, 1, ack="memory"),
    "put with a time to live": lambda kvs, key: kvs.put(key, 1, ack="memory", ttl=60),
    "delete": lambda kvs, key: kvs.delete(key, ack="memory"),
    "mget": lambda kvs, key: kvs.mget([key, "other"]),
    "mput": lambda kvs, key: kvs.mput({key: 1, "other": 1}, ack="memory"),
    "mput with a time to live": lambda kvs, key: kvs.mput({key: 1, "other": 1}, ack="memory", ttl=60),
    "a pipeline of reads": lambda kvs, key: kvs.pipeline().get(key).get("other").execute(),
    "a pipeline of writes": lambda kvs, key: kvs.pipeline(ack="memory").put(key, 1).delete("other").execute(),
}

every_operation = pytest.mark.parametrize("call", OPERATIONS.values(), ids=OPERATIONS)
both_clients = pytest.mark.parametrize("kind", ["blocking", "asyncio"])


def seconds_of(kind: str, seed: str, happens: Callable[[], None], call: Call, key: str) -> float:
    """Let a client know the cluster, then let something happen, and return how long a call takes that must succeed."""
    if kind == "blocking":
        with anna.Client([seed], timeout=TIMEOUT_S) as kvs:
            happens()
            begun = time.monotonic()
            call(kvs, key)
            return time.monotonic() - begun

    async def story() -> float:
        async with await anna.aio.connect(seed, timeout=TIMEOUT_S) as kvs:
            happens()
            begun = time.monotonic()
            await call(kvs, key)
            return time.monotonic() - begun

    return asyncio.run(story())


@pytest.fixture
def apart() -> Iterator[RunningWorkers]:
    """Two nodes of one worker each, one copy of each key, known by their TCP addresses alone."""
    with running_workers(1, nodes=2, tcp_alone=True) as cluster:
        yield cluster


@pytest.fixture
def copied() -> Iterator[RunningWorkers]:
    """Two nodes of one worker each, two copies of each key, known by their TCP addresses alone."""
    with running_workers(1, nodes=2, factor=2, tcp_alone=True) as cluster:
        yield cluster


def tcp(cluster: RunningWorkers, place: int) -> str:
    return cluster.view.workers[place].addresses[0]


@both_clients
@every_operation
def test_the_other_owner_is_asked_before_the_deadline(copied: RunningWorkers, kind: str, call: Call) -> None:
    """P11, D39: nothing was sent to the first one, so a write may go to the next."""
    with anna.Client([tcp(copied, 1)]) as kvs:
        key = key_at(kvs, 0)
        kvs.put(key, 0, ack=2)
        until_stable(kvs, kvs.stamp)
    assert seconds_of(kind, tcp(copied, 1), lambda: copied.blackhole(0), call, key) < TIMEOUT_S


@both_clients
@every_operation
def test_whom_a_newer_view_names_is_asked_before_the_deadline(apart: RunningWorkers, kind: str, call: Call) -> None:
    """P11, D39: of one owner, all that a client knew, it waited for it until its deadline."""

    def happens() -> None:
        apart.blackhole(0)
        apart.tell(1, apart.view.with_node(replace(apart.view.nodes[0], status=DEAD)))

    with anna.Client([tcp(apart, 1)]) as kvs:
        key = key_at(kvs, 0)
    assert seconds_of(kind, tcp(apart, 1), happens, call, key) < TIMEOUT_S


@both_clients
def test_a_watch_begins_at_whom_a_newer_view_names(apart: RunningWorkers, kind: str) -> None:
    """P11, D39: it hung at the owner that it knew, and then again, and never looked for another view."""
    with anna.Client([tcp(apart, 1)]) as kvs:
        key = key_at(kvs, 0)

    def happens() -> None:
        apart.blackhole(0)
        apart.tell(1, apart.view.with_node(replace(apart.view.nodes[0], status=DEAD)))
        with anna.Client([tcp(apart, 1)]) as other:
            other.put(key, "here", ack="memory")

    def watched(kvs: Any, key: str) -> Any:
        if kind == "blocking":
            with kvs.watch(key, timeout=2 * TIMEOUT_S) as watch:
                assert next(watch) == "here"
            return None

        async def story() -> None:
            watch = kvs.watch(key, timeout=2 * TIMEOUT_S)
            assert await anext(watch) == "here"
            await watch.aclose()

        return story()

    assert seconds_of(kind, tcp(apart, 1), happens, watched, key) < TIMEOUT_S


@both_clients
def test_a_call_to_the_only_owner_ends_by_its_deadline_and_says_that_nothing_was_done(
    apart: RunningWorkers, kind: str
) -> None:
    """P10: what surely was not sent is definite."""

    def refused(kvs: Any, key: str) -> Any:
        if kind == "blocking":
            with pytest.raises(anna.NoWorkers) as caught:
                kvs.mput({key: 1}, timeout=0.3)
            assert caught.value.definite
            return None

        async def story() -> None:
            with pytest.raises(anna.NoWorkers) as caught:
                await kvs.mput({key: 1}, timeout=0.3)
            assert caught.value.definite

        return story()

    with anna.Client([tcp(apart, 1)]) as kvs:
        key = key_at(kvs, 0)
    assert seconds_of(kind, tcp(apart, 1), lambda: apart.blackhole(0), refused, key) < 0.3 + 0.5
