"""Large values of calls on a real node: in shared memory, read in place, and given back by everybody."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cloudburst as cb
from cloudburst.client import Client
from cloudburst.executor.invoker import OURS
from cloudburst.segments.distant import open_anywhere
from cloudburst.segments.held import open_segment
from cloudburst.segments.mapping import Mapping
from cloudburst.segments.shelf import Shelf, home_of
from tests.cloudburst.conftest import Post, every_executor_held, wait_until_gone

N = 100_000
"""Items of an array that is large: 800 KB."""


def ramp(n: int, start: float = 0.0) -> Any:
    import numpy

    return numpy.arange(n, dtype=float) + start


def total(*arrays: Any) -> tuple[float, bool]:
    return sum(float(array.sum()) for array in arrays), any(array.flags.writeable for array in arrays)


def where(array: Any) -> str:
    """Say in which mapped file the items of an array are."""
    address = array.ctypes.data
    with open("/proc/self/maps") as maps:
        for line in maps:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            if begin <= address < end:
                return line.split()[-1] if len(line.split()) > 5 else ""
    return ""


def spoil(array: Any) -> None:
    array[0] = 1


def add(*arrays: Any) -> Any:
    return sum(arrays[1:], arrays[0])


def make_and_wait(address: str, n: int) -> Any:
    import numpy

    from tests.cloudburst.samples import tell

    tell(address, "begun", os.getpid())
    array = numpy.ones(n)
    with open(f"{address}.ready", "rb") as gate:  # until somebody opens it for writing
        gate.read()
    return array


async def ramp_later(n: int) -> Any:
    return ramp(n)


async def total_later(array: Any) -> tuple[float, bool]:
    return total(array)


@pytest.fixture(scope="module")
def large(node: cb.Client) -> cb.Client:
    """The client, with this file's functions."""
    for function in (ramp, total, where, spoil, add, make_and_wait, ramp_later, total_later):
        node.register(function)
    both = {"left": "ramp", "right": "ramp"}
    node.dag("halves", {"left": [], "right": [], "add": ["left", "right"]}, functions=both)
    node.dag("first", {"left": [], "right": [], "add": cb.any_of("left", "right")}, functions=both)
    return node


@pytest.fixture
def shelf(client: cb.Client, large: cb.Client) -> Iterator[Shelf]:
    """The node's segments, none of which are left when a test is over."""
    membership = client._joined()
    yield membership.shelf()
    gc.collect()
    for _ in range(2):
        assert client.call("nothing") is None
    assert names(membership.shelf()) == []


def names(shelf: Shelf) -> list[str]:
    """Return the segments that belong to clients; values of keys have others."""
    return [name for name in shelf.names() if not name.startswith("0/")]


