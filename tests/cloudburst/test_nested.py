"""Functions that call functions: no deadlock, whatever the depth, and bounded."""

from __future__ import annotations

import pytest

import cloudburst as cb
from tests.cloudburst import samples
from tests.cloudburst.conftest import Post, wait_until_gone


def test_function_calls_a_function(client: cb.Client) -> None:
    assert client.call("descend", 1) == 1


def test_calls_nest_far_deeper_than_there_are_executors(client: cb.Client) -> None:
    assert len(client.status()["executors"]) >= 2
    assert client.call("descend", 25) == 25
    assert client.call("descend", 25) == 25


def test_many_nested_calls_at_once_all_end(client: cb.Client) -> None:
    """Every executor's call waits for another, from several callers at once."""
    assert [f.result(timeout=60) for f in [client.spawn("descend", 3) for _ in range(30)]] == [3] * 30


def test_function_spawns_and_gathers(client: cb.Client) -> None:
    expected = sum(n * n for n in range(100))
    assert [f.result(timeout=60) for f in [client.spawn("fan_out", 100) for _ in range(4)]] == [expected] * 4


def test_exception_of_a_nested_call_keeps_its_type(client: cb.Client) -> None:
    with pytest.raises(ValueError, match="bad") as caught:
        client.call("nested_failure")
    assert isinstance(caught.value, cb.FunctionError)
    assert "in nested_failure" in caught.value.remote_traceback
    assert "in fail" in caught.value.remote_traceback


def test_nested_calls_from_threads_of_a_function_end(client: cb.Client) -> None:
    def threaded() -> list[int]:
        import threading

        found: list[int] = []
        threads = [threading.Thread(target=lambda n=n: found.append(cb.call("square", n))) for n in range(4)]  # type: ignore[misc]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(found)

    client.register(threaded)
    assert [f.result(timeout=60) for f in [client.spawn("threaded") for _ in range(4)]] == [[0, 1, 4, 9]] * 4


def test_cancelling_a_call_stops_what_it_waits_for(client: cb.Client, post: Post) -> None:
    def outer(address: str) -> None:
        cb.call("hold", address)

    client.register(outer)
    future = client.spawn("outer", post.address)
    assert post.wait()[0] == "begun"
    future.cancel()
    assert post.wait() == ["stopped", "Interrupted"]


def test_waiting_executor_hands_back_what_waited_behind_it(client: cb.Client, post: Post) -> None:
    """Both executors' calls wait for nested ones that are held; other calls are run by stand-ins meanwhile."""

    def outer(address: str) -> None:
        cb.call("hold", address)

    client.register(outer)
    outers = [client.spawn("outer", post.address) for _ in range(3)]
    for _ in outers:
        assert post.wait()[0] == "begun"
    assert [f.result(timeout=20) for f in [client.spawn("square", n) for n in range(50)]][-1] == 49 * 49
    assert client.call("square", 7) == 49
    for future in outers:
        future.cancel()
        assert post.wait()[0] == "stopped"


def test_functions_can_register_list_and_delete(client: cb.Client) -> None:
    def gardener() -> tuple[int, bool]:
        cb.register(lambda: 42, name="planted")
        found = cb.call("planted")
        listed = "planted" in {one["name"] for one in cb.functions()}
        cb.delete("planted")
        return found, listed

    client.register(gardener)
    assert client.call("gardener") == (42, True)


def test_process_forked_by_a_function_holds_none_of_its_connections_and_ends_with_it(
    client: cb.Client, post: Post
) -> None:
    """The executor is killed while a child of it lives: its caller hears of it at once, and the child is not left."""

    def forks(address: str) -> None:
        import os
        import signal

        reader, writer = os.pipe()
        if os.fork() == 0:
            samples.tell(address, "child", os.getpid())
            os.write(writer, b"told")
            signal.pause()
        os.read(reader, 4)
        os.kill(os.getpid(), signal.SIGKILL)

    client.register(forks)
    with pytest.raises(cb.ExecutorLost, match="SIGKILL"):
        client.options(timeout=10, retries=0).call("forks", post.address)
    wait_until_gone(int(post.wait()[1]))


def test_process_forked_by_a_function_is_an_ordinary_client_of_the_node(client: cb.Client) -> None:
    def forks_and_calls() -> bytes:
        import os

        assert cb.call("square", 2) == 4
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, b"%d" % cb.call("square", 3))
            os._exit(0)
        said = os.read(reader, 10)
        os.wait()
        return said

    client.register(forks_and_calls)
    assert client.call("forks_and_calls") == b"9"


def test_samples_have_names_of_their_own() -> None:
    names = [function.__name__ for function in samples.ALL]
    assert len(names) == len(set(names))
