"""Executors that die, calls that never end: what the caller is told, and that all goes on (table C, P19, P22)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb
from tests.cloudburst import samples
from tests.cloudburst.conftest import WAIT_S, Post, every_executor_held, release, wait_until_gone

GONE = r"executor \d+ \(pid \d+\) ended by "


def test_killed_executor_is_reported_and_replaced_within_a_second(client: cb.Client, post: Post) -> None:
    future = client.options(retries=0).spawn("hold", post.address)
    pid = int(post.wait()[1])
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    how = r"signal 9 \(SIGKILL\) while it ran 'hold', in attempt 1 of 1"
    with pytest.raises(cb.ExecutorLost, match=GONE + how) as caught:
        future.result(timeout=WAIT_S)
    pids = {row["pid"] for row in client.status()["executors"] if row["slot"] < 2}
    assert len(pids) == 2
    assert pid not in pids
    assert time.monotonic() - killed_at < 1.0
    assert (caught.value.definite, caught.value.attempts) == (False, 1)
    assert client.call("square", 3) == 9


@pytest.mark.parametrize(
    ("how", "ending"),
    [("exit", r"exit\(7\)"), ("segfault", r"signal 11 \(SIGSEGV\)"), ("kill", r"signal 9 \(SIGKILL\)")],
)
def test_function_that_ends_its_executor_is_reported_with_its_last_words(
    client: cb.Client, post: Post, how: str, ending: str
) -> None:
    client.register(samples.end, name=f"end_{how}")
    with pytest.raises(cb.ExecutorLost, match=GONE + ending) as caught:
        client.options(retries=0).call(f"end_{how}", post.address, how)
    said = "Fatal Python error: Segmentation fault" if how == "segfault" else f"about to end by {how}"
    assert said in str(caught.value)
    wait_until_gone(int(post.wait()[1]))


def test_lost_executor_is_tried_again_and_the_call_succeeds(client: cb.Client, post: Post) -> None:
    own = post.address + "-own"
    future = client.spawn("hold_until_told", post.address, own)
    first = int(post.wait()[1])
    os.kill(first, signal.SIGKILL)
    assert int(post.wait()[1]) != first
    release(own, "again")
    assert future.result(timeout=WAIT_S) == "again"
    assert future.attempts == 2


def test_call_is_begun_at_most_three_times_when_executors_are_lost(client: cb.Client, post: Post) -> None:
    future = client.spawn("hold", post.address)
    for _ in range(3):
        os.kill(int(post.wait()[1]), signal.SIGKILL)
    with pytest.raises(cb.ExecutorLost, match="in attempt 3 of 3"):
        future.result(timeout=WAIT_S)
    client.register(samples.hold)  # the third loss of one call has poisoned it


def test_retries_repeat_also_the_users_exceptions(client: cb.Client, directory: Path) -> None:
    file = str(directory / "runs")

    def flaky(file: str) -> int:
        with open(file, "a+") as seen:
            seen.write("x")
            seen.flush()
            seen.seek(0)
            runs = len(seen.read())
        if runs < 3:
            raise OSError(f"run {runs}")
        return runs

    client.register(flaky)
    with pytest.raises(OSError, match="run 1"):
        client.call("flaky", file)
    future = client.options(retries=2).spawn("flaky", file)
    assert future.result(timeout=WAIT_S) == 3
    assert future.attempts == 2


def test_function_that_crashes_its_executors_is_refused_until_registered_anew(client: cb.Client, post: Post) -> None:
    client.register(samples.end, name="poison")
    good = [client.spawn("square", n) for n in range(200)]
    with pytest.raises(cb.ExecutorLost, match="'poison' is refused until it is registered anew"):
        client.call("poison", post.address, "exit")
    for _ in range(3):
        post.wait()
    version = client.functions()  # answered after the poison is stored
    assert any(one["poison"] for one in version)
    with pytest.raises(cb.ExecutorLost, match=r"ended its executor 3 times, the last time by exit\(7\)") as caught:
        client.call("poison", post.address, "exit")
    assert (caught.value.definite, caught.value.attempts) == (True, 0)
    assert [future.result(timeout=WAIT_S) for future in good] == [n * n for n in range(200)]
    client.register(samples.end, name="poison")
    with pytest.raises(cb.ExecutorLost, match="in attempt 1 of 1"):
        client.options(retries=0).call("poison", post.address, "exit")


def test_calls_waiting_behind_a_crash_are_run_once_by_another(client: cb.Client, post: Post, directory: Path) -> None:
    """What the dead executor had not begun is sent again, and what it had done is not."""
    file = str(directory / "lines")
    with every_executor_held(client, post) as held:
        futures = [client.options(retries=0).spawn("append_to", file, f"line {n}") for n in range(100)]
        for row in client.status()["executors"]:
            os.kill(row["pid"], signal.SIGKILL)
        for future in futures:
            future.result(timeout=WAIT_S)
        for future in held:
            assert isinstance(future.exception(timeout=WAIT_S), cb.ExecutorLost)
    lines = Path(file).read_text().splitlines()
    assert sorted(lines) == sorted({f"line {n}" for n in range(100)})
    assert {future.attempts for future in futures} == {1}


def test_endless_loop_is_stopped_at_its_deadline_and_the_executor_stays(client: cb.Client, post: Post) -> None:
    started = time.monotonic()
    with pytest.raises(cb.FunctionTimeout, match="'spin' was still running at its deadline and was stopped") as caught:
        client.options(timeout=0.3).call("spin", post.address)
    assert time.monotonic() - started < 0.3 + 0.5
    assert (caught.value.definite, caught.value.attempts) == (False, 1)
    assert isinstance(caught.value, TimeoutError)
    pid = int(post.wait()[1])
    assert client.call("square", 2) == 4
    assert pid in {row["pid"] for row in client.status()["executors"]}


@pytest.mark.parametrize("function", ["spin_in_c", "catch_everything"])
def test_function_that_cannot_be_interrupted_is_killed_from_outside(
    client: cb.Client, post: Post, function: str
) -> None:
    """A C loop that never lets go of the GIL, and Python code that catches whatever is raised in it."""
    started = time.monotonic()
    with pytest.raises(cb.FunctionTimeout):
        client.options(timeout=0.2).call(function, post.address)
    assert time.monotonic() - started < 0.2 + 0.5
    wait_until_gone(int(post.wait()[1]))
    assert time.monotonic() - started < 0.2 + 0.5 + 0.2 + 1.0
    assert client.call("square", 2) == 4


def test_killing_for_the_deadline_does_not_poison_the_function(client: cb.Client, post: Post) -> None:
    futures = [client.options(timeout=0.5).spawn("spin_in_c", post.address) for _ in range(2)]
    for _ in range(2):
        wait_until_gone(int(post.wait()[1]))
    with pytest.raises(cb.FunctionTimeout):
        client.options(timeout=0.5).call("spin_in_c", post.address)
    wait_until_gone(int(post.wait()[1]))
    assert {type(future.exception(timeout=WAIT_S)) for future in futures} == {cb.FunctionTimeout}
    assert client.call("square", 2) == 4
    assert {one["poison"] for one in client.functions() if one["name"] == "spin_in_c"} == {""}


def test_cancelled_function_that_cannot_be_interrupted_is_killed(client: cb.Client, post: Post) -> None:
    future = client.spawn("spin_in_c", post.address)
    pid = int(post.wait()[1])
    future.cancel()
    wait_until_gone(pid)
    assert client.call("square", 2) == 4


def test_deadline_counts_the_time_in_the_queue_and_nothing_was_begun(
    client: cb.Client, post: Post, directory: Path
) -> None:
    file = directory / "effect"
    with every_executor_held(client, post):
        late = client.options(timeout=0.2).spawn("append_to", str(file), "x")
        with pytest.raises(cb.FunctionTimeout, match="'append_to' was not begun before its deadline") as caught:
            client.options(timeout=0.2).call("append_to", str(file), "x")
        assert caught.value.definite
        error = late.exception(timeout=WAIT_S)
        assert isinstance(error, cb.FunctionTimeout)
        assert error.definite
    assert client.call("square", 2) == 4
    assert not file.exists()


def test_functions_own_timeout_holds_unless_the_call_says_otherwise(client: cb.Client, post: Post) -> None:
    client.register(samples.snooze, name="short", timeout=0.2)
    with pytest.raises(cb.FunctionTimeout):
        client.call("short", 30)
    assert client.options(timeout=30).call("short", 0.3) == 0.3


def test_stopped_executor_does_not_hold_its_callers_beyond_their_deadline(client: cb.Client) -> None:
    """SIGSTOP: nobody answers, and nobody can be told; the caller's own clock ends the call."""
    pid = client.call("pid")
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        outcomes = [client.options(timeout=0.3, retries=0).spawn("square", n) for n in range(40)]
        for future in outcomes:
            error = future.exception(timeout=WAIT_S)
            assert error is None or isinstance(error, cb.FunctionTimeout)
        assert time.monotonic() - started < 0.3 + 0.5
    finally:
        os.kill(pid, signal.SIGCONT)
    assert client.call("square", 2) == 4


