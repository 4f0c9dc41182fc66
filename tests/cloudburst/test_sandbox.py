"""User code in a sandbox: what it sees, what it cannot do, and that everything else goes on as without."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb
from cloudburst import local, sandbox
from cloudburst.client import Client
from cloudburst.membership import Membership
from cloudburst.sandbox import Sandbox
from tests.cloudburst import samples
from tests.cloudburst.test_lifecycle import all_gone

Start = Callable[[str], Client]


def attempt(work: Callable[[], Any]) -> str:
    """Return how a piece of work ended, in a word."""
    try:
        return repr(work())
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror}"


def connect_to(port: int) -> str:
    def connect() -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return connection.recv(10).decode()

    return attempt(connect)


def write_to(path: str) -> str:
    return attempt(lambda: Path(path).write_text("written"))


def read_from(path: str) -> str:
    return attempt(Path(path).read_text)


def doubled(data: bytes) -> bytes:
    return data + data


def surroundings() -> dict[str, Any]:
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {
        "processes": sum(name.isdigit() for name in os.listdir("/proc")),
        "capabilities": int(status["CapEff"], 16),
        "privileges": status["NoNewPrivs"],
        "home": os.listdir(Path.home()),
        "run": os.listdir("/run"),
    }


@pytest.fixture
def start(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a node, with a home directory that has a secret in it, where bubblewrap can be had."""
    try:
        sandbox.require(Sandbox())
    except cb.EnvironmentMismatch as fault:
        pytest.skip(f"LOUD: no sandbox can be had here: {fault}")
    (directory / "home").mkdir()
    (directory / "home" / "secret").write_text("the key")
    for name, value in (("HOME", "home"), ("CLOUDBURST_DIR", "node"), ("ANNA_DIR", "store")):
        monkeypatch.setenv(name, str(directory / value))
    clients = []

    def begin(kind: str) -> Client:
        client = Client(lambda: Membership(local.ensure(executors=2, sandbox=kind)))
        clients.append(client)
        return client

    yield begin
    for client in clients:
        client.close()
    all_gone(directory)


def test_system_is_read_only_and_what_is_private_is_empty(start: Start, directory: Path) -> None:
    client = start("bwrap")
    for function in (write_to, read_from, surroundings):
        client.register(function)
    assert client.call("write_to", "/etc/mine") == "OSError: Read-only file system"
    assert client.call("write_to", f"{samples.__file__}.new") == "OSError: Read-only file system"
    secret = str(directory / "home" / "secret")
    assert client.call("read_from", secret) == "FileNotFoundError: No such file or directory"
    assert client.call("write_to", "/tmp/scratch") == "7"
    assert not Path("/tmp/scratch").exists()
    found = client.call("surroundings")
    assert found == {"processes": found["processes"], "capabilities": 0, "privileges": "1", "home": [], "run": []}
    assert found["processes"] < 8, "the sandbox's own: its first, the zygote, and executors"


