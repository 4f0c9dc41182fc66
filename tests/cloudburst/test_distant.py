"""Large values between two hosts: they stay where they were made, move in chunks when wanted, and leave nothing.

The hosts are nodes that reach each other by TCP on one machine, and are told by CLOUDBURST_HOST that they share no
memory. Each has one executor; a test has its calls run at one of them by holding the other's.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cloudburst as cb
from cloudburst.segments.distant import Distant
from cloudburst.segments.shelf import home_of
from tests.cloudburst.conftest import Post
from tests.cloudburst.samples import hold
from tests.cloudburst.test_far_nodes import Program, Start, start
from tests.cloudburst.test_gateways import Enter, gateway
from tests.cloudburst.test_nodes import WAIT_S

__all__ = ["gateway", "start"]

LARGE = 300_000_000
MIDDLE = 40_000_000
MIB = 1 << 20


def ones(n: int) -> tuple[str, Any]:
    """Say where this ran, and return a large array."""
    import numpy

    return os.environ["CLOUDBURST_HOST"], numpy.ones(n, dtype=numpy.uint8)


def last(array: Any) -> tuple[str, int, int]:
    return os.environ["CLOUDBURST_HOST"], len(array), int(array[-1])


def last_of(pair: tuple[str, Any]) -> tuple[str, str, int, int]:
    return (pair[0], *last(pair[1]))


def both(*pairs: tuple[str, Any]) -> tuple[list[str], int]:
    return [place for place, _ in pairs], sum(len(array) for _, array in pairs)


def pid_of() -> int:
    return os.getpid()


def nothing() -> str:
    return os.environ["CLOUDBURST_HOST"]


FUNCTIONS: tuple[Callable[..., Any], ...] = (ones, last, last_of, both, pid_of, nothing, hold)


class Hosts:
    """Two nodes, and a client of the first."""

    def __init__(self, first: Program, second: Program, post: Post) -> None:
        self.first, self.second, self.post, self.address = first, second, post, ""
        self.client = first.client()
        for function in FUNCTIONS:
            self.client.register(function)
        self.client.dag("chain", {"last": []})
        self.client.dag("pair", {"left": [], "right": [], "both": ["left", "right"]},
                        functions={"left": "ones", "right": "ones"})  # fmt: skip

    @contextmanager
    def only(self, name: str) -> Iterator[None]:
        """Within this block every call runs at one of the nodes."""
        held = []
        try:
            while True:
                held.append(self.client.options(retries=0).spawn("hold", self.post.address))
                pid = int(self.post.wait()[1])
                if (pid in pids_below(self.first)) != (name == "a"):
                    break
            if len(held) > 1:
                self.stop(held.pop(0))
            yield
        finally:
            for one in held:
                self.stop(one)

    def stop(self, held: cb.Future) -> None:
        if held.cancel():
            assert self.post.wait()[0] == "stopped"

    def porter(self, of: Program) -> int:
        with of.client() as client:
            return until(lambda: int(client.status()["porter_pid"]))

    def close(self) -> None:
        self.client.close()


@pytest.fixture
def hosts(start: Start, post: Post) -> Iterator[Hosts]:
    first = start("a", "--listen", "tcp://127.0.0.1:0", "--factor", "2")
    address = first.read_until(r"--join (tcp://127\.0\.0\.1:\d+) --secret")
    second = start("b", "--join", address, "--secret", f"{first.directory}/secret", "--listen", "tcp://127.0.0.1:0")
    with first.client() as client:
        until(lambda: any(one["executors"] for one in client.status()["nodes"]))
    made = Hosts(first, second, post)
    made.address = address
    yield made
    made.close()
    homes = [home_of(one.directory) for one in (made.first, made.second)]
    for one in (made.first, made.second):
        if one.process.poll() is None:
            one.stop(signal.SIGKILL)
    until(lambda: not any(home.exists() for home in homes))


def pids_below(program: Program) -> list[int]:
    """The executors of a node."""
    with program.client() as client:
        return [one["pid"] for one in client.status()["executors"]]


def until(look: Callable[[], Any]) -> Any:
    """Return what `look` finds, once it finds something."""
    end = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def names(program: Program) -> list[str]:
    """The segments of a node that are of calls, whoever they belong to."""
    home = home_of(program.directory)
    found = [path for path in home.glob("*/*") if path.is_file() and path.parent.name not in ("0", "spill")]
    return sorted(f"{path.parent.name}/{path.name}" for path in found)


def await_nothing(*programs: Program) -> None:
    """Wait until nothing is left on nodes."""
    gc.collect()
    end = time.monotonic() + WAIT_S
    while left := [name for one in programs for name in names(one)]:
        assert time.monotonic() < end, left
        time.sleep(0.005)


def memory(pid: int, line: str) -> int:
    """A line of a process's account of its memory, in bytes."""
    found = [row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith(f"{line}:")]
    return int(found[0].split()[1]) * 1024


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Within this block a process does not run."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: stopped(pid))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # a test may have killed it
            os.kill(pid, signal.SIGCONT)


