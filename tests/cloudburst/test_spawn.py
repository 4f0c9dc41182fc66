"""Calls that do not wait: futures, their cancellation, and `map`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import pty
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import cloudburst as cb
from cloudburst import config
from tests.cloudburst.conftest import Post, every_executor_held, release


def test_future_has_the_result_and_is_a_concurrent_future(client: cb.Client) -> None:
    future = client.spawn("square", 5)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(timeout=20) == 25
    assert (future.done(), future.cancelled(), future.exception(), future.attempts) == (True, False, None, 1)
    assert not future.cancel()


def test_future_has_the_users_exception(client: cb.Client) -> None:
    future = client.spawn("fail", "ValueError")
    with pytest.raises(ValueError, match="bad"):
        future.result(timeout=20)
    error = future.exception()
    assert isinstance(error, ValueError)
    assert isinstance(error, cb.FunctionError)


def test_thousands_of_spawned_calls_all_end(client: cb.Client) -> None:
    futures = [client.spawn("square", n) for n in range(5000)]
    assert [future.result(timeout=60) for future in futures] == [n * n for n in range(5000)]


def test_futures_work_with_wait_as_completed_and_callbacks(client: cb.Client) -> None:
    futures = [client.spawn("square", n) for n in range(50)]
    done, waiting = concurrent.futures.wait(futures, timeout=20)
    assert (len(done), len(waiting)) == (50, 0)
    again = [client.spawn("square", n) for n in range(50)]
    assert sorted(f.result() for f in concurrent.futures.as_completed(again, timeout=20)) == [n * n for n in range(50)]
    called = threading.Event()
    client.spawn("square", 1).add_done_callback(lambda future: called.set())
    assert called.wait(20)


def test_future_can_be_awaited(client: cb.Client) -> None:
    async def both() -> list[int]:
        return list(await asyncio.gather(client.spawn("square", 3), client.spawn("square", 4)))

    async def failing() -> None:
        await client.spawn("fail", "ValueError")

    assert asyncio.run(both()) == [9, 16]
    with pytest.raises(ValueError, match="bad"):
        asyncio.run(failing())


def test_result_that_is_not_there_in_time_is_a_timeout_and_the_call_goes_on(client: cb.Client, post: Post) -> None:
    own = post.address + "-own"
    future = client.spawn("hold_until_told", post.address, own)
    post.wait()
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    release(own, "now")
    assert future.result(timeout=20) == "now"


def test_cancel_stops_a_running_function_and_its_executor_goes_on(client: cb.Client, post: Post) -> None:
    future = client.spawn("hold", post.address)
    pid = int(post.wait()[1])
    assert future.cancel()
    assert post.wait() == ["stopped", "Interrupted"]
    assert future.cancelled()
    with pytest.raises(cb.Cancelled, match="the call of 'hold' was cancelled"):
        future.result()
    assert future.cancel(), "cancelling again changes nothing"
    assert pid in {client.call("pid") for _ in range(20)} | {row["pid"] for row in client.status()["executors"]}


def test_cancelled_call_that_has_not_begun_never_runs(client: cb.Client, post: Post, directory: Path) -> None:
    """Every executor is held, so the cancelled calls wait in their queues or in the client's own."""
    file = str(directory / "effects")
    with every_executor_held(client, post):
        waiting = [client.spawn("append_to", file, str(n)) for n in range(600)]
        assert all(future.cancel() for future in waiting)
    assert client.call("square", 2) == 4
    assert not os.path.exists(file)


def test_calls_wait_for_no_slow_one_while_another_executor_is_idle(client: cb.Client, post: Post) -> None:
    """One executor is held for long; calls that were queued behind it are run by the other."""
    held = client.spawn("hold", post.address)
    post.wait()
    futures = [client.spawn("square", n) for n in range(200)]
    assert [future.result(timeout=10) for future in futures] == [n * n for n in range(200)]
    assert [client.call("square", n) for n in range(20)] == [n * n for n in range(20)]
    held.cancel()
    assert post.wait()[0] == "stopped"


