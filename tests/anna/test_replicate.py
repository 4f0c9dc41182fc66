"""Clients that give keys copies, while others write and read them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import pytest

import anna
import anna.aio
from tests.anna.conftest import RunningWorkers, running_workers

PATIENCE_S = 15


def places(cluster: RunningWorkers, key: str) -> list[int]:
    """Return the places of the workers that answer for a key, as a newcomer sees it."""
    with anna.connect(cluster.unix()) as kvs:
        return list(kvs.where(key)["owners"])


def meanwhile(cluster: RunningWorkers, key: str, until: Callable[[list[int]], bool], step: Callable[[], None]) -> None:
    """Do one step after the other until the key's owners are as they should be, and some more."""
    deadline = monotonic() + PATIENCE_S
    while not until(places(cluster, key)):
        assert monotonic() < deadline
        for _ in range(20):
            step()
    for _ in range(200):
        step()


def test_a_hot_key_is_given_copies_and_dismissed_while_it_is_written_and_read() -> None:
    with running_workers(1, nodes=3) as cluster, anna.connect(cluster.unix()) as kvs:
        written = 0

        def step() -> None:
            nonlocal written
            written += 1
            kvs.put("hot", written)
            assert kvs.get("hot") == written

        step()
        (first,) = places(cluster, "hot")
        kvs.replicate("hot", memory=3)
        meanwhile(cluster, "hot", lambda found: len(found) == 3, step)
        assert places(cluster, "hot")[0] == first
        assert kvs.put("hot", written, ack=3).replicas == 3
        kvs.replicate("hot", default=True)
        meanwhile(cluster, "hot", lambda found: found == [first], step)


def test_a_key_goes_to_disk_and_back_and_no_client_sees_less_than_before() -> None:
    """The key's first owner is another then, and whoever wrote to the old one reads at the new one."""
    with running_workers(1, nodes=3, disk_nodes=2) as cluster, anna.connect(cluster.unix()) as kvs:
        written = 0

        def step() -> None:
            nonlocal written
            written += 1
            kvs.put("cold", written)
            with anna.connect(cluster.unix(written % 3)) as other:
                assert other.get("cold") >= 1, "no key that exists is missing"
            assert kvs.get("cold") == written

        step()
        kvs.replicate("cold", "other", disk=2)
        meanwhile(cluster, "cold", lambda found: sorted(found) == [1, 2], step)
        assert sorted(places(cluster, "other")) == [1, 2]
        kvs.replicate("cold", memory=1)
        meanwhile(cluster, "cold", lambda found: found == [0], step)


def test_the_asyncio_client_gives_copies_likewise() -> None:
    async def story(cluster: RunningWorkers) -> None:
        async with await anna.aio.connect(cluster.unix()) as kvs:
            await kvs.put("hot", 1)
            await kvs.replicate("hot", memory=2)
            while len(await asyncio.to_thread(places, cluster, "hot")) < 2:
                assert await kvs.get("hot") == 1
            assert (await kvs.put("hot", 2, ack=2)).replicas == 2
            with pytest.raises(ValueError, match="a key has at least one copy"):
                await kvs.replicate("hot")

    with running_workers(1, nodes=2) as cluster:
        asyncio.run(asyncio.wait_for(story(cluster), PATIENCE_S))


def test_a_change_goes_to_another_worker_when_one_is_gone(two_nodes: RunningWorkers) -> None:
    with anna.connect(two_nodes.unix()) as kvs:
        gone = kvs.where("k")["place"]
        two_nodes.vanish(gone)
        kvs.replicate("k", memory=1)
        assert kvs.view.vectors.moving, "one of the owners does not say yet that it is complete"


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({}, "a key has at least one copy"),
        ({"memory": 1, "default": True}, "a key has at least one copy"),
        ({"memory": 17}, "number of copies in memory is 17; it must be 0 to 16"),
        ({"disk": -1}, "number of copies on disk is -1"),
    ],
)
def test_numbers_that_cannot_be_are_refused_at_once(
    one_worker: RunningWorkers, numbers: dict[str, int], why: str
) -> None:
    with anna.connect(one_worker.unix()) as kvs:
        with pytest.raises(ValueError, match=why):
            kvs.replicate("k", **numbers)
        with pytest.raises(ValueError, match="no key was named"):
            kvs.replicate(memory=2)
        with pytest.raises(anna.ValueTooLarge, match=r"own_vectors_max is 4,096"):
            kvs.replicate(*(f"k{n}" for n in range(4097)), memory=2)
