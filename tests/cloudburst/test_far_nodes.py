"""Nodes that reach each other by TCP alone, as on two hosts: told by CLOUDBURST_HOST that they share no files."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import anna
import cloudburst as cb
from anna import authority
from cloudburst import frames, local
from cloudburst.cache import server
from cloudburst.client import Client
from cloudburst.membership import Membership
from cloudburst.pickling import python_tag
from cloudburst.secret import Secret
from tests.anna.conftest import running_workers
from tests.cloudburst.test_nodes import FUNCTIONS, WAIT_S

ROOT = Path(__file__).parents[2]


class Program:
    """A node in the foreground, as `cb node` runs it."""

    def __init__(self, directory: Path, host: str, *words: str) -> None:
        self.directory = directory
        command = [sys.executable, "-m", "cloudburst", "node", "--dir", str(directory), "--executors", "1"]
        environment = {**os.environ, "CLOUDBURST_HOST": host, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [*command, "--workers", "1", *words], stderr=subprocess.PIPE, env=environment, text=True
        )
        self.said = ""

    def read_until(self, pattern: str) -> str:
        """Return what it says on standard error that matches."""
        assert self.process.stderr is not None
        end = time.monotonic() + WAIT_S
        while (found := re.search(pattern, self.said)) is None:
            left_s = end - time.monotonic()
            assert left_s > 0, self.said
            assert select.select([self.process.stderr], [], [], left_s)[0], self.said
            data = os.read(self.process.stderr.fileno(), 4096).decode()
            assert data, f"it ended: {self.said}"
            self.said += data
        return found.group(1)

    def client(self) -> Client:
        lease = local.join(self.directory)
        assert lease is not None
        return Client(lambda: Membership(lease))

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(WAIT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


Start = Callable[..., Program]


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    made: list[Program] = []

    def begin(name: str, *words: str) -> Program:
        made.append(Program(directory / name, name, *words))
        made[-1].read_until("(runs in)")
        return made[-1]

    yield begin
    for one in made:
        if one.process.poll() is None:
            one.stop(signal.SIGKILL)


def two(start: Start) -> tuple[Program, Program]:
    first = start("a", "--listen", "tcp://127.0.0.1:0")
    address = first.read_until(r"--join (tcp://127\.0\.0\.1:\d+) --")
    secret = () if os.environ.get("ANNA_KEYS") else ("--secret", f"{first.directory}/secret")
    second = start("b", "--join", address, *secret, "--listen", "tcp://127.0.0.1:0")
    with first.client() as client:
        end = time.monotonic() + WAIT_S
        while sum(one["executors"] for one in client.status()["nodes"]) < 1:
            assert time.monotonic() < end, (first.said, second.said)
            time.sleep(0.01)
    return first, second


def test_calls_and_graphs_and_messages_go_to_another_host(start: Start) -> None:
    first, _ = two(start)
    with first.client() as client:
        for function in FUNCTIONS:
            client.register(function)
        page = client._joined().page
        far = [slot for slot in page.ready() if page.home(slot)[3]]
        assert [page.home(slot)[3].partition(":")[0] for slot in far] == ["tcp"]
        assert set(Counter(client.map("place_after", [0.03] * 20))) == {"a", "b"}
        client.dag("where", {"x": [], "y": [], "all": ["x", "y"]},
                   functions={"x": "place_after", "y": "place_after", "all": "names"})  # fmt: skip
        assert sorted(client.call("where", {"x": (0.1,), "y": (0.1,)})) == ["a", "b"]
        assert [client.call("increment", number) for number in range(50)] == list(range(1, 51))


def test_host_that_is_gone_is_noticed_and_its_calls_are_begun_again(start: Start) -> None:
    first, second = two(start)
    with first.client() as client:
        for function in FUNCTIONS:
            client.register(function)
        futures = [client.spawn("place_after", 0.05) for _ in range(20)]
        second.stop(signal.SIGKILL)
        assert sum(Counter(future.result(timeout=WAIT_S) for future in futures).values()) == 20


def test_who_has_another_secret_does_not_join(start: Start, directory: Path) -> None:
    first = start("a", "--listen", "tcp://127.0.0.1:0")
    address = first.read_until(r"--join (tcp://127\.0\.0\.1:\d+) --secret")
    other = directory / "other"
    other.mkdir()
    path = Secret.fresh().keep(other)
    stranger = Program(directory / "c", "c", "--join", address, "--secret", str(path))
    stranger.read_until("(is the secret the same)")
    assert stranger.process.wait(WAIT_S) != 0
    stranger.stop()
    assert not (directory / "c").exists(), "it has left nothing"
    with first.client() as client:
        assert client.status()["nodes"] == []


def test_connection_from_another_host_without_the_key_is_closed_before_anything_is_run(start: Start) -> None:
    first = start("a", "--listen", "tcp://127.0.0.1:0")
    with first.client() as client:
        client.register(FUNCTIONS[2])
        assert client.call("increment", 1) == 2
        [port] = ports_of(client.status()["executors"][0]["pid"])
        for hello in (frames.hello(5, python_tag()), frames.hello(5, python_tag(), b"guess" * 8), b""):
            with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as lane:
                lane.sendall(hello + frames.call(1, b"increment", b"", invocation=(5, 1), timeout_us=10**7))
                assert lane.recv(100) == b""
        assert client.call("increment", 1) == 2


def test_the_store_of_nodes_with_keys_is_closed_to_who_has_none(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.found(tmp_path / "keys")
    monkeypatch.setenv("ANNA_KEYS", str(tmp_path / "keys"))
    first, second = two(start)
    with first.client() as one, second.client() as other:
        one.register(FUNCTIONS[2])
        assert other.call("increment", 1) == 2
        for number in range(20):  # of which about half are the other node's first
            one.put(f"k{number}", number)
        assert [other.get(f"k{number}") for number in range(20)] == list(range(20))
    monkeypatch.delenv("ANNA_KEYS")
    with anna.connect(f"unix:{first.directory}-store/w0.sock") as near:
        addresses = [address for worker in near.view.workers for address in worker.addresses if address[:3] == "tcp"]
    assert len(addresses) == 2
    for address in addresses:
        with pytest.raises(anna.NotAdmitted, match="takes only who shows keys"):
            anna.connect(address)
        anna.connect(address, keys=tmp_path / "keys").close()


def test_a_cache_shows_the_keys_of_its_node_to_owners_on_other_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.found(tmp_path / "keys")
    with running_workers(1, keys=tmp_path / "keys") as cluster:
        server._keys.cache_clear()
        assert asyncio.run(server.fetch_view([cluster.tcp()])) is None
        monkeypatch.setenv("ANNA_KEYS", str(tmp_path / "keys"))
        server._keys.cache_clear()
        assert asyncio.run(server.fetch_view([cluster.tcp()])) == cluster.view
    server._keys.cache_clear()


def ports_of(pid: int) -> list[int]:
    """The TCP ports at which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if (found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))) is not None:
            inodes.add(found.group(1))
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes]


def test_addresses_of_others_are_refused_without_being_asked_for(directory: Path) -> None:
    program = Program(directory / "a", "a", "--listen", "tcp://192.0.2.1:0")
    program.read_until("(make keys with `cb keys new DIR`)")
    assert program.process.wait(WAIT_S) != 0
    program.stop()


def test_secret_that_others_can_read_is_refused(directory: Path) -> None:
    path = Secret.fresh().keep(directory)
    assert Secret.read(path).lane_key == Secret.read(path).lane_key
    path.chmod(0o644)
    with pytest.raises(cb.RequestError, match="can be read by others: chmod 600"):
        Secret.read(path)
    path.write_text("short")
    path.chmod(0o600)
    with pytest.raises(cb.RequestError, match="at least 16 bytes; this one has 5"):
        Secret.read(path)
