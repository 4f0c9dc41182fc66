"""Values that are no good, too much, or changed behind the store's back: what both clients do with them.

The table of bad inputs is reliability.md C; bytes that are no frames are in tests/integration/test_bad_input.py, keys
and limits of single values in tests/anna/test_client.py.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import anna
import anna.aio
from anna import Client
from anna.config import CLOCK_ENTRIES_MAX, DEAD_AFTER_US
from tests.anna.conftest import RunningWorkers
from tests.anna.local.processes import processor_s
from tests.anna.test_failover import key_at, until_stable


@pytest.fixture
def kvs(one_worker: RunningWorkers) -> Iterator[Client]:
    with Client([one_worker.unix()]) as client:
        yield client


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


UNENCODABLE: dict[str, Callable[[], Any]] = {
    "a lock": threading.Lock,
    "a generator": lambda: (n for n in "abc"),
    "a list nested 100,000 deep": lambda: nested(100_000),
}


@pytest.mark.parametrize("make", UNENCODABLE.values(), ids=UNENCODABLE)
def test_what_cannot_be_encoded_is_refused_before_anything_is_sent(
    kvs: Client, one_worker: RunningWorkers, make: Callable[[], Any]
) -> None:
    """C: the caller is told where the mistake is made, and the batch that holds it writes nothing."""
    before = frames_at(kvs)
    value = make()
    for call in (
        lambda: kvs.put("k", value),
        lambda: kvs.mput({"good": 1, "k": value}),
        lambda: kvs.pipeline().put("k", value),
        lambda: asyncio.run(put_by_asyncio(one_worker, value)),
    ):
        with pytest.raises(anna.NotSerializable):
            call()
    assert kvs.mget(["k", "good"]) == [None, None]
    assert frames_at(kvs) - before <= 4, "the view of the asyncio client, and what this test asks itself"


async def put_by_asyncio(cluster: RunningWorkers, value: Any) -> None:
    async with await anna.aio.connect(cluster.unix()) as kvs:
        await kvs.put("k", value)


def frames_at(kvs: Client) -> int:
    (figures,) = kvs.status()
    return int(figures["frames"])


def test_a_value_that_is_changed_after_its_put_is_stored_as_it_was(kvs: Client, one_worker: RunningWorkers) -> None:
    """C: stored bytes are a snapshot; what is read belongs to its reader."""
    value = ["as it was"]
    kvs.put("k", value)
    with kvs.pipeline() as pipeline:
        pipeline.put("queued", value)
        value.append("changed")
    assert kvs.mget(["k", "queued"]) == [["as it was"]] * 2
    kvs.get("k").append("changed by a reader")
    assert kvs.get("k") == ["as it was"]

    async def story() -> None:
        async with await anna.aio.connect(one_worker.unix()) as other, other.pipeline() as pipeline:
            mine = ["as it was"]
            pipeline.put("queued by asyncio", mine)
            mine.append("changed")

    asyncio.run(story())
    assert kvs.get("queued by asyncio") == ["as it was"]


def test_a_set_of_a_million_works_and_grows_by_one_element(one_worker: RunningWorkers) -> None:
    """C: what a write costs the worker is what it adds. What its other owners are sent is in tests/anna/kvs (D29)."""
    with Client([one_worker.unix()], timeout=60) as kvs:
        kvs.put("k", anna.Set(range(1_000_000)))
        before = processor_s([one_worker.pids[0]])
        for number in range(20):
            kvs.put("k", anna.Set([-1 - number]))
        assert processor_s([one_worker.pids[0]]) - before < 0.2, "that was more than twenty elements"
        assert len(kvs.get_lattice("k").value) == 1_000_020


def test_a_vector_clock_of_many_writers_works_up_to_its_limit(kvs: Client) -> None:
    """C: ten thousand entries are served; beyond the limit the write is refused, and the key is as it was."""
    kvs.put("clock", anna.VectorClock(dict.fromkeys(range(10_000), 1)))
    kvs.put("clock", anna.VectorClock({7: 9}))
    assert kvs.get_lattice("clock") == anna.VectorClock(dict.fromkeys(range(10_000), 1) | {7: 9})
    with pytest.raises(anna.AnnaError) as caught:
        kvs.put("clock", anna.VectorClock(dict.fromkeys(range(CLOCK_ENTRIES_MAX + 1), 1)))
    assert caught.value.definite
    assert len(kvs.get_lattice("clock").value) == 10_000


def test_the_largest_values_hold_up_neither_heartbeats_nor_small_writes(two_nodes: RunningWorkers) -> None:
    """C: on its way to the other owner a value is cut, so that others pass between its parts."""
    large = bytes(60 * 1024 * 1024)
    with Client([two_nodes.unix()], timeout=60) as kvs, Client([two_nodes.unix()], timeout=60) as other:
        keys = [key_at(kvs, 0, f"large {n} ") for n in range(4)]
        small = key_at(kvs, 0, "small")
        other.put(small, 0, ack=2)
        moving = threading.Thread(target=lambda: [kvs.put(key, large, ack=2) for key in keys])
        moving.start()
        longest = 0.0
        while moving.is_alive():
            begun = time.monotonic()
            assert other.put(small, 1, ack=2).replicas == 2
            longest = max(longest, time.monotonic() - begun)
        moving.join()
        assert longest < DEAD_AFTER_US / 1e6
        until_stable(other, other.stamp)
        assert [node.status.name for node in other.view.nodes] == ["ALIVE", "ALIVE"]
        assert [kvs.get(key) == large for key in keys] == [True] * 4
