"""The asyncio client against real workers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import anna
import anna.aio
from tests.anna.conftest import RunningWorkers, running_workers


def run(cluster: RunningWorkers, story: Callable[[anna.aio.AsyncClient], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with await anna.aio.connect(cluster.unix(), **options) as kvs:
            await story(kvs)

    asyncio.run(main())


def test_operations_are_those_of_the_blocking_client(three_workers: RunningWorkers) -> None:
    async def story(kvs: anna.aio.AsyncClient) -> None:
        assert (await kvs.put("a", "hello")).replicas == 1
        assert await kvs.get("a") == "hello"
        assert (await kvs.get_lattice("a")).value == "hello"
        items = {f"k{n}": n for n in range(200)}
        await kvs.mput(items)
        assert await kvs.mget([*items, "nothing"], default="-") == [*items.values(), "-"]
        assert (await kvs.delete("a"), await kvs.delete("a")) == (True, False)
        assert await kvs.get("a", 3) == 3
        with pytest.raises(anna.KeyNotFound):
            await kvs.get("a")
        with pytest.raises(anna.BadKey):
            await kvs.get("")
        async with kvs.pipeline() as p:
            p.put("x", 1).get("x").delete("x").get("x", "gone")
        assert p.results[1:] == [1, True, "gone"]
        assert sum(w["keys"] for w in await kvs.status()) == 200

    run(three_workers, story)


def test_a_thousand_requests_are_in_flight_at_once(one_worker: RunningWorkers) -> None:
    async def story(kvs: anna.aio.AsyncClient) -> None:
        await asyncio.gather(*(kvs.put(f"k{n}", n) for n in range(1000)))
        assert await asyncio.gather(*(kvs.get(f"k{n}") for n in range(1000))) == list(range(1000))

    run(one_worker, story)


def test_deadlines_end_calls_and_late_answers_are_dropped(one_worker: RunningWorkers) -> None:
    async def story(kvs: anna.aio.AsyncClient) -> None:
        await kvs.mput({"a": "A", "b": "B"})
        os.kill(one_worker.pids[0], signal.SIGSTOP)
        calls = [kvs.get("a", timeout=0.05), kvs.put("c", 1, timeout=0.05), kvs.mget(["a"], timeout=0.05)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        os.kill(one_worker.pids[0], signal.SIGCONT)
        assert [type(e) for e in errors] == [anna.RequestTimeout] * 3
        assert await kvs.get("b") == "B"

    run(one_worker, story)


def test_reads_go_on_over_a_replaced_worker(one_worker: RunningWorkers) -> None:
    async def story(kvs: anna.aio.AsyncClient) -> None:
        await kvs.put("k", 1)
        one_worker.kill(0)
        one_worker.start(0)
        assert await kvs.get("k", None) is None
        assert (await kvs.put("k", 2)).replicas == 1

    run(one_worker, story)


def test_write_under_way_at_a_crash_is_indefinite(one_worker: RunningWorkers) -> None:
    async def story(kvs: anna.aio.AsyncClient) -> None:
        os.kill(one_worker.pids[0], signal.SIGSTOP)
        write = asyncio.ensure_future(kvs.put("k", 1))
        read = asyncio.ensure_future(kvs.get("k", "nothing"))
        # The view's connection is open already, so one turn of the loop puts both requests on the wire.
        for _ in range(5):
            await asyncio.sleep(0)
        one_worker.kill(0)
        one_worker.start(0)
        with pytest.raises(anna.ConnectionLost) as caught:
            await write
        assert not caught.value.definite
        assert await read == "nothing"

    async def warmed(kvs: anna.aio.AsyncClient) -> None:
        await kvs.get("k", None)
        await story(kvs)

    run(one_worker, warmed)


def test_closed_client_says_so() -> None:
    async def main(address: str) -> None:
        kvs = await anna.aio.connect(address)
        await kvs.close()
        with pytest.raises(anna.NoWorkers, match="closed"):
            await kvs.get("k")

    with running_workers(1) as cluster:
        asyncio.run(main(cluster.unix()))