def mapped_by(array: Any) -> object:
    """Return what keeps an array's bytes."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


def test_large_result_is_a_view_of_the_executors_segment(client: cb.Client, shelf: Shelf) -> None:
    found = client.call("ramp", N)
    assert isinstance(mapped_by(found), Mapping)
    assert not found.flags.writeable
    assert found.sum() == N * (N - 1) / 2
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1
    copied = found.copy()
    copied[0] = 7
    assert names(shelf) == []


def test_large_argument_is_read_where_the_client_has_put_it(client: cb.Client, shelf: Shelf) -> None:
    assert client.call("where", np.ones(N)).startswith(str(shelf.path))
    assert client.call("total", np.ones(N), np.ones(10)) == (N + 10.0, True)
    assert client.call("total", np.ones(N)) == (N, False)
    with pytest.raises(ValueError, match="read-only"):
        client.call("spoil", np.ones(N))


def test_small_values_stay_as_they_were(client: cb.Client, shelf: Shelf) -> None:
    found = client.call("ramp", 100)
    assert found.flags.writeable
    assert client.call("where", np.ones(100)) in ("[heap]", "")


def test_spawned_results_wait_in_memory_until_they_are_asked_for_or_forgotten(client: cb.Client, shelf: Shelf) -> None:
    futures = [client.spawn("ramp", N, n) for n in range(6)]
    cb.wait(futures)
    assert len(names(shelf)) == 6
    assert shelf.bytes >= 6 * 8 * N
    first, again = futures[0].result(), futures[0].result()
    assert np.shares_memory(first, again)
    assert [future.result()[0] for future in futures[:3]] == [0.0, 1.0, 2.0]
    assert len(names(shelf)) == 3
    del futures
    gc.collect()
    assert names(shelf) == []
    assert first[-1] == N - 1


def test_arguments_of_spawned_calls_are_removed_with_their_calls(client: cb.Client, shelf: Shelf) -> None:
    futures = [client.spawn("total", np.full(N, n)) for n in range(8)]
    assert [future.result()[0] for future in futures] == [n * N for n in range(8)]
    assert names(shelf) == []


def test_map_and_options_carry_large_values(client: cb.Client, shelf: Shelf) -> None:
    assert [array[0] for array in client.map("ramp", [N] * 5, range(5))] == [0, 1, 2, 3, 4]
    assert client.options(key="large-out").call("ramp", N)[-1] == N - 1
    assert client.get("large-out")[-1] == N - 1


def test_results_travel_along_the_edges_of_a_dag_in_shared_memory(client: cb.Client, shelf: Shelf) -> None:
    for _ in range(3):
        found = client.call("halves", {"left": (N,), "right": (N, 1.0)})
        assert isinstance(mapped_by(found), Mapping)
        assert (found[0], found[-1]) == (1.0, 2 * N - 1)
    assert client.call("halves", {"left": (N,), "right": (N,), "add": (np.full(N, 5.0),)})[0] == 5.0


def test_any_of_leaves_nothing_of_the_losers(client: cb.Client, shelf: Shelf) -> None:
    for _ in range(5):
        assert client.call("first", {"left": (N,), "right": (N,)})[-1] == N - 1


def test_future_passed_on_carries_a_large_result(client: cb.Client, shelf: Shelf) -> None:
    assert client.call("total", client.spawn("ramp", N)) == (N * (N - 1) / 2, False)


def test_call_with_an_id_returns_the_same_large_result_again(client: cb.Client, shelf: Shelf) -> None:
    calls = client.options(id="large-1")
    first, again = calls.call("ramp", N, 3.0), calls.call("ramp", N, 9.0)
    assert (first[0], again[0]) == (3.0, 3.0)


def test_coroutine_functions_take_and_give_large_values(client: cb.Client, shelf: Shelf) -> None:
    found = cb.gather(*(client.spawn("ramp_later", N) for _ in range(5)))
    assert all(isinstance(mapped_by(array), Mapping) for array in found)
    assert client.call("total_later", np.ones(N)) == (N, False)
    calls = client.options(id="large-2")
    assert [calls.call("ramp_later", n)[-1] for n in (N, 2)] == [N - 1, N - 1]


def test_cancelled_calls_leave_nothing(client: cb.Client, shelf: Shelf, post: Post) -> None:
    with every_executor_held(client, post):
        waiting = [client.spawn("total", np.ones(N)) for _ in range(4)]
        assert len(names(shelf)) == 4
        for future in waiting:
            future.cancel()
        assert names(shelf) == []


def test_executor_that_is_killed_leaves_nothing_and_the_call_is_repeated(
    client: cb.Client, shelf: Shelf, post: Post
) -> None:
    os.mkfifo(f"{post.address}.ready")
    future = client.spawn("make_and_wait", post.address, N)
    os.kill(int(post.wait()[1]), signal.SIGKILL)
    post.wait()
    with open(f"{post.address}.ready", "wb"):
        pass
    assert future.result().sum() == N
    assert future.attempts == 2
    del future
    gc.collect()
    assert names(shelf) == []


def test_client_that_is_killed_leaves_nothing(client: cb.Client, shelf: Shelf) -> None:
    program = f"""
import sys, cloudburst as cb
futures = [cb.spawn("ramp", {N}) for _ in range(5)]
cb.wait(futures)
kept = futures[0].result()
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        assert len(names(shelf)) == 4
        assert shelf.bytes > 4 * 8 * N
        other.kill()
    while any(pid == other.pid for pid in client.status()["clients"]):
        pass  # each look is an answer of the node, which hears of the end in between
    assert names(shelf) == []
    assert shelf.bytes == sum((shelf.path / name).stat().st_size for name in shelf.names())


def test_value_of_300_mb_goes_both_ways(client: cb.Client, shelf: Shelf) -> None:
    array = np.arange(300_000_000, dtype=np.uint8)
    assert client.call("total", array)[1] is False
    found = client.call("add", array)
    assert isinstance(mapped_by(found), Mapping)
    assert found.nbytes == array.nbytes
    assert found[-1] == array[-1]


def test_node_that_ends_takes_its_segments_along(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDBURST_DIR", str(directory / "n"))
    monkeypatch.setenv("ANNA_DIR", str(directory / "s"))
    from cloudburst import local
    from cloudburst.membership import Membership

    client = Client(lambda: Membership(local.ensure(executors=1)))
    client.register(ramp)
    future = client.spawn("ramp", N)
    cb.wait([future])
    home = home_of(directory / "n")
    assert home.exists()
    pid = client.status()["pid"]
    client.close()
    wait_until_gone(pid)
    assert not home.exists()
    assert future.result()[-1] == N - 1  # it was mapped as the client left


def test_what_reading_segments_raises_is_not_taken_for_the_functions_own(shelf: Shelf) -> None:
    """A call that could not be given its arguments had raised nothing, and may be begun again."""
    for opened in (open_segment, lambda data: open_anywhere(shelf, data)):
        with pytest.raises(cb.ProtocolError) as caught:
            opened(b"no descriptor")
        files = {str(entry.frame.code.path) for entry in caught.traceback} - {__file__}
        assert files
        assert files <= OURS