def until(holds: Callable[[], object]) -> None:
    """Ask again and again, where nobody says when."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def memory_bounded(pids: list[int], limit_bytes: int) -> Iterator[None]:
    """Let these processes have so much memory together, in a control group of their own."""
    parent = Path("/sys/fs/cgroup/memory")
    group = parent / f"cloudburst-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError as fault:
        pytest.skip(f"LOUD: no memory control group can be made here, so the kernel kills nobody: {fault}")
    try:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for member in (group / "cgroup.procs").read_text().split():
            (parent / "cgroup.procs").write_text(member)
        until(lambda: removed(group))


def removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def test_executor_that_the_kernel_kills_for_memory_is_reported_as_that(client: cb.Client) -> None:
    def devour() -> None:
        kept = []
        while True:
            kept.append(b"x" * (1 << 20))

    client.register(devour)
    before = {row["pid"] for row in client.status()["executors"]}
    how = r"ended by signal 9 \(SIGKILL\), by the kernel, which was out of memory, while it ran 'devour'"
    with memory_bounded(list(before), 128 << 20):
        with pytest.raises(cb.OutOfMemory, match=how) as caught:
            client.options(retries=0).call("devour")
        assert not caught.value.definite
        assert client.call("square", 3) == 9
        assert len(before & {row["pid"] for row in client.status()["executors"]}) == len(before) - 1


def test_killing_an_executor_is_not_taken_for_want_of_memory(client: cb.Client, post: Post) -> None:
    """Not even when the kernel has killed another process on the machine meanwhile."""
    code = "import sys; sys.stdin.read(); kept = b'x' * (64 << 20)"
    hungry = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    with memory_bounded([hungry.pid], 24 << 20):
        hungry.communicate(timeout=WAIT_S)
        assert hungry.wait(timeout=WAIT_S) == -signal.SIGKILL
    future = client.options(retries=0).spawn("hold", post.address)
    os.kill(int(post.wait()[1]), signal.SIGKILL)
    with pytest.raises(cb.ExecutorLost, match=r"ended by signal 9 \(SIGKILL\) while it ran"):
        future.result(timeout=WAIT_S)


@pytest.mark.parametrize("wrap", [lambda file: file, lambda file: {"deep": [file]}])
def test_open_file_is_refused_wherever_it_is(client: cb.Client, wrap: Callable[[Any], Any]) -> None:
    """cloudpickle would send a copy of what it contains without a word."""
    with open(__file__) as file:
        with pytest.raises(cb.NotSerializable, match=r"test_failures\.py' is an open file"):
            client.call("echo", wrap(file))
        held = wrap(file)
        with pytest.raises(cb.NotSerializable, match="open file"):
            client.register(lambda: held, name="holds a file")
    client.register(lambda: wrap(open(__file__)), name="returns a file")  # noqa: SIM115
    with pytest.raises(cb.ResultNotSerializable, match="open file"):
        client.call("returns a file")


def test_calls_go_on_while_the_cache_is_killed_again_and_again(client: cb.Client) -> None:
    """Reads that were under way are repeated by the store's client; nobody's call fails and nothing is read wrong."""

    def read(times: int) -> set[int]:
        return {cb.get("while the cache dies") for _ in range(times)}

    client.register(read)
    client.put("while the cache dies", 7)
    pids = []
    for _ in range(5):
        futures = [client.spawn("read", 300) for _ in range(8)]
        until(lambda: client.status()["cache_pid"])
        pids.append(client.status()["cache_pid"])
        os.kill(pids[-1], signal.SIGKILL)
        wait_until_gone(pids[-1])
        assert [future.result(timeout=WAIT_S) for future in futures] == [{7}] * 8
    assert len(set(pids)) == 5


def test_malformed_bytes_close_only_their_own_lane(client: cb.Client) -> None:
    import socket

    membership = client._joined()
    slot, incarnation = next(iter(membership.chooser.granted().items()))
    short_call, bad_hello = (100).to_bytes(4, "little") + b"\x02" * 100, (16).to_bytes(4, "little") + b"\x01" * 16
    for garbage in (b"\xff" * 64, b"\x00" * 64, short_call, bad_hello):
        lane = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        lane.settimeout(WAIT_S)
        lane.connect(membership.address(slot, incarnation).removeprefix("unix:"))
        lane.sendall(garbage)
        assert lane.recv(100) == b""
        lane.close()
    assert client.call("square", 2) == 4


def test_unknown_operation_is_answered_and_the_lane_stays(client: cb.Client) -> None:
    import socket

    from cloudburst import frames
    from cloudburst.pickling import python_tag

    membership = client._joined()
    slot, incarnation = next(iter(membership.chooser.granted().items()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lane:
        lane.settimeout(WAIT_S)
        lane.connect(membership.address(slot, incarnation).removeprefix("unix:"))
        lane.sendall(frames.hello(5, python_tag()) + frames.CANCEL_FRAME.pack(8, 77, 0, 0, 42))
        reply = lane.recv(1000)
        assert frames.REPLY_HEADER.unpack_from(reply)[4] == 42
        fault = frames.fault_of(reply[frames.REPLY_HEADER_BYTES :])
        assert isinstance(fault, cb.NotSupported)
        assert "operation 77" in str(fault)
        lane.sendall(frames.call(43, b"nothing", b"", invocation=(5, 1), flags=frames.EMPTY, timeout_us=10**7))
        assert lane.recv(1000)[4] == frames.OK