def test_result_stays_where_it_was_made_until_it_is_asked_for_and_comes_in_chunks(hosts: Hosts) -> None:
    with hosts.only("b"):
        future = hosts.client.spawn("ones", LARGE)
        cb.wait([future])
        assert [name.partition("/d")[1] for name in names(hosts.second)] == ["/d"]
        assert names(hosts.first) == []
        porters = [hosts.porter(one) for one in (hosts.first, hosts.second)]
        before = [memory(pid, "VmHWM") for pid in porters]
        own_before = memory(os.getpid(), "RssAnon")
        place, array = future.result()
        assert (place, len(array), int(array[-1]), array.flags.writeable) == ("b", LARGE, 1, False)
        grown = [memory(pid, "VmHWM") - size for pid, size in zip(porters, before, strict=True)]
        assert max(grown) < 16 * MIB, "neither side has had the value in its own memory"
        assert memory(os.getpid(), "RssAnon") - own_before < LARGE // 4
        assert future.result()[1] is not array
        assert np.shares_memory(future.result()[1], array)
    await_nothing(hosts.first, hosts.second)
    assert int(array.sum()) == LARGE


def test_argument_is_fetched_by_the_host_that_runs_the_call(hosts: Hosts) -> None:
    array = np.ones(LARGE, dtype=np.uint8)
    with hosts.only("b"):
        executor = hosts.client.call("pid_of")
        processes = [executor, *(hosts.porter(one) for one in (hosts.first, hosts.second))]
        before = [memory(pid, "VmHWM") for pid in processes]
        assert hosts.client.call("last", array) == ("b", LARGE, 1)
        assert hosts.client.spawn("last", array).result() == ("b", LARGE, 1)
        grown = [memory(pid, "VmHWM") - size for pid, size in zip(processes, before, strict=True)]
        assert max(grown) < 32 * MIB
    await_nothing(hosts.first, hosts.second)


def test_other_calls_of_the_same_executor_and_the_other_are_answered_while_a_value_is_on_its_way(hosts: Hosts) -> None:
    with hosts.only("b"):
        with paused(hosts.porter(hosts.first)):
            large = hosts.client.spawn("last", np.ones(LARGE, dtype=np.uint8))
            until(lambda: [name for name in names(hosts.second) if name.startswith("2/f")])
            assert hosts.client.call("nothing") == "b"
            assert [future.result() for future in [hosts.client.spawn("nothing") for _ in range(20)]] == ["b"] * 20
            assert not large.done()
        assert large.result() == ("b", LARGE, 1)


def test_other_calls_are_answered_while_a_result_is_fetched(hosts: Hosts) -> None:
    with hosts.only("b"):
        future = hosts.client.spawn("ones", LARGE)
        cb.wait([future])
        with paused(hosts.porter(hosts.second)):
            found: list[Any] = []
            thread = threading.Thread(target=lambda: found.append(future.result()))
            thread.start()
            until(lambda: [name for name in names(hosts.first) if name.startswith("2/f")])
            assert [hosts.client.call("nothing") for _ in range(20)] == ["b"] * 20
            assert not found
        thread.join()
        assert found[0][0] == "b"


def test_stages_on_two_hosts_pass_each_other_large_results(hosts: Hosts) -> None:
    for n in (MIDDLE, LARGE):
        places, size = hosts.client.call("pair", {"left": (n,), "right": (n,)})
        assert sorted(places) == ["a", "b"]
        assert size == 2 * n
        await_nothing(hosts.first, hosts.second)


def test_values_of_no_more_than_a_chunk_go_along_with_the_call(hosts: Hosts) -> None:
    with hosts.only("b"):
        future = hosts.client.spawn("ones", 500_000)
        cb.wait([future])
        assert names(hosts.first) == names(hosts.second) == []
        assert len(future.result()[1]) == 500_000
        assert hosts.client.call("last", np.ones(500_000)) == ("b", 500_000, 1)


