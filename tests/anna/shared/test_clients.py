"""The blocking client through shared memory, against real workers: nobody can tell it from a socket."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from anna import Client, Counter, Set
from anna.config import RING_BYTES, RINGS_AFTER_REQUESTS
from anna.errors import ConnectionLost, RequestTimeout, UnavailableError
from tests.anna.conftest import RunningWorkers, running_workers
from tests.anna.local.processes import eventually
from tests.anna.shared.conftest import Count
from tests.anna.shared.peer import PATIENCE_S, descriptors, mappings


def warm(client: Client) -> None:
    """Let a client use the stream in its pool until it has shared memory."""
    before = mappings(os.getpid())
    for _ in range(RINGS_AFTER_REQUESTS + 2):
        client.get("nothing", None)
    assert mappings(os.getpid()) == before + 1


@pytest.fixture
def kvs(one_worker: RunningWorkers) -> Iterator[Client]:
    with Client([one_worker.unix()]) as client:
        warm(client)
        yield client


def test_memory_is_shared_after_some_requests_and_no_sooner(one_worker: RunningWorkers, shared: Count) -> None:
    with Client([one_worker.unix()]) as client:
        for number in range(RINGS_AFTER_REQUESTS + 1):
            client.put("k", number)
        assert shared(os.getpid()) == shared(one_worker.pids[0]) == 0
        assert client.get("k") == RINGS_AFTER_REQUESTS
        assert shared(os.getpid()) == shared(one_worker.pids[0]) == 1


SIZES = [0, 1, 1000, 16_383, 16_384, 32_768, 65_536, RING_BYTES - 30, RING_BYTES, RING_BYTES + 1, 1 << 20, 5_000_003]


@pytest.mark.parametrize("size", SIZES)
def test_values_of_every_size_come_back_whole(kvs: Client, size: int) -> None:
    value, text = os.urandom(size), "é" * (size // 2)
    kvs.put("value", value)
    kvs.put("text", text)
    assert (kvs.get("value"), kvs.get("text")) == (value, text)
    assert kvs.mget(["value", "text"]) == [value, text]
    with kvs.pipeline() as p:
        p.put("again", value).get("again").get("text")
    assert p.results[1:] == [value, text]
    kvs.mput({"a": value, "b": text})
    assert kvs.mget(["a", "b", "c"]) == [value, text, None]
    assert kvs.get_lattice("value").value == value


def test_messages_of_all_lengths_go_round_the_rings_many_times(kvs: Client) -> None:
    """Lengths that have no divisor in common with the ring, so that a message crosses its end at ever other places."""
    total = 0
    for number in range(2000):
        value = bytes([number % 251]) * (1 + number * 37 % 1009)
        kvs.put("k", value)
        assert kvs.get("k") == value
        total += len(value)
    assert total > 3 * RING_BYTES


def test_lattices_deletes_and_errors_are_as_they_are_by_socket(kvs: Client) -> None:
    kvs.put("set", Set({"a"}))
    kvs.put("set", Set({"b"}))
    kvs.put("counter", Counter(3))
    assert kvs.get("set") == {"a", "b"}
    assert kvs.get("counter") == 3
    with pytest.raises(TypeError, match="holds a Set"):
        kvs.put("set", "text")
    assert kvs.delete("set")
    with pytest.raises(KeyError):
        kvs.get("set")


def test_a_pipeline_of_much_more_than_a_ring_is_answered_in_order(kvs: Client) -> None:
    values = [os.urandom(20_000) for _ in range(200)]
    with kvs.pipeline() as p:
        for number, value in enumerate(values):
            p.put(f"k{number}", value)
    with kvs.pipeline() as p:
        for number in range(200):
            p.get(f"k{number}")
    assert p.results == values
    assert kvs.mget([f"k{number}" for number in range(200)]) == values


def test_threads_have_rings_of_their_own(one_worker: RunningWorkers, shared: Count) -> None:
    failures: list[object] = []
    with Client([one_worker.unix()], timeout=PATIENCE_S) as client:
        barrier = threading.Barrier(8)

        def work(thread: int) -> None:
            try:
                barrier.wait()
                for number in range(400):
                    value = bytes([thread]) * (number * 331 % 20_000)
                    client.put(f"k{thread}", value)
                    assert client.get(f"k{thread}") == value
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert shared(os.getpid()) > 1
    assert shared(os.getpid()) == 0


def test_a_child_after_a_fork_leaves_its_parents_rings_alone(kvs: Client) -> None:
    kvs.put("k", "parent")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number in range(200):
                kvs.put("child", number)
                assert kvs.get("child") == number
                assert kvs.get("k") == "parent"
            code = 0
        finally:
            os._exit(code)
    for number in range(2000):
        kvs.put("k2", number)
        assert kvs.get("k2") == number
    assert os.waitpid(pid, 0)[1] == 0
    assert kvs.get("child") == 199


def test_a_stopped_worker_does_not_hold_a_call_past_its_deadline(one_worker: RunningWorkers, kvs: Client) -> None:
    kvs.put("k", 1)
    os.kill(one_worker.pids[0], signal.SIGSTOP)
    try:
        for call in (
            lambda: kvs.put("k", 2, timeout=0.05),
            lambda: kvs.get("k", timeout=0.05),
            lambda: kvs.put("k", bytes(4 * RING_BYTES), timeout=0.05),
        ):
            with pytest.raises((RequestTimeout, UnavailableError)):
                call()
    finally:
        os.kill(one_worker.pids[0], signal.SIGCONT)
    assert kvs.get("k", timeout=PATIENCE_S) in (1, 2)


@pytest.mark.parametrize("size", [3, 4 * RING_BYTES])
def test_a_worker_that_is_killed_is_noticed_by_who_waits_for_it(
    one_worker: RunningWorkers, kvs: Client, size: int
) -> None:
    os.kill(one_worker.pids[0], signal.SIGSTOP)
    outcome: list[object] = []

    def ask() -> None:
        try:
            outcome.append(kvs.put("k", bytes(size), timeout=10 * PATIENCE_S))
        except Exception as error:
            outcome.append(error)

    waiting = threading.Thread(target=ask)
    waiting.start()
    one_worker.kill(0)
    waiting.join(PATIENCE_S)
    assert [type(found) for found in outcome] == [ConnectionLost]


def test_a_worker_that_comes_back_is_used_again_through_new_memory(
    one_worker: RunningWorkers, kvs: Client, shared: Count
) -> None:
    one_worker.kill(0)
    one_worker.start(0)
    kvs.get("k", None, timeout=PATIENCE_S)
    assert shared(os.getpid()) == 0
    eventually(lambda: kvs.get("k", None) is None and shared(os.getpid()) == 1, "no memory is shared")


def test_nothing_is_left_of_a_client_that_closes_or_is_killed(one_worker: RunningWorkers, shared: Count) -> None:
    worker, own = one_worker.pids[0], os.getpid()
    with Client([one_worker.unix()]) as client:
        client.get("k", None)
        before = descriptors(worker) - 1, descriptors(own) - 1
    for _ in range(5):
        with Client([one_worker.unix()]) as client:
            warm(client)
    pid = os.fork()
    if pid == 0:
        client = Client([one_worker.unix()])
        warm(client)
        os.kill(os.getpid(), signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    try:
        assert shared(worker) == 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    eventually(lambda: shared(worker) == 0, "the worker keeps memory")
    eventually(lambda: (descriptors(worker), descriptors(own)) == before, "descriptors are left over")
    assert shared(own) == 0


def test_a_write_that_waits_for_copies_is_answered_through_the_rings(shared: Count) -> None:
    with running_workers(1, nodes=2, factor=2) as cluster, Client([cluster.unix(0), cluster.unix(1)]) as client:
        for number in range(200):
            assert client.put(f"k{number}", number, ack=2).replicas == 2
        assert shared(cluster.pids[0]) == 1


@pytest.mark.parametrize("who", ["client", "worker"])
def test_either_side_does_without_rings_when_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, who: str, shared: Count
) -> None:
    if who == "worker":
        monkeypatch.setenv("ANNA_RINGS", "0")
    with running_workers(1) as cluster:
        monkeypatch.setenv("ANNA_RINGS", "0" if who == "client" else "1")
        with Client([cluster.unix()]) as client:
            for number in range(3 * RINGS_AFTER_REQUESTS):
                client.put("k", number)
            assert client.get("k") == 3 * RINGS_AFTER_REQUESTS - 1
            assert shared(os.getpid()) == shared(cluster.pids[0]) == 0
            (figures,) = client.status()
            assert figures["refused"] == (1 if who == "worker" else 0)