def test_more_calls_than_the_limit_are_refused_definitely(client: cb.Client, post: Post) -> None:
    core = client._joined().spawner()._core
    before = core.pending_max
    with every_executor_held(client, post) as held:
        core.pending_max = most = len(held) + 3
        waiting = [client.spawn("square", n) for n in range(3)]
        says = f"{most} spawned calls have no result yet; pending_calls_max is {most}"
        with pytest.raises(cb.Overloaded, match=says) as caught:
            client.spawn("square", 1)
        core.pending_max = before
        assert caught.value.definite
    assert [future.result(timeout=20) for future in waiting] == [0, 1, 4]


def test_executors_full_queue_refuses_definitely(client: cb.Client, post: Post) -> None:
    """More calls than its queue takes, straight to one executor that is held (P24)."""
    import socket

    from cloudburst import frames
    from cloudburst.pickling import python_tag

    membership = client._joined()
    with every_executor_held(client, post), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lane:
        slot, incarnation = next(iter(membership.chooser.granted().items()))
        lane.connect(membership.address(slot, incarnation).removeprefix("unix:"))
        lane.settimeout(20)
        lane.sendall(frames.hello(5, python_tag()))
        for n in range(config.QUEUE_CALLS_MAX + 3):
            lane.sendall(frames.call(n, b"nothing", b"", invocation=(5, n), flags=frames.EMPTY, timeout_us=10**8))
        reader, replies = frames.FrameReader(), []
        while len(replies) < 3:
            replies += reader.feed(lane.recv(65536))
        faults = [frames.fault_of(reply[frames.REPLY_HEADER_BYTES :]) for reply in replies]
        assert {(type(fault), fault.definite) for fault in faults} == {(cb.Overloaded, True)}
        assert "queue_calls_max is 1,024" in str(faults[0])


def test_map_gives_results_in_the_order_of_the_input(client: cb.Client) -> None:
    delays = [0.02, 0.0, 0.01, 0.0] * 5
    assert list(client.map("snooze", delays)) == delays
    assert list(client.map("echo", [1, 2, 3], "ab")) == [((1, "a"), {}), ((2, "b"), {})]
    assert list(client.map("square", [])) == []


def test_map_reads_its_input_only_as_far_as_it_has_calls_under_way(client: cb.Client) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        for n in itertools.count():
            taken = n + 1
            yield n

    results = client.map("square", endless())
    assert taken == 0
    assert list(itertools.islice(results, 3000)) == [n * n for n in range(3000)]
    assert taken <= 3000 + config.MAP_IN_FLIGHT_MAX
    results.close()  # type: ignore[attr-defined]
    assert client.call("square", 2) == 4


def test_map_raises_the_first_failure_in_order_and_cancels_the_rest(client: cb.Client, post: Post) -> None:
    results = client.map("fail", ["ValueError"] * 50)
    with pytest.raises(ValueError, match="bad"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_shows_a_bar_on_a_terminal_and_nothing_elsewhere(
    client: cb.Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from cloudburst import mapping

    monkeypatch.setattr(mapping, "SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(mapping, "REFRESH_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    assert list(client.map("square", range(5))) == [0, 1, 4, 9, 16]
    assert capfd.readouterr() == ("", "")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        assert list(client.map("square", range(5))) == [0, 1, 4, 9, 16]
    shown = b""
    with suppress(OSError):  # what the reader of a closed terminal gets in the end
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    assert b"square" in shown
    assert b"5/5" in shown


def test_closing_a_client_ends_its_futures(home: Path, node: cb.Client, post: Post) -> None:
    from cloudburst import local
    from cloudburst.client import Client
    from cloudburst.membership import Membership

    other = Client(lambda: Membership(local.ensure()))
    future = other.spawn("hold", post.address)
    post.wait()
    other.close()
    with pytest.raises(cb.NodeLost, match="the client was closed before 'hold' had a result"):
        future.result(timeout=20)
    assert post.wait() == ["stopped", "Interrupted"]
    with pytest.raises(cb.NodeLost, match="this client is closed"):
        other.call("square", 1)
