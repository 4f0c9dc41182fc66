"""Functions by name: versions, options, deletion, and Pythons that do not fit, refused before anything is unpickled."""

from __future__ import annotations

import os
import pickle
import socket
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb
from cloudburst import pickling
from cloudburst.records import FunctionOptions, FunctionRecord, body_hash, check_name
from tests.cloudburst import samples
from tests.cloudburst.conftest import Post, every_executor_held


def one(client: cb.Client, name: str) -> dict[str, Any]:
    [found] = [record for record in client.functions() if record["name"] == name]
    return found


def test_new_version_is_run_by_the_next_call_on_every_executor(client: cb.Client) -> None:
    for n in range(20):
        client.register(lambda n=n: n, name="versioned")
        assert {client.call("versioned") for _ in range(4)} == {n}
        assert {f.result(timeout=20) for f in [client.spawn("versioned") for _ in range(10)]} == {n}
    assert one(client, "versioned")["version"] == 20


def test_registering_the_same_again_changes_nothing(client: cb.Client) -> None:
    client.register(samples.echo, name="same")
    first = one(client, "same")
    announced = client.status()["functions_version"]
    client.register(samples.echo, name="same")
    assert one(client, "same") == first
    assert client.status()["functions_version"] == announced
    client.register(samples.echo, name="same", timeout=9)
    assert one(client, "same")["version"] == first["version"] + 1


def test_older_version_can_still_be_called(client: cb.Client) -> None:
    client.register(lambda: "old", name="aged")
    client.register(lambda: "new", name="aged")
    assert client.call("aged") == "new"
    assert client.options(version=1).call("aged") == "old"
    with pytest.raises(cb.FunctionNotFound, match="'aged' in version 9"):
        client.options(version=9).call("aged")


def test_deleted_function_is_gone_and_its_versions_are_not_used_again(client: cb.Client) -> None:
    client.register(lambda: 1, name="doomed")
    assert client.call("doomed") == 1
    client.delete("doomed")
    with pytest.raises(cb.FunctionNotFound, match="no function is registered as 'doomed'"):
        client.call("doomed")
    with pytest.raises(cb.FunctionNotFound):
        client.delete("doomed")
    assert "doomed" not in {record["name"] for record in client.functions()}
    client.register(lambda: 1, name="doomed")
    assert one(client, "doomed")["version"] == 2
    assert client.call("doomed") == 1


def test_functions_are_listed_with_what_they_are(client: cb.Client) -> None:
    client.register(samples.square, name="listed", retries=1, timeout=2.5, memory=1000)
    found = one(client, "listed")
    assert (found["signature"], found["doc"]) == ("(x: int) -> int", "Return x squared.")
    assert found["options"] == {"timeout_s": 2.5, "retries": 1, "memory_bytes": 1000} | dict.fromkeys(
        ("concurrency", "batch", "replicas", "session")
    )
    assert found["is_class"] is False
    assert one(client, "Tally")["is_class"] is True


def test_decorator_declares_and_leaves_the_function_what_it_was(node: cb.Client) -> None:
    @cb.function(name="declared", retries=0)
    def declared(x: int) -> int:
        return x + 1

    @cb.function
    def plain() -> str:
        return "plain"

    assert declared(1) == 2
    assert cb.call("declared", 2) == 3
    assert cb.call("plain") == "plain"
    assert one(node, "declared")["options"]["retries"] == 0


def test_register_returns_the_function(client: cb.Client) -> None:
    assert client.register(samples.square) is samples.square


@pytest.mark.parametrize("name", ["", "x" * 121, "a@1", "tab\there", "new\nline"])
def test_bad_name_is_refused(name: str) -> None:
    with pytest.raises(cb.RequestError, match="cannot name a function"):
        check_name(name)


def test_lambda_needs_a_name_and_only_callables_are_registered(client: cb.Client) -> None:
    with pytest.raises(cb.RequestError, match="register it with name="):
        client.register(lambda: 1)
    with pytest.raises(cb.RequestError, match="a function or a class is registered; got a int"):
        client.register(5)  # type: ignore[type-var]


def test_concurrent_registrations_all_appear(client: cb.Client) -> None:
    """No name is lost when many register at once (A2-13), though their sources are parsed at the same time."""
    import threading

    def work(k: int) -> None:
        for n in range(5):
            client.register(samples.square, name=f"many-{k}-{n}")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    names = {record["name"] for record in client.functions()}
    assert {f"many-{k}-{n}" for k in range(6) for n in range(5)} <= names


def test_unsendable_function_is_refused_before_the_node_hears_of_it(client: cb.Client) -> None:
    import threading

    lock = threading.Lock()
    announced = client.status()["functions_version"]
    with pytest.raises(cb.NotSerializable, match="closure variable 'lock' of 'guarded' is a lock"):
        client.register(lambda: lock.locked(), name="guarded")
    assert client.status()["functions_version"] == announced


def test_large_function_is_registered_with_a_warning(client: cb.Client) -> None:
    large = bytes(11_000_000)
    with pytest.warns(UserWarning, match=r"function 'large' has 11,0\d\d,\d\d\d bytes"):
        client.register(lambda: len(large), name="large")
    assert client.call("large") == 11_000_000


class Trap:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


