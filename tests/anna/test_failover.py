"""Clients of two nodes with two copies of each key, while workers are stopped and killed: real processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import anna
from anna import Client
from anna.config import EPOCH_US
from anna.messages import DEAD
from tests.anna.conftest import RunningWorkers, running_workers

PATIENCE_S = 20.0
LATE_S = 0.5
"""By how much a call may miss its deadline."""


@pytest.fixture
def kvs(two_nodes: RunningWorkers) -> Iterator[Client]:
    with Client([two_nodes.unix(0), two_nodes.unix(1)]) as client:
        yield client


def key_at(kvs: Client, place: int, prefix: str = "k") -> str:
    """Return a key whose home is the worker at `place`."""
    return next(key for key in (f"{prefix}{n}" for n in range(1000)) if kvs.where(key)["place"] == place)


def until_stable(kvs: Client, stamp: int) -> None:
    """Wait until all workers know that all up to `stamp` is on all replicas, as they do while there is work."""
    deadline = time.monotonic() + PATIENCE_S
    work = [key_at(kvs, place, "work") for place in (0, 1)]
    while any(worker["stable"] < (stamp >> 10) // EPOCH_US for worker in kvs.status()):
        assert time.monotonic() < deadline, "the stable epoch does not come"
        for key in work:
            kvs.put(key, 0, ack="memory")
        time.sleep(0.005)


def took(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call gives or raises, and how long it took."""
    began = time.monotonic()
    try:
        result = call()
    except anna.AnnaError as error:
        result = error
    return result, time.monotonic() - began


def test_an_ack_says_how_many_copies_there_are(kvs: Client, two_nodes: RunningWorkers) -> None:
    """D12: writes were acknowledged without a word about how safe they were."""
    assert kvs.put("k", 1).replicas == 2
    assert kvs.put("k", 2, ack="memory").replicas == 1
    assert kvs.put("k", 3, ack=2).replicas == 2
    assert kvs.mput({f"m{n}": n for n in range(50)}, ack=2).replicas == 2
    with kvs.pipeline(ack="memory") as p:
        p.put("k", 4).delete("k")
    assert (p.results[0].replicas, p.results[1]) == (1, True)
    with Client([two_nodes.unix()], ack="memory") as relaxed:
        assert relaxed.put("k", 5).replicas == 1
        assert relaxed.put("k", 6, ack=2).replicas == 2
        assert relaxed.mput({"k": 7}).replicas == 1
    for call in (lambda: kvs.put("k", 1, ack=3), lambda: kvs.delete("k", ack=3), lambda: kvs.mput({"k": 1}, ack=3)):
        with pytest.raises(anna.UnavailableError, match="ack=3 asks for 3 copies; the key has 2 owners") as caught:
            call()
        assert caught.value.definite


@pytest.mark.parametrize("way", ["stopped", "refused"])
def test_reads_go_on_at_the_other_owner(kvs: Client, two_nodes: RunningWorkers, way: str) -> None:
    """D39: a client waited for ever for a worker that was gone."""
    keys = [key_at(kvs, place, prefix) for place in (0, 1) for prefix in "ab"]
    values = [key.upper() for key in keys]
    kvs.mput(dict(zip(keys, values)))
    with Client([two_nodes.unix(1)]) as reader:
        assert reader.mget(keys) == values
        until_stable(kvs, max(reader.stamp, kvs.stamp))
        if way == "stopped":
            os.kill(two_nodes.pids[0], signal.SIGSTOP)
        else:
            two_nodes.vanish(0)
        assert [reader.get(key) for key in keys] == values
        assert reader.mget(keys) == values
        with reader.pipeline() as p:
            for key in keys:
                p.get(key)
        assert p.results == values


def test_each_kind_of_read_finds_the_other_owner_by_itself(kvs: Client, two_nodes: RunningWorkers) -> None:
    key = key_at(kvs, 0)
    kvs.put(key, "v")
    until_stable(kvs, kvs.stamp)
    os.kill(two_nodes.pids[0], signal.SIGSTOP)
    for call in (
        lambda c: c.get(key),
        lambda c: c.mget([key, "nothing"])[0],
        lambda c: c.pipeline().get(key).execute()[0],
        lambda c: next(c.watch(key)),
        lambda c: c.get_lattice(key).value,
    ):
        with Client([two_nodes.unix(1)], timeout=0.8) as fresh:
            result, seconds = took(lambda: call(fresh))  # noqa: B023
        assert result == "v"
        assert seconds < 0.8 + LATE_S


