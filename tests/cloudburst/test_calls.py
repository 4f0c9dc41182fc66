"""Calls that wait: one hop to an executor, the value or the user's exception back."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import anna
import cloudburst as cb
from cloudburst.page import IDLE, monotonic_us
from tests.cloudburst.conftest import Post


def test_call_returns_what_the_function_returned(client: cb.Client) -> None:
    assert client.call("echo") == ((), {})
    assert client.call("echo", 1, [2, {"x": None}], name="n") == ((1, [2, {"x": None}]), {"name": "n"})
    assert client.call("square", 12) == 144


def test_warm_call_goes_one_hop_and_the_node_takes_no_part(client: cb.Client) -> None:
    """With the node stopped by SIGSTOP, warm calls go on: it is not on their way (DESIGN §6)."""
    assert client.call("square", 3) == 9
    node = client.status()["pid"]
    os.kill(node, 19)
    try:
        assert [client.call("square", n) for n in range(100)] == [n * n for n in range(100)]
        assert [f.result(timeout=5) for f in [client.spawn("square", n) for n in range(100)]][-1] == 99 * 99
    finally:
        os.kill(node, 18)


def test_large_arguments_and_results_travel(client: cb.Client) -> None:
    data = os.urandom(20_000_000)
    ((echoed,), _) = client.call("echo", data)
    assert echoed == data


def test_users_exception_is_raised_with_its_type_cause_and_remote_traceback(client: cb.Client) -> None:
    with pytest.raises(ValueError, match="bad") as caught:
        client.call("fail", "ValueError")
    error = caught.value
    assert isinstance(error, cb.FunctionError)
    assert error.args == ("bad", 7)
    assert type(error.__cause__) is ValueError
    assert "samples.py" in error.remote_traceback
    assert "in fail" in error.remote_traceback
    assert "runtime.py" not in error.remote_traceback
    assert (error.attempts, error.function) == (1, "fail")


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt"])
def test_exit_of_a_function_is_its_exception_and_the_executor_stays(client: cb.Client, kind: str) -> None:
    pids = {row["pid"] for row in client.status()["executors"]}
    with pytest.raises(cb.FunctionError) as caught:
        client.call("fail", kind)
    assert type(caught.value.__cause__).__name__ == kind
    assert {row["pid"] for row in client.status()["executors"]} == pids


def test_exception_that_cannot_travel_is_named(client: cb.Client) -> None:
    with pytest.raises(cb.FunctionError, match="TwoArguments: 1 and 2") as caught:
        client.call("fail_untransportably")
    assert "fail_untransportably" in caught.value.remote_traceback


def test_result_that_cannot_be_sent_is_an_error_and_the_executor_stays(client: cb.Client) -> None:
    with pytest.raises(cb.ResultNotSerializable, match="'generate' returned a generator"):
        client.call("generate")
    assert client.call("square", 2) == 4


def test_unknown_function_is_refused_and_close_names_are_offered(client: cb.Client) -> None:
    with pytest.raises(cb.FunctionNotFound, match="no function is registered as 'sqare'; did you mean 'square'"):
        client.call("sqare", 1)


def test_wrong_arguments_are_the_users_exception(client: cb.Client) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        client.call("square", 1, 2)


def test_unpicklable_argument_is_refused_before_anything_is_sent(client: cb.Client) -> None:
    with pytest.raises(cb.NotSerializable, match="argument 0 of 'echo', a lock"):
        client.call("echo", threading.Lock())


def test_coroutine_function_is_awaited(client: cb.Client) -> None:
    assert client.call("later", 4) == 5


def test_memory_limit_ends_the_call_and_not_the_executor(client: cb.Client) -> None:
    from tests.cloudburst import samples

    client.register(samples.allocate, name="allocate_little", memory=100_000_000)
    pids = {row["pid"] for row in client.status()["executors"]}
    with pytest.raises(cb.OutOfMemory, match="more memory than its limit of 100,000,000 bytes") as caught:
        client.call("allocate_little", 500_000_000)
    assert "in allocate" in caught.value.remote_traceback
    assert client.call("allocate_little", 1000) == 1000
    assert client.call("allocate", 500_000_000) == 500_000_000
    assert {row["pid"] for row in client.status()["executors"]} == pids


def test_options_are_checked_and_never_mixed_with_arguments(client: cb.Client) -> None:
    assert client.options(timeout=5, retries=0).call("echo", timeout=1) == ((), {"timeout": 1})
    with pytest.raises(cb.RequestError, match="'timout' is no option; there are timeout, retries, key, version"):
        client.options(timout=5)
    with pytest.raises(cb.RequestError, match="timeout is -1 s; it must be positive"):
        client.options(timeout=-1)


def test_result_is_also_stored_when_a_key_is_given(client: cb.Client) -> None:
    assert client.options(key="test/out").call("square", 5) == 25
    assert client.get("test/out") == 25


def test_references_are_read_where_the_function_runs(client: cb.Client) -> None:
    client.put("test/a", 7)
    client.put("test/b", [1, 2])
    args, kwargs = client.call("echo", cb.Ref("test/a"), {"deep": [cb.Ref("test/b")]}, c=cb.Ref("test/a"))
    assert (args, kwargs) == ((7, {"deep": [[1, 2]]}), {"c": 7})


def test_reference_sees_the_newest_value(client: cb.Client) -> None:
    for n in range(20):
        client.put("test/newest", n)
        assert client.call("square", cb.Ref("test/newest")) == n * n


def test_reference_to_a_missing_key_is_an_error_and_the_function_is_not_run(client: cb.Client) -> None:
    with pytest.raises(anna.KeyNotFound, match="no value is stored under 'test/absent', which an argument refers to"):
        client.call("square", cb.Ref("test/absent"))


def test_store_is_the_same_inside_and_outside(client: cb.Client) -> None:
    client.put("test/count", 1)
    assert client.call("increment_key", "test/count") == 2
    assert client.get("test/count") == 2
    assert client.get("test/nothing", "default") == "default"


def test_context_tells_who_i_am_and_how_long_i_have(client: cb.Client) -> None:
    future = client.options(timeout=30).spawn("about_me")
    identity, function, version, remaining = future.result(timeout=20)
    assert (identity, function, version) == (future.id, "about_me", 1)
    assert 25 < remaining < 30
    assert future.logs() == "looking at=1\n"


def test_context_outside_of_functions_is_refused() -> None:
    with pytest.raises(cb.RequestError, match="outside a function"):
        cb.ctx()


def test_print_is_kept_with_the_call_that_printed(client: cb.Client) -> None:
    first, second = client.spawn("say", "one"), client.spawn("say", "two")
    assert first.result(timeout=20) == first.id
    assert second.result(timeout=20) == second.id
    assert (first.logs(), second.logs()) == ("one\nto stderr\n", "two\nto stderr\n")
    assert any("two\nto stderr\n" in text for text in client.output().values())


def test_flood_of_output_is_cut_and_counted(client: cb.Client) -> None:
    future = client.spawn("print_much", 3000)
    assert future.result(timeout=20) is None
    logs = future.logs()
    assert len(logs) < 66_000
    assert logs.startswith("line 0 ")
    printed = sum(len(f"line {n} " + "x" * 90 + "\n") for n in range(3000))
    assert logs.endswith(f"[truncated: {printed - 65_536:,} more bytes]\n")
    assert max(len(text) for text in client.output().values()) <= 65_536


def test_class_is_constructed_once_in_each_executor(client: cb.Client) -> None:
    counts: dict[int, list[int]] = {}
    for _ in range(10):
        pid, count = client.call("Tally.add", 2)
        counts.setdefault(pid, []).append(count)
    for seen in counts.values():
        assert seen == [2 * n for n in range(1, len(seen) + 1)]
    assert client.call("Tally") in {seen[-1] for seen in counts.values()} | {0}
    with pytest.raises(cb.FunctionNotFound, match="class 'Tally' has no method 'take'; its methods are add"):
        client.call("Tally.take")
    with pytest.raises(cb.FunctionNotFound, match=r"no function is registered as 'Tally\.__init__'"):
        client.call("Tally.__init__")


def test_call_is_safe_from_threads(client: cb.Client) -> None:
    wrong: list[object] = []

    def work(base: int) -> None:
        for n in range(base, base + 50):
            result = client.call("square", n)
            if result != n * n:
                wrong.append((n, result))

    threads = [threading.Thread(target=work, args=(1000 * k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_calls_and_spawns_on_a_share_of_its_own(client: cb.Client) -> None:
    assert client.call("square", 3) == 9
    assert client.spawn("square", 3).result(timeout=20) == 9
    before = len(client.status()["clients"])
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert client.call("square", 4) == 16
            assert client.spawn("square", 5).result(timeout=20) == 25
            assert len(client.status()["clients"]) == before + 1
            code = 0
        finally:
            os.write(writer, b"%d" % code)
            os._exit(code)
    assert os.read(reader, 10) == b"0"
    assert os.waitpid(pid, 0)[1] == 0
    os.close(reader)
    os.close(writer)
    assert client.call("square", 6) == 36
    assert client.spawn("square", 6).result(timeout=20) == 36


def test_functions_of_a_script_its_lambdas_and_local_modules_run(client: cb.Client, directory: Path) -> None:
    """What a program registers from `__main__`, from a closure and from a module beside it."""
    (directory / "beside.py").write_text("def triple(x):\n    return 3 * x\n")
    script = directory / "script.py"
    script.write_text(
        textwrap.dedent("""
        import cloudburst as cb
        import beside

        BASE = 100

        class Point:
            def __init__(self, x): self.x = x

        def shifted(point): return Point(beside.triple(point.x) + BASE)

        def make(n): return lambda x: x * n

        @cb.function(name="declared", retries=0)
        def declared(x): return -x

        if __name__ == "__main__":
            cb.connect()
            cb.register(shifted)
            cb.register(make(5), name="fivefold")
            cb.register(beside.triple)
            result = cb.call("shifted", Point(1))
            assert type(result) is Point, type(result)
            print(result.x, cb.call("fivefold", 2), cb.call("triple", 2), cb.call("declared", 2), declared(2))
        """)
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, cwd=directory)
    assert (ran.stdout, ran.stderr) == ("103 10 6 -2 -2\n", "")


def test_import_is_quick_and_pulls_in_nothing_heavy() -> None:
    code = "import sys, cloudburst; print([m for m in ('zmq', 'asyncio', 'rich', 'numpy', 'anna') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert [name for name in cb.__all__ if not hasattr(cb, name)] == []
    with pytest.raises(AttributeError, match="has no attribute 'nothing_like_it'"):
        _ = cb.nothing_like_it


def test_secrets_of_the_starter_do_not_reach_user_code() -> None:
    from cloudburst.executor.limits import clean_environment

    given = {
        "PATH": "/bin", "HOME": "/h", "LANG": "C", "LC_ALL": "C", "PYTHONPATH": "/p", "VIRTUAL_ENV": "/v",
        "AWS_SECRET_ACCESS_KEY": "s", "GITHUB_TOKEN": "t", "DATABASE_URL": "u", "PYTHON_KEYRING_PASSWORD": "p",
        "ANNA_DIR": "/a", "OMP_NUM_THREADS": "1", "CLOUDBURST_API_KEY": "k",
    }  # fmt: skip
    kept = set(clean_environment(given))
    assert kept == {"PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "ANNA_DIR", "OMP_NUM_THREADS"}


def test_idle_node_shows_idle_executors(client: cb.Client, post: Post) -> None:
    status = client.status()
    assert [row["slot"] for row in status["executors"]][:2] == [0, 1]
    assert os.getpid() in status["clients"]
    held = client.spawn("hold", post.address)
    pid = int(post.wait()[1])
    [row] = [row for row in client.status()["executors"] if row["pid"] == pid]
    assert (row["state"], row["function"], row["invocation"]) == ("running", "hold", held.id)
    assert 290 < row["remaining_s"] <= 300
    held.cancel()
    assert post.wait()[0] == "stopped"


def test_leases_are_renewed_when_half_of_their_time_has_passed(client: cb.Client) -> None:
    membership = client._joined()
    membership._renew_us = now_us = monotonic_us()
    assert client.call("square", 3) == 9
    assert membership._renew_us >= now_us + 14_000_000
    assert {row["leases"] for row in client.status()["executors"]} == {1}


def test_node_tells_its_own_requests_from_strangers(client: cb.Client) -> None:
    with pytest.raises(cb.NotSupported, match="does not know the request 'frobnicate'"):
        client._joined().ask("frobnicate", {})
    with pytest.raises(cb.RequestError, match="a client may cancel only what it called"):
        client._joined().ask("cancel", {"slot": 0, "high": 1, "low": 1})


def test_monotonic_clock_is_the_hosts() -> None:
    assert abs(monotonic_us() - time.monotonic_ns() // 1000) < 1_000_000
    assert IDLE == 0