def test_network_is_there_only_when_asked_for(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = start("bwrap")
        client.register(connect_to)
        assert client.call("connect_to", port) == "ConnectionRefusedError: Connection refused"


def test_network_that_was_asked_for_is_there(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = start("bwrap,net")
        client.register(connect_to)
        future = client.spawn("connect_to", server.getsockname()[1])
        with server.accept()[0] as connection:
            connection.sendall(b"hello")
        assert future.result(timeout=20) == "'hello'"


def test_directories_that_were_asked_for_are_there(start: Start, directory: Path) -> None:
    for name in ("data", "results"):
        (directory / name).mkdir()
    (directory / "data" / "input").write_text("5")
    client = start(f"bwrap,read={directory}/data,write={directory}/results")
    client.register(read_from)
    client.register(write_to)
    assert client.call("read_from", f"{directory}/data/input") == "'5'"
    assert client.call("write_to", f"{directory}/data/output") == "OSError: Read-only file system"
    assert client.call("write_to", f"{directory}/results/output") == "7"
    assert (directory / "results" / "output").read_text() == "written"


def test_everything_works_as_without(start: Start) -> None:
    """Nested calls, the store, prints, lost executors and deadlines: the node sees and ends what is inside."""
    client = start("bwrap")
    for function in (samples.descend, samples.increment_key, samples.say, samples.fan_out, samples.square):
        client.register(function)
    client.register(lambda: os._exit(7), name="leave")
    client.register(lambda: sum(range(10**15)), name="spin in c")
    client.register(lambda: any(iter(int, 1)), name="spin")
    assert client.call("descend", 5) == 5
    assert client.call("fan_out", 10) == sum(n * n for n in range(10))
    client.put("n", 1)
    assert client.call("increment_key", "n") == client.get("n") == 2
    future = client.spawn("say", "hello")
    assert future.result(timeout=20) == future.id
    assert future.logs() == "hello\nto stderr\n"
    with pytest.raises(cb.ExecutorLost, match=r"\(pid \d+\) ended by exit\(7\)"):
        client.options(retries=0).call("leave")
    for name in ("spin", "spin in c"):
        with pytest.raises(cb.FunctionTimeout):
            client.options(timeout=0.2).call(name)
    assert client.call("square", 3) == 9
    pids = [row["pid"] for row in client.status()["executors"] if row["slot"] < 2]
    os.kill(pids[0], signal.SIGKILL)
    assert client.call("square", 4) == 16


def test_killed_node_takes_its_sandbox_with_it(start: Start, directory: Path) -> None:
    client = start("bwrap")
    client.register(samples.square)
    assert client.call("square", 3) == 9
    os.kill(client.status()["pid"], signal.SIGKILL)
    all_gone(directory)
    assert not (directory / "node").exists()


def test_killed_sandbox_ends_the_node(start: Start, directory: Path) -> None:
    client = start("bwrap")
    client.register(samples.square)
    assert client.call("square", 3) == 9
    executor = client.status()["executors"][0]["pid"]
    inside = int(Path(f"/proc/{executor}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(inside, signal.SIGKILL)
    all_gone(directory)


def test_node_that_runs_without_is_not_joined_by_who_asks_for_a_sandbox(start: Start, directory: Path) -> None:
    start("none").status()
    with pytest.raises(cb.EnvironmentMismatch, match="has the sandbox 'none', and not 'bwrap'"):
        cb.connect(f"unix:{directory}/node", sandbox="bwrap")


def test_what_to_do_is_said_where_bubblewrap_is_missing_or_may_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDBURST_DIR", str(directory / "node"))
    monkeypatch.setenv("PATH", str(directory))
    with pytest.raises(cb.EnvironmentMismatch, match="apt install bubblewrap"):
        local.ensure(sandbox="bwrap")
    (directory / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to creating new namespace' >&2\nexit 1\n")
    (directory / "bwrap").chmod(0o700)
    with pytest.raises(cb.EnvironmentMismatch, match="No permissions to creating new namespace; run as root, or allow"):
        local.ensure(sandbox="bwrap")
    assert not (directory / "node").exists()


@pytest.mark.parametrize(
    ("text", "means"),
    [
        (None, None), ("", None), ("none", None), ("bwrap", Sandbox()), ("bwrap,net", Sandbox(True)),
        ("bwrap,read=/a,write=/b,read=/c", Sandbox(False, ("/a", "/c"), ("/b",))),
    ],
)  # fmt: skip
def test_a_sandbox_is_described_in_a_word_with_options(text: str | None, means: Sandbox | None) -> None:
    assert sandbox.parse(text) == means


@pytest.mark.parametrize("text", ["docker", "none,net", "bwrap,internet", "bwrap,read=data", "bwrap,read="])
def test_what_is_no_sandbox_is_refused(text: str) -> None:
    with pytest.raises(cb.RequestError):
        sandbox.parse(text)


def test_a_directory_that_is_not_there_is_said(directory: Path) -> None:
    with pytest.raises(cb.EnvironmentMismatch, match=r"to have .*/absent, which is no directory here"):
        sandbox.require(Sandbox(read=(f"{directory}/absent",)))


def test_large_values_go_in_and_come_out_in_shared_memory(start: Start, directory: Path) -> None:
    client = start("bwrap")
    client.register(doubled)
    data = bytes(range(256)) * 4096
    assert client.call("doubled", data) == data + data