def test_a_stopped_home_is_waited_for_once_and_not_by_each_read(kvs: Client, two_nodes: RunningWorkers) -> None:
    key = key_at(kvs, 0)
    until_stable(kvs, kvs.put(key, "v").stamp)
    os.kill(two_nodes.pids[0], signal.SIGSTOP)
    with Client([two_nodes.unix(1)]) as reader:
        assert reader.get(key, timeout=0.2) == "v"
        _, seconds = took(lambda: [reader.get(key, timeout=10) for _ in range(50)])
        assert seconds < 1


def test_every_call_ends_by_its_deadline_when_all_owners_are_stopped(two_nodes: RunningWorkers, kvs: Client) -> None:
    """D39, P10: no call had a time-out."""
    kvs.put("k", 1)
    for pid in two_nodes.pids:
        os.kill(pid, signal.SIGSTOP)
    for call in (
        lambda: kvs.get("k", timeout=0.3),
        lambda: kvs.put("k", 2, timeout=0.3),
        lambda: kvs.delete("k", timeout=0.3),
        lambda: kvs.mget(["k", "l"], timeout=0.3),
        lambda: kvs.mput({"k": 1, "l": 2}, timeout=0.3),
        lambda: kvs.pipeline(timeout=0.3).get("k").execute(),
        lambda: kvs.pipeline(timeout=0.3).put("k", 1).execute(),
        lambda: list(kvs.scan(timeout=0.3)),
        lambda: Client([two_nodes.unix(0), two_nodes.unix(1)], timeout=0.3),
    ):
        result, seconds = took(call)
        assert isinstance(result, anna.UnavailableError), result
        assert seconds < 0.3 + LATE_S
    assert took(lambda: list(kvs.watch("k", timeout=0.3)))[1] < 0.3 + LATE_S


def test_a_write_that_cannot_have_been_sent_goes_to_the_next_owner(kvs: Client, two_nodes: RunningWorkers) -> None:
    keys = {key_at(kvs, place): place for place in (0, 1)}
    two_nodes.vanish(0)
    assert [kvs.put(key, 1, ack="memory").replicas for key in keys] == [1, 1]
    assert kvs.mput(dict.fromkeys(keys, 2), ack="memory").replicas == 1
    with kvs.pipeline(ack="memory") as p:
        for key in keys:
            p.put(key, 3)
    assert [ack.replicas for ack in p.results] == [1, 1]
    assert kvs.delete(next(iter(keys)), ack="memory") is True


def test_a_write_that_may_have_been_sent_is_indefinite_and_is_not_sent_again(
    kvs: Client, two_nodes: RunningWorkers
) -> None:
    key = key_at(kvs, 0)
    kvs.put(key, anna.Counter(0))
    os.kill(two_nodes.pids[0], signal.SIGSTOP)
    calls = (
        lambda: kvs.put(key, anna.Counter(+1), timeout=0.2),
        lambda: kvs.mput({key: anna.Counter(+1)}, timeout=0.2),
        lambda: kvs.pipeline(timeout=0.2).put(key, anna.Counter(+1)).execute(),
    )
    for call in calls:
        result, _ = took(call)
        assert isinstance(result, anna.RequestTimeout)
        assert not result.definite
    os.kill(two_nodes.pids[0], signal.SIGCONT)
    deadline = time.monotonic() + PATIENCE_S
    while kvs.get(key) != len(calls):
        assert time.monotonic() < deadline
    assert kvs.get(key) == len(calls)


def test_what_was_seen_is_never_unseen_when_its_home_is_gone(kvs: Client, two_nodes: RunningWorkers) -> None:
    """P6: served, or StaleReplica, which is definite; never the older value."""
    key = key_at(kvs, 0)
    until_stable(kvs, kvs.put(key, "old").stamp)
    os.kill(two_nodes.pids[1], signal.SIGSTOP)
    kvs.put(key, "new", ack="memory")
    two_nodes.vanish(0)
    os.kill(two_nodes.pids[1], signal.SIGCONT)
    for call in (
        lambda: kvs.get(key, timeout=0.3),
        lambda: kvs.mget([key], timeout=0.3),
        lambda: kvs.pipeline(timeout=0.3).get(key).execute(),
    ):
        result, seconds = took(call)
        assert isinstance(result, anna.StaleReplica), result
        assert result.definite
        assert seconds < 0.3 + LATE_S
    # What only the other owner was ever asked for is served all the while.
    mine = key_at(kvs, 1)
    kvs.put(mine, "here", ack="memory")
    assert kvs.get(mine) == "here"


