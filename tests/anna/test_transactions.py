"""Writes of many keys that take effect together, by both clients against real workers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

import anna.aio
from anna import Client, Counter, LatticeTypeMismatch, RequestTimeout, Set, ValueTooLarge
from anna.commits import Write
from tests.anna.conftest import RunningWorkers, running_workers

ITEMS = {"name": "Ada", "tags": Set({"a"}), "visits": Counter(+1), b"raw": None}


@pytest.fixture
def cluster() -> Iterator[RunningWorkers]:
    with running_workers(3) as workers:
        yield workers


@pytest.fixture
def kvs(cluster: RunningWorkers) -> Iterator[Client]:
    with Client([cluster.unix()]) as client:
        yield client


def test_all_writes_take_effect_at_the_stamp_that_is_returned(kvs: Client) -> None:
    before = kvs.stamp
    stamp = kvs.commit(ITEMS)
    assert before < stamp <= kvs.stamp
    assert kvs.mget(list(ITEMS)) == ["Ada", {"a"}, 1, None]
    registers = [kvs.get_lattice(key) for key in ("name", b"raw")]
    assert {register.stamp for register in registers} == {stamp}  # type: ignore[attr-defined]
    assert kvs.commit({"name": "Bob"}) > stamp


def test_again_with_one_id_it_has_one_effect(kvs: Client, cluster: RunningWorkers) -> None:
    id = b"an invocation id"
    stamp = kvs.commit(ITEMS, id=id)
    kvs.put("name", "Bob")
    with Client([cluster.unix(1)]) as other:
        assert other.commit(ITEMS, id=id) == stamp
    assert kvs.mget(["name", "visits"]) == ["Bob", 1]


def test_a_transaction_is_later_than_the_stamp_that_it_is_to_follow(kvs: Client, cluster: RunningWorkers) -> None:
    ahead = kvs.put("seen", 1).stamp + (5_000_000 << 10)
    with Client([cluster.unix()]) as other:
        assert other.commit([("name", 1), ("other", 2)], after=ahead) > ahead


def test_one_write_that_is_refused_refuses_all(kvs: Client) -> None:
    kvs.put("tags", "a register")
    with pytest.raises(LatticeTypeMismatch):
        kvs.commit(ITEMS)
    assert kvs.mget(["name", "visits"]) == [None, None]
    assert kvs.commit({"name": 1}, timeout=1) > 0, "what was prepared of it is gone"


def test_what_cannot_be_a_transaction_is_refused_before_it_is_sent(kvs: Client) -> None:
    with pytest.raises(ValueTooLarge):
        kvs.commit({})
    with pytest.raises(ValueError, match="id has 16 bytes"):
        kvs.commit(ITEMS, id=b"short")
    with pytest.raises(anna.BadKey):
        kvs.commit({"": 1})
    with pytest.raises(anna.NotSupported):
        kvs.commit([Write(b"k", 1, bytes(16) + b"\0", flags=4)])


def test_the_answers_of_later_requests_are_their_own(kvs: Client) -> None:
    for number in range(50):
        kvs.commit({f"k{index}": number for index in range(5)})
        assert kvs.mget([f"k{index}" for index in range(5)]) == [number] * 5
        kvs.put("k0", -number)
        assert kvs.get("k0") == -number


def test_threads_share_a_client(kvs: Client) -> None:
    def count() -> None:
        for _ in range(30):
            kvs.commit({"visits": Counter(+1), "also": Counter(+1), "last": 1})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kvs.mget(["visits", "also"]) == [120, 120]


def test_a_client_with_an_old_view_is_led_to_the_owners(kvs: Client, cluster: RunningWorkers) -> None:
    for place in range(3):
        cluster.tell(place, replace(cluster.view, version=2))
    alone = replace(cluster.view, nodes=(replace(cluster.view.nodes[0], workers=cluster.view.workers[:1]),))
    kvs.forget_view(replace(alone, version=0))
    kvs.commit({f"k{index}": index for index in range(20)})
    assert kvs.mget([f"k{index}" for index in range(20)]) == list(range(20))


def test_nobody_knows_while_an_owner_does_not_answer(kvs: Client, cluster: RunningWorkers) -> None:
    keys = [f"k{index}" for index in range(20)]
    os.kill(cluster.pids[1], signal.SIGSTOP)
    try:
        with pytest.raises(RequestTimeout) as caught:
            kvs.commit(dict.fromkeys(keys, 1), timeout=0.5)
        assert not caught.value.definite
    finally:
        os.kill(cluster.pids[1], signal.SIGCONT)
    assert kvs.commit(dict.fromkeys(keys, 2), timeout=5) > 0
    assert kvs.mget(keys) == [2] * 20


def test_the_asyncio_client_has_it_too(cluster: RunningWorkers) -> None:
    async def story() -> None:
        async with await anna.aio.connect(cluster.unix()) as kvs:
            id = b"an invocation id"
            stamps = await asyncio.gather(*(kvs.commit(ITEMS, id=id) for _ in range(5)))
            assert len(set(stamps)) == 1
            assert await kvs.mget(list(ITEMS)) == ["Ada", {"a"}, 1, None]
            await kvs.put("tags2", "a register")
            with pytest.raises(LatticeTypeMismatch):
                await kvs.commit({"name": "Eve", "tags2": Set({1})})
            assert await kvs.get("name") == "Ada"
            assert await kvs.commit({"name": "Bob"}, after=stamps[0] + (1_000_000 << 10)) > stamps[0]

    asyncio.run(story())