def crafted(mark: Path, code_tag: str) -> tuple[FunctionRecord, bytes]:
    body = pickle.dumps(Trap(str(mark)))
    return FunctionRecord("crafted", 1, body_hash(body), code_tag, time.time_ns() // 1000), body


def test_function_of_another_python_is_refused_before_it_is_unpickled(client: cb.Client, directory: Path) -> None:
    """A body of another minor version crashes the process that loads it (reliability §0)."""
    mark = directory / "unpickled"
    record, body = crafted(mark, "cpython 3.8, cloudpickle 3")
    store = client._joined().functions()
    store.put_body(body)
    store.put(record)
    here = pickling.code_tag()
    says = f"function 'crafted' was made on cpython 3.8, cloudpickle 3; this executor runs {here}"
    with pytest.raises(cb.EnvironmentMismatch, match=says) as caught:
        client.call("crafted")
    assert caught.value.definite
    assert not mark.exists()
    store.put(replace(record, code_tag=here, version=2))
    client.register(samples.echo, name="announce it")
    client.register(lambda: 1, name="announce it")
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        client.call("crafted")
    assert mark.exists(), "the trap works: with the right tag it does spring"
    client.delete("crafted")


def test_node_refuses_to_register_code_of_another_python(client: cb.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudburst.client.code_tag", lambda: "cpython 3.99, cloudpickle 3")
    with pytest.raises(cb.EnvironmentMismatch, match=r"was made on cpython 3\.99, cloudpickle 3"):
        client.register(samples.square, name="from the future")


def test_caller_of_another_python_is_refused_before_its_arguments_are_unpickled(
    client: cb.Client, directory: Path
) -> None:
    import socket

    from cloudburst import frames

    membership = client._joined()
    slot, incarnation = next(iter(membership.chooser.granted().items()))
    mark = directory / "unpickled"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lane:
        lane.settimeout(20)
        lane.connect(membership.address(slot, incarnation).removeprefix("unix:"))
        payload = pickle.dumps(((Trap(str(mark)),), {}))
        lane.sendall(frames.hello(5, "cpython 3.8"))
        lane.sendall(frames.call(1, b"echo", payload, invocation=(5, 1), timeout_us=10**7))
        fault = frames.fault_of(lane.recv(1000)[frames.REPLY_HEADER_BYTES :])
    assert isinstance(fault, cb.EnvironmentMismatch)
    assert "the caller runs cpython 3.8, this executor runs" in str(fault)
    assert not mark.exists()


def test_record_survives_packing_and_garbage_is_refused() -> None:
    record = FunctionRecord("f", 3, "ab", "tag", 5, True, "doc", "()", ("/a",), FunctionOptions(1.5, 2, 3), "why")
    assert FunctionRecord.unpack(record.pack()) == record
    with pytest.raises(cb.ProtocolError, match="4 bytes are not a function record"):
        FunctionRecord.unpack(b"junk")


def test_records_cannot_be_written_by_ordinary_clients(client: cb.Client) -> None:
    """Who may put may not replace code (A2-12)."""
    from anna.errors import BadKey

    with pytest.raises(BadKey, match="reserved"):
        client.put(b"\x00cb/record/square", b"x")


def test_function_that_cannot_be_loaded_says_why(client: cb.Client, post: Post) -> None:
    """Nobody could try to load it when it was registered: then the call says it."""
    import sys
    import types

    module = types.ModuleType("only_here")
    exec("def local():\n    return 1\n", module.__dict__)
    sys.modules["only_here"] = module
    try:
        with every_executor_held(client, post):
            client.register(module.local)
    finally:
        del sys.modules["only_here"]
    says = "'local' cannot be loaded here: ModuleNotFoundError: No module named 'only_here'"
    with pytest.raises(cb.FunctionError, match=says):
        client.call("local")
    assert client.call("square", 2) == 4


def test_a_module_that_executors_lack_is_said_at_registration(
    client: cb.Client, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reliability C: with the host and what it has, and nothing is stored."""
    installed = directory / "site-packages"  # what is not, goes along
    installed.mkdir()
    (installed / "msgpak.py").write_text("def one(): return 1")
    monkeypatch.syspath_prepend(installed)
    import msgpak  # type: ignore[import-not-found]

    monkeypatch.undo()
    with pytest.raises(cb.MissingDependency, match="needs the module 'msgpak'") as caught:
        client.register(lambda: msgpak.one(), name="lacking")
    assert isinstance(caught.value, ModuleNotFoundError)
    assert socket.gethostname() in str(caught.value)
    assert f"msgpack {metadata.version('msgpack')}" in str(caught.value)
    with pytest.raises(cb.FunctionNotFound):
        client.call("lacking")
    monkeypatch.syspath_prepend(installed)
    client.register(lambda: msgpak.one(), name="lacking")
    assert client.call("lacking") == 1


def test_registration_does_not_wait_for_executors_that_are_busy(client: cb.Client, post: Post) -> None:
    with every_executor_held(client, post):
        client.register(lambda: 5, name="unhurried")
    assert client.call("unhurried") == 5


def test_a_body_that_cannot_be_loaded_for_another_reason_is_left_to_the_call(client: cb.Client) -> None:
    class Odd:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    odd = Odd()
    client.register(lambda: odd, name="odd")
    with pytest.raises(cb.FunctionError, match="cannot be loaded here: ValueError"):
        client.call("odd")