@pytest.mark.parametrize(("made", "used"), ["ab", "ba", "bb"])
def test_future_that_is_an_argument_moves_its_value_from_host_to_host(hosts: Hosts, made: str, used: str) -> None:
    with hosts.only(made):
        future = hosts.client.spawn("ones", LARGE)
        cb.wait([future])
    with hosts.only(used):
        assert hosts.client.call("last_of", future) == (made, used, LARGE, 1)
        assert hosts.client.spawn("last_of", future).result() == (made, used, LARGE, 1)
    segment = future.outcome().segment
    assert isinstance(segment, Distant) == (made == "b")
    assert segment._data is None, "the client has not had it"
    assert len(future.result()[1]) == LARGE
    with hosts.only(used):
        assert hosts.client.call("last_of", future) == (made, used, LARGE, 1)
    del future, segment
    await_nothing(hosts.first, hosts.second)


def test_future_whose_value_was_taken_in_already_can_still_be_passed_on(hosts: Hosts) -> None:
    with hosts.only("b"):
        future = hosts.client.spawn("ones", MIDDLE)
        assert len(future.result()[1]) == MIDDLE
        await_nothing(hosts.first, hosts.second)
        assert hosts.client.call("last_of", future) == ("b", "b", MIDDLE, 1)


def test_result_that_nobody_asks_for_is_given_back(hosts: Hosts) -> None:
    with hosts.only("b"):
        futures = [hosts.client.spawn("ones", MIDDLE) for _ in range(3)]
        cb.wait(futures)
        assert len(names(hosts.second)) == 3
        del futures
        await_nothing(hosts.first, hosts.second)


def test_client_that_is_killed_leaves_nothing_on_other_hosts(hosts: Hosts) -> None:
    program = f"""
import sys, cloudburst as cb
futures = [cb.spawn("ones", {MIDDLE}) for _ in range(3)]
cb.wait(futures)
print("ready", flush=True)
sys.stdin.read()
"""
    environment = {**os.environ, "CLOUDBURST_DIR": str(hosts.first.directory)}
    with hosts.only("b"):
        with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env=environment) as other:  # fmt: skip
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            assert len(names(hosts.second)) == 3
            other.kill()
        await_nothing(hosts.first, hosts.second)


def test_cancelled_call_gives_up_what_is_on_its_way_to_it(hosts: Hosts) -> None:
    with hosts.only("b"), paused(hosts.porter(hosts.first)):
        future = hosts.client.spawn("last", np.ones(LARGE, dtype=np.uint8))
        until(lambda: [name for name in names(hosts.second) if name.startswith("2/f")])
        assert future.cancel()
        await_nothing(hosts.first, hosts.second)
        assert hosts.client.call("nothing") == "b"


def test_value_whose_holder_is_killed_before_anybody_asks_is_made_again(hosts: Hosts) -> None:
    with hosts.only("b"):
        future = hosts.client.spawn("ones", MIDDLE)
        never = hosts.client.options(retries=0).spawn("ones", MIDDLE)
        cb.wait([future, never])
    node = hosts.client.status()["nodes"][0]["node"]
    hosts.second.stop(signal.SIGKILL)
    assert future.result()[0] == "a"
    assert future.attempts == 2
    assert future.result()[0] == "a"
    what = r"the result of 'ones'.* \(40,000,\d+ bytes\)"
    where = rf"in the memory of node {node} at tcp:127\.0\.0\.1:\d+"
    with pytest.raises(cb.NodeLost, match=f"{what}, {where}, is lost: it cannot be fetched") as raised:
        never.result()
    assert (raised.value.definite, raised.value.attempts) == (False, 1)
    del future, never
    await_nothing(hosts.first)


@pytest.mark.parametrize("ask", ["call", "spawn"])
def test_value_whose_holder_is_killed_while_it_is_fetched_is_made_again(hosts: Hosts, ask: str) -> None:
    found: list[Any] = []
    with hosts.only("b"):
        porter = hosts.porter(hosts.second)
        with paused(porter):
            call = hosts.client.call if ask == "call" else lambda *what: hosts.client.spawn(*what).result()
            thread = threading.Thread(target=lambda: found.append(call("ones", LARGE)))
            thread.start()
            until(lambda: [name for name in names(hosts.first) if name.startswith("2/f")])
            hosts.second.stop(signal.SIGKILL)
    thread.join()
    assert found[0][0] == "a"
    found.clear()
    await_nothing(hosts.first)


