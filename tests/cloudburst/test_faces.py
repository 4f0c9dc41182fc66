"""The other ways to the same calls: many futures at once, a pool of `concurrent.futures`, and asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb
from cloudburst.aio import AsyncClient
from tests.cloudburst.conftest import Post, every_executor_held, release


def test_wait_returns_what_is_done_and_what_is_not(client: cb.Client, post: Post) -> None:
    held = client.spawn("hold", post.address)
    assert post.wait()[0] == "begun"
    quick = client.spawn("square", 3)
    done, waiting = cb.wait([held, quick], return_when=concurrent.futures.FIRST_COMPLETED)
    assert (done, waiting) == ({quick}, {held})
    held.cancel()
    assert post.wait()[0] == "stopped"


def test_as_completed_yields_each_future_once(client: cb.Client) -> None:
    futures = [client.spawn("square", n) for n in range(50)]
    assert sorted(future.result() for future in cb.as_completed(futures, timeout=30)) == [n * n for n in range(50)]


def test_gather_keeps_the_order_and_the_first_failure_cancels_the_rest(client: cb.Client, post: Post) -> None:
    assert cb.gather(*(client.spawn("square", n) for n in range(9))) == [n * n for n in range(9)]
    held = client.spawn("hold", post.address)
    assert post.wait()[0] == "begun"
    with pytest.raises(ValueError, match="bad"):
        cb.gather(held, client.spawn("fail", "ValueError"))
    assert post.wait()[0] == "stopped"
    assert held.cancelled()


def test_gather_says_how_many_are_missing(client: cb.Client, post: Post) -> None:
    held = client.spawn("hold", post.address)
    with pytest.raises(TimeoutError, match=r"1 of 2 calls were not done within 0\.01 s"):
        cb.gather(held, client.spawn("square", 1), timeout=0.01) if post.wait() else None
    assert not held.done()
    held.cancel()


def test_functions_wait_for_many_without_keeping_anybody_out(client: cb.Client) -> None:
    def outer(kind: str) -> int:
        futures = [cb.spawn("square", n) for n in range(20)]
        if kind == "wait":
            done, _ = cb.wait(futures)
            return sum(future.result() for future in done)
        if kind == "gather":
            return sum(cb.gather(*futures))
        return sum(future.result() for future in cb.as_completed(futures))

    client.register(outer, name="waiting-outer")
    futures = [client.spawn("waiting-outer", kind) for kind in ("wait", "gather", "as_completed") * 4]
    assert [future.result(timeout=60) for future in futures] == [2470] * 12


def test_pool_takes_functions_as_any_executor_does(client: cb.Client) -> None:
    factor = 3

    def scaled(x: int, *, plus: int = 0) -> int:
        return factor * x + plus

    with cb.Executor(client) as pool:
        assert isinstance(pool, concurrent.futures.Executor)
        assert pool.submit(scaled, 2, plus=1).result(timeout=20) == 7
        assert list(pool.map(scaled, range(5))) == [0, 3, 6, 9, 12]
        assert pool.submit("square", 4).result(timeout=20) == 16
        assert pool.submit(pow, 2, 10).result(timeout=20) == 1024
        before = len(client.functions())
        assert pool.submit(scaled, 5).result(timeout=20) == 15
        assert len(client.functions()) == before
        with pytest.raises(cb.RequestError, match="a function or a name is submitted; got a int"):
            pool.submit(3)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(scaled, 1)
    assert not client.closed


def test_two_functions_of_one_name_do_not_meet_in_a_pool(client: cb.Client) -> None:
    with cb.Executor(client) as pool:
        futures = [pool.submit(made, 1) for made in [lambda x: x, lambda x: x + 10]]
        assert [future.result(timeout=20) for future in futures] == [1, 11]


def test_a_pool_that_shuts_down_waits_or_cancels(client: cb.Client, post: Post, directory: Path) -> None:
    own = str(directory / "own")
    pool = cb.Executor(client)
    waited = pool.submit("hold_until_told", post.address, own)
    assert post.wait()[0] == "begun"
    pool.shutdown(wait=False)
    release(own, "go")
    pool.shutdown()
    assert waited.result(timeout=0) == "go"
    pool = cb.Executor(client)
    held = pool.submit("hold", post.address)
    assert post.wait()[0] == "begun"
    pool.shutdown(cancel_futures=True)
    assert held.cancelled()
    assert post.wait()[0] == "stopped"


@pytest.fixture
def loop_client(client: cb.Client) -> AsyncClient:
    return AsyncClient(client)


def test_asyncio_calls_and_maps(loop_client: AsyncClient) -> None:
    async def work() -> tuple[Any, ...]:
        await loop_client.register(lambda x: x + 1, name="aio-plus")
        called = await loop_client.call("aio-plus", 1)
        mapped = [found async for found in loop_client.map("aio-plus", range(100))]
        gathered = await loop_client.gather(*[await loop_client.spawn("aio-plus", n) for n in range(10)])
        await loop_client.put("aio-key", 7)
        return called, mapped, gathered, await loop_client.get("aio-key")

    assert asyncio.run(work()) == (2, list(range(1, 101)), list(range(1, 11)), 7)


def test_asyncio_errors_are_the_users(loop_client: AsyncClient) -> None:
    async def work() -> None:
        await loop_client.call("fail", "ValueError")

    with pytest.raises(ValueError, match="bad"):
        asyncio.run(work())


def test_a_loop_goes_on_while_calls_wait(loop_client: AsyncClient, client: cb.Client, post: Post) -> None:
    async def work() -> int:
        await loop_client.call("square", 1)
        turns = 0
        with every_executor_held(client, post):
            task = asyncio.ensure_future(loop_client.call("square", 3))
            for _ in range(50):
                await asyncio.sleep(0)
                turns += 1
            assert not task.done()
        assert await task == 9
        return turns

    assert asyncio.run(work()) == 50


def test_a_cancelled_task_cancels_its_call(loop_client: AsyncClient, post: Post) -> None:
    async def work() -> None:
        task = asyncio.ensure_future(loop_client.call("hold", post.address))
        words = await asyncio.to_thread(post.wait)
        assert words[0] == "begun"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert post.wait()[0] == "stopped"


def test_leaving_a_map_cancels_what_is_under_way(loop_client: AsyncClient, post: Post, directory: Path) -> None:
    async def work() -> None:
        own = [str(directory / name) for name in "ab"]
        found: AsyncIterator[Any] = loop_client.map("hold_until_told", [post.address] * 2, own)
        first = asyncio.ensure_future(anext(found))
        for _ in range(2):
            assert (await asyncio.to_thread(post.wait))[0] == "begun"
        release(str(directory / "a"), "one")
        assert await first == "one"
        await found.aclose()  # type: ignore[attr-defined]

    asyncio.run(work())
    assert [row["state"] for row in loop_client.client.status()["executors"]].count("running") <= 1


def test_options_go_along(loop_client: AsyncClient) -> None:
    async def work() -> None:
        await loop_client.options(timeout=0.05).call("snooze", 20)

    with pytest.raises(cb.FunctionTimeout):
        asyncio.run(work())
