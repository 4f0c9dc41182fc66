"""The asyncio client against real workers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import anna
import anna.aio
from anna import Set
from anna.config import EPOCH_US
from anna.messages import NodeInfo, View, WorkerInfo
from anna.requester import Requester
from tests.anna import frames
from tests.anna.conftest import RunningWorkers, running_workers
from tests.anna.scripted import Asked, scripted_workers


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


def test_a_client_hears_of_a_newer_view_from_workers_that_do_not_turn_it_away(three_workers: RunningWorkers) -> None:
    async def story(kvs: anna.aio.AsyncClient) -> None:
        await kvs.put("k", 1)
        kvs._requester = Requester(replace(three_workers.view, version=0, factor=2))
        for channel in kvs._channels.values():
            channel.requester = kvs._requester
        async with asyncio.timeout(10):
            while kvs.view != three_workers.view:
                assert await kvs.get("k") == 1

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


def test_conditions_scans_and_watches_are_those_of_the_blocking_client(three_workers: RunningWorkers) -> None:
    async def story(kvs: anna.aio.AsyncClient) -> None:
        keys = sorted(f"k{n}" for n in range(1500))
        await kvs.mput(dict.fromkeys(keys, 0), ack="memory")
        assert [key async for key in kvs.scan("k")] == keys
        assert [key async for key in kvs.scan("k", 3)] == keys[:3]
        await kvs.put("seat", 1, if_stamp=0, ttl=60)
        with pytest.raises(anna.Changed):
            await kvs.put("seat", 2, if_stamp=0)
        with pytest.raises(anna.UnavailableError, match="ack=2 asks for 2 copies"):
            await kvs.put("seat", 2, ack=2)
        with pytest.raises(ValueError, match="ack is"):
            await kvs.put("seat", 2, ack="both")
        seen = []
        async for value in kvs.watch("seat", timeout=5):
            seen.append(value)
            if value == 3:
                break
            await kvs.put("seat", value + 1)
        assert seen == [1, 2, 3]
        assert [value async for value in kvs.watch("nothing", timeout=0.05)] == []

    run(three_workers, story)


def test_a_batch_that_fails_leaves_no_flight_behind(two_nodes: RunningWorkers) -> None:
    """What is still being asked when the first error is raised would open connections that nobody closes."""

    async def story(kvs: anna.aio.AsyncClient) -> None:
        keys = [f"k{n}" for n in range(40)]
        await kvs.mput(dict.fromkeys(keys, 1), ack=2)
        for pid in two_nodes.pids:
            os.kill(pid, signal.SIGSTOP)
        writing = asyncio.ensure_future(kvs.mput(dict.fromkeys(keys, 2), ack="memory"))
        await asyncio.sleep(0.05)
        two_nodes.kill(0)
        with pytest.raises(anna.ConnectionLost):
            await writing
        assert asyncio.all_tasks() - {asyncio.current_task()} == set()

    run(two_nodes, story)


async def until_stable(kvs: anna.aio.AsyncClient) -> None:
    """Wait until what is written by now is known to be on all replicas: the workers have found each other by then."""
    stamp = kvs.stamp
    while any(worker["stable"] < (stamp >> 10) // EPOCH_US for worker in await kvs.status()):
        await kvs.mput({f"work{n}": 0 for n in range(8)}, ack="memory")
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("way", ["stopped", "refused"])
def test_reads_go_on_at_the_other_owner_and_writes_that_were_not_sent(two_nodes: RunningWorkers, way: str) -> None:
    """D39: a client waited for ever for a worker that was gone."""

    async def story(kvs: anna.aio.AsyncClient) -> None:
        keys = [f"k{n}" for n in range(40)]
        assert (await kvs.mput(dict.fromkeys(keys, 1), ack=2)).replicas == 2
        await until_stable(kvs)
        async with await anna.aio.connect(two_nodes.unix(1), timeout=1.0) as fresh:
            if way == "stopped":
                os.kill(two_nodes.pids[0], signal.SIGSTOP)
            else:
                two_nodes.vanish(0)
            assert [await fresh.get(key) for key in keys[:5]] == [1] * 5
            assert await fresh.mget(keys) == [1] * len(keys)
            if way == "refused":
                assert (await fresh.put(keys[0], 2, ack="memory")).replicas == 1
                assert (await fresh.mput(dict.fromkeys(keys, 3), ack="memory")).replicas == 1
            assert [key async for key in fresh.scan("k")] == sorted(keys)

    run(two_nodes, story)


def test_what_was_seen_is_never_unseen_when_its_home_is_gone(two_nodes: RunningWorkers) -> None:
    """P6: served, or StaleReplica, which is definite; never the older value."""

    async def story(kvs: anna.aio.AsyncClient) -> None:
        key = next(key for key in (f"k{n}" for n in range(100)) if kvs._requester.owner(key) == 0)
        await kvs.put(key, "old", ack=2)
        await until_stable(kvs)
        os.kill(two_nodes.pids[1], signal.SIGSTOP)
        await kvs.put(key, "new", ack="memory")
        two_nodes.vanish(0)
        os.kill(two_nodes.pids[1], signal.SIGCONT)
        with pytest.raises(anna.StaleReplica):
            await kvs.get(key, timeout=0.3)

    run(two_nodes, story)


def told(asked: Asked | None, *elements: str) -> bytes:
    """Return what tells a watcher of the key "k" of a set, or, of no elements, of a delete: an answer, or a push."""
    state = Set(elements).encode() if elements else b""
    body = state if asked else b"\x01\x00k" + state
    status, kind = (frames.OK, Set.NUMBER) if elements else (frames.MISSING, 0)
    flags, request = (0, asked.request) if asked else (frames.PUSH, 0)
    return frames.REPLY.pack(frames.REPLY.size - 4 + len(body), 1, status, kind, flags, request, 0, 1) + body


def test_a_watcher_that_asks_again_is_shown_first_what_was_pushed_before_the_answer(tmp_path: Path) -> None:
    """P6: all came at once, after a cut; the answer was joined with what had been deleted, and then went back."""

    async def story(address: str, next_asked: Callable[[], Asked]) -> None:
        async with await anna.aio.connect(address, timeout=0.2) as kvs:
            values = kvs.watch("k")
            first = asyncio.ensure_future(anext(values))
            asked = await asyncio.to_thread(next_asked)
            asked.peer.sendall(told(asked, "old"))
            assert await first == {"old"}
            second = asyncio.ensure_future(anext(values))
            again = await asyncio.to_thread(next_asked)
            again.peer.sendall(told(None) + told(None, "new") + told(again, "new", "newer"))
            assert [await second, await anext(values)] == [{"new"}, {"new", "newer"}]
            await values.aclose()

    with scripted_workers(tmp_path, 1) as (worker,):
        worker.view = View(1, (NodeInfo(1, (WorkerInfo(100, (worker.address,), 0),)),))
        asyncio.run(story(worker.address, worker.next))