def test_reads_are_served_again_when_membership_has_dropped_the_dead_node(
    kvs: Client, two_nodes: RunningWorkers
) -> None:
    key = key_at(kvs, 0)
    kvs.put(key, "new", ack=2)
    two_nodes.vanish(0)
    view = two_nodes.view
    two_nodes.tell(1, view.with_node(replace(view.nodes[0], status=DEAD)))
    assert kvs.get(key, timeout=PATIENCE_S) == "new"
    assert kvs.put(key, "newer").replicas == 1
    assert [kvs.get(key) for _ in range(3)] == ["newer"] * 3


def test_a_client_that_was_asleep_takes_the_view_of_those_that_are_left(two_nodes: RunningWorkers) -> None:
    """D39: keys that had moved were answered with None for ever."""
    with Client([two_nodes.unix(0)]) as kvs:
        key = key_at(kvs, 0)
        kvs.put(key, 1, ack=2)
        two_nodes.vanish(0)
        view = two_nodes.view
        two_nodes.tell(1, view.with_node(replace(view.nodes[0], status=DEAD)))
        deadline = time.monotonic() + PATIENCE_S
        while kvs.view.nodes[0].status != DEAD:
            assert kvs.get(key, timeout=PATIENCE_S) == 1
            assert time.monotonic() < deadline


def test_sessions_of_threads_never_go_back_while_owners_are_stopped_in_turn(two_nodes: RunningWorkers) -> None:
    """P6: each thread's counter only rises, as it wrote it, through pauses of either owner."""
    failures: list[str] = []
    served = [0]

    def session(number: int) -> None:
        key, written = f"session {number}", 0
        with Client([two_nodes.unix(0), two_nodes.unix(1)], timeout=1.0) as kvs:
            for value in range(1, 400):
                try:
                    kvs.put(key, value, ack="memory", timeout=0.3)
                    written = value
                except anna.UnavailableError as error:
                    if not error.definite:
                        written = max(written, 0)
                try:
                    got = kvs.get(key, 0)
                except anna.UnavailableError:
                    continue
                served[0] += 1
                if got < written:
                    failures.append(f"{key}: read {got} after {written} was written")

    threads = [threading.Thread(target=session, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    turn = 0
    while any(thread.is_alive() for thread in threads):
        pid = two_nodes.pids[turn % 2]
        os.kill(pid, signal.SIGSTOP)
        threads[turn % 4].join(0.05)
        os.kill(pid, signal.SIGCONT)
        threads[turn % 4].join(0.05)
        turn += 1
    assert failures == []
    assert served[0] > 400


def test_one_connection_to_each_worker_carries_a_process_of_many_calls(two_nodes: RunningWorkers) -> None:
    """D41: fixed inbound ports allowed 40 to 50 clients on a host."""
    clients = [Client([two_nodes.unix(number % 2)]) for number in range(120)]
    try:
        for number, client in enumerate(clients):
            client.put(f"k{number}", number, ack="memory")
            assert client.get(f"k{number}") == number
    finally:
        for client in clients:
            client.close()


def test_scans_and_watches_go_on_with_a_node_less(kvs: Client, two_nodes: RunningWorkers) -> None:
    keys = [f"user:{n:02}" for n in range(30)]
    kvs.mput(dict.fromkeys(keys, 1))
    until_stable(kvs, kvs.stamp)
    assert list(kvs.scan("user:")) == keys
    watch = kvs.watch(keys[0], timeout=PATIENCE_S)
    assert next(watch) == 1
    home = kvs.where(keys[0])["place"]
    two_nodes.vanish(home)
    assert list(kvs.scan("user:")) == keys
    view = two_nodes.view
    two_nodes.tell(1 - home, view.with_node(replace(view.nodes[home], status=DEAD)))
    kvs.put(keys[0], 2, ack="memory")
    assert next(watch) == 2
    watch.close()


@pytest.fixture
def six_workers() -> Iterator[RunningWorkers]:
    with running_workers(2, nodes=3, factor=2) as cluster:
        yield cluster


def test_a_scan_names_each_key_once_in_order_over_all_workers(six_workers: RunningWorkers) -> None:
    with Client([six_workers.unix()]) as kvs:
        keys = sorted(f"user:{n}" for n in range(3000))
        kvs.mput(dict.fromkeys(keys, 1) | {"other": 1}, ack="memory")
        kvs.put(b"user:\xff", 1)
        assert list(kvs.scan("user:")) == [*keys, b"user:\xff"]
        assert list(kvs.scan("user:", 1700)) == keys[:1700]
        assert list(kvs.scan(b"user:29")) == [key for key in keys if key.startswith("user:29")]
        assert list(kvs.scan(limit=0)) == []
        assert len(list(kvs.scan())) == 3002
        assert list(kvs.scan("nothing")) == []
        with pytest.raises(ValueError, match="limit is -1"):
            list(kvs.scan(limit=-1))