@pytest.mark.parametrize("side", ["the one that fetches", "the one that gives"])
def test_porter_that_is_killed_while_it_moves_a_value_costs_nothing_but_time(hosts: Hosts, side: str) -> None:
    killed = hosts.first if side == "the one that fetches" else hosts.second
    with hosts.only("b"):
        futures = [hosts.client.spawn("ones", LARGE)]
        cb.wait(futures)
        pid, found = hosts.porter(killed), list[Any]()
        thread = threading.Thread(target=lambda: found.append(futures[0].result()))
        with paused(hosts.porter(hosts.second)):
            thread.start()
            until(lambda: [name for name in names(hosts.first) if name.startswith("2/f")])
            os.kill(pid, signal.SIGKILL)
        thread.join()
        assert (found[0][0], len(found[0][1]), int(found[0][1].sum()), futures[0].attempts) == ("b", LARGE, LARGE, 1)
        assert until(lambda: hosts.porter(killed)) != pid
        futures.clear()
        found.clear()
        await_nothing(hosts.first, hosts.second)


def test_client_of_a_node_that_cannot_be_reached_gives_and_gets_large_values(hosts: Hosts, gateway: Enter) -> None:
    hosts.first.said += f"--join {hosts.address} --secret"
    client = gateway(hosts.first)
    array = np.ones(LARGE, dtype=np.uint8)
    porters = [int(one.status()["porter_pid"]) for one in (client, hosts.client)]
    before = [memory(pid, "VmHWM") for pid in porters]
    for name in ("a", "b"):
        with hosts.only(name):
            assert client.call("last", array) == (name, LARGE, 1)
            assert client.spawn("last", array).result() == (name, LARGE, 1)
            place, found = client.call("ones", LARGE)
            assert (place, len(found), int(found[-1])) == (name, LARGE, 1)
    grown = [memory(pid, "VmHWM") - size for pid, size in zip(porters, before, strict=True)]
    assert max(grown) < 16 * MIB
    with pytest.raises(cb.ValueTooLarge, match="that cannot be fetched from here"):
        client.call("chain", {"last": (array,)})
    del found
    await_nothing(hosts.first, hosts.second)


def test_call_whose_result_is_not_here_before_its_deadline_times_out(hosts: Hosts) -> None:
    late = pytest.raises(cb.FunctionTimeout, match="was not here before its deadline")
    with hosts.only("b"), paused(hosts.porter(hosts.second)), late:
        hosts.client.options(timeout=1.5).call("ones", LARGE)
    await_nothing(hosts.first, hosts.second)


def test_graph_whose_stage_is_lost_with_its_result_is_begun_again(hosts: Hosts) -> None:
    found: list[Any] = []
    with paused(hosts.porter(hosts.second)):
        thread = threading.Thread(
            target=lambda: found.append(hosts.client.call("pair", {"left": (LARGE,), "right": (LARGE,)}))
        )
        thread.start()
        until(lambda: [name for name in names(hosts.second) if "/d" in name])
        hosts.second.stop(signal.SIGKILL)
    thread.join()
    assert found == [(["a", "a"], 2 * LARGE)]
    await_nothing(hosts.first)


def test_loop_is_not_held_up_by_a_value_that_is_fetched_for_it(hosts: Hosts) -> None:
    async def work() -> list[Any]:
        client = cb.aio.AsyncClient(hosts.client).options(timeout=WAIT_S)
        done = await client.spawn("ones", LARGE)
        await asyncio.to_thread(cb.wait, [done])
        porter = await asyncio.to_thread(hosts.porter, hosts.second)
        with paused(porter):
            waiting = [asyncio.ensure_future(client.call("ones", LARGE)), asyncio.ensure_future(client.gather(done))]
            while len([name for name in names(hosts.first) if name.startswith("2/f")]) < 2:
                assert await client.call("nothing") == "b"
            assert not any(one.done() for one in waiting)
        return [len((await waiting[0])[1]), len((await waiting[1])[0][1])]

    with hosts.only("b"):
        assert asyncio.run(work()) == [LARGE, LARGE]
    await_nothing(hosts.first, hosts.second)
