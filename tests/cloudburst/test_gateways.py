"""Clients on a host without a node, told by CLOUDBURST_HOST that they share no files with those that have one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import cloudburst as cb
from cloudburst import control, introduction
from cloudburst.client import Client
from cloudburst.control import Control
from cloudburst.gateways import enter
from cloudburst.membership import Membership
from cloudburst.neighbours import NodeRecord
from cloudburst.secret import Secret
from tests.anna.local.processes import eventually
from tests.cloudburst.conftest import Post, wait_until_gone
from tests.cloudburst.test_far_nodes import ROOT, Program, Start, start, two  # noqa: F401
from tests.cloudburst.test_nodes import FUNCTIONS, WAIT_S

Enter = Callable[[Program], Client]


def address_of(program: Program) -> str:
    return program.read_until(r"--join (tcp://127\.0\.0\.1:\d+) --secret")


def token_of(program: Program) -> str:
    return (program.directory / "secret").read_text().strip()


@pytest.fixture
def gateway(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Enter]:
    """Makes clients of a node that have its address and its secret, and neither its files nor its memory."""
    monkeypatch.setenv("CLOUDBURST_HOST", "c")
    monkeypatch.setenv("CLOUDBURST_DIR", str(directory / "c"))
    made: list[Client] = []

    def connected(program: Program) -> Client:
        address, token = address_of(program), token_of(program)
        made.append(Client(lambda: Membership(enter(address, token), lambda client: enter(address, token, client))))
        return made[-1]

    yield connected
    gateways = [client.status()["pid"] for client in made if not client.closed]
    for client in made:
        client.close()
    for pid in gateways:
        wait_until_gone(pid)
    assert [one for one in directory.iterdir() if one.name.startswith("c")] == [], "it has left nothing"


def test_everything_works_through_a_gateway(start: Start, gateway: Enter, post: Post) -> None:  # noqa: F811
    first, _ = two(start)
    client = gateway(first)
    for function in FUNCTIONS:
        client.register(function)
    assert [client.call("increment", n) for n in range(20)] == list(range(1, 21))
    assert client.spawn("increment", 1).result(timeout=WAIT_S) == 2
    assert set(client.map("place_after", [0.03] * 20)) == {"a", "b"}
    client.dag("where", {"x": [], "y": [], "all": ["x", "y"]},
               functions={"x": "place_after", "y": "place_after", "all": "names"})  # fmt: skip
    assert sorted(client.call("where", {"x": (0.1,), "y": (0.1,)})) == ["a", "b"]
    client.put("n", 41)
    assert client.get("n") == 41
    assert client.call("increment", cb.Ref("n")) == 42
    place, array = client.call("grown", np.ones(100_000), 1.0)
    assert (place in ("a", "b"), array[-1], array.flags.writeable) == (True, 2.0, False)
    client.register(lambda: print("said there"), name="say")
    client.call("say")
    [line] = client.logs(function="say")
    assert (line.text, line.node in ("127.0.0.1/a", "127.0.0.1/b")) == ("said there", True)
    future = client.spawn("held", post.address)
    post.wait()
    assert future.cancel()
    with first.client() as own:
        eventually(lambda: all(row["state"] == "idle" for row in own.status()["executors"]), "it was cancelled there")
        assert own.call("increment", 1) == 2, "what was registered through the gateway is the cluster's"


class Tally:
    def __init__(self) -> None:
        self.count = 0

    def next(self) -> int:
        self.count += 1
        return self.count


def test_gateway_is_no_capacity_and_owns_no_keys(start: Start, gateway: Enter) -> None:  # noqa: F811
    first, _ = two(start)
    client = gateway(first)
    client.register(Tally, replicas=1)
    assert sorted(client.spawn("Tally.next").result(timeout=WAIT_S) for _ in range(10)) == list(range(1, 11))
    status = client.status()
    assert (status["executors"], status["gateway"]) == ([], address_of(first))
    client.mput({f"key-{n}": n for n in range(50)})
    with first.client() as own:
        assert [node["executors"] for node in own.status()["nodes"]] == [1], "the other node, and not the gateway"
        assert own.status()["store"], "its workers"
        assert own.mget([f"key-{n}" for n in range(50)]) == list(range(50))


def test_exception_of_a_function_arrives_through_a_gateway(start: Start, gateway: Enter) -> None:  # noqa: F811
    client = gateway(start("a", "--listen", "tcp://127.0.0.1:0"))
    client.register(lambda: {}["missing"], name="broken")
    with pytest.raises(KeyError, match="missing"):
        client.call("broken")


def test_clients_with_the_same_address_and_secret_share_a_gateway(start: Start, gateway: Enter) -> None:  # noqa: F811
    first = start("a", "--listen", "tcp://127.0.0.1:0")
    one, other = gateway(first), gateway(first)
    pid = one.status()["pid"]
    assert other.status()["pid"] == pid
    one.close()
    other.register(FUNCTIONS[2])
    assert other.call("increment", 1) == 2
    with first.client() as own:
        known = own.status()["clients"]
    assert known == [os.getpid()], "a gateway is no client with a process of this host"


def test_program_connects_with_url_and_token(start: Start, directory: Path) -> None:  # noqa: F811
    first = start("a", "--listen", "tcp://127.0.0.1:0")
    code = (
        "import os, sys, cloudburst as cb\n"
        "cb.connect(sys.argv[1], token=os.environ['TOKEN'])\n"
        "cb.register(lambda x: x * x, name='square')\n"
        "print(cb.call('square', 12), list(cb.map('square', range(5))))\n"
    )
    environment = {
        **os.environ, "CLOUDBURST_HOST": "d", "CLOUDBURST_DIR": str(directory / "d"), "TOKEN": token_of(first),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", code, address_of(first)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (ran.stdout, ran.stderr) == ("144 [0, 1, 4, 9, 16]\n", "")


def test_gateway_goes_on_at_other_nodes_when_the_one_it_was_told_of_is_gone(
    start: Start, gateway: Enter  # noqa: F811
) -> None:
    first, second = two(start)
    client = gateway(first)
    for function in FUNCTIONS:
        client.register(function)
    eventually(lambda: len([one for one in client.status()["nodes"] if one["executors"]]) == 2, "both nodes are met")
    assert set(Counter(client.map("place_after", [0.03] * 10))) == {"a", "b"}
    first.stop(signal.SIGTERM)
    assert [client.call("place_after", 0.01) for _ in range(5)] == ["b"] * 5
    second.stop(signal.SIGTERM)


def test_nodes_forget_a_gateway_that_is_killed(start: Start, gateway: Enter) -> None:  # noqa: F811
    first = start("a", "--listen", "tcp://127.0.0.1:0")
    client = gateway(first)
    client.register(FUNCTIONS[2])
    assert client.call("increment", 1) == 2
    pid = client.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    assert client.call("increment", 2) == 3, "another was started"
    with first.client() as own:
        eventually(lambda: len(own.status()["guests"]) == 1, "the first is forgotten")


# -- what can be wrong


def test_token_that_is_missing_short_or_another_is_said_with_the_address(
    start: Start, gateway: Enter  # noqa: F811
) -> None:
    address = address_of(start("a", "--listen", "tcp://127.0.0.1:0"))
    with pytest.raises(cb.RequestError, match=rf"{address} is on another host: connect\(…, token=…\)"):
        cb.connect(address)
    with pytest.raises(cb.RequestError, match="at least 16 bytes; this one has 5"):
        cb.connect(address, token="short")
    with pytest.raises(cb.RequestError, match=f"the node at {address} has another secret"):
        cb.connect(address, token="x" * 64)


def test_address_where_nobody_listens_or_somebody_else_does_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudburst.config.INTRODUCTION_S", 0.2)
    token = "x" * 64
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(cb.NodeLost, match=f"no node can be reached at {address}: Connection refused") as lost:
            cb.connect(address, token=token)
        assert lost.value.definite
        taken.listen()
        with pytest.raises(cb.ProtocolError, match=f"what listens at {address} did not answer within 0.2 s"):
            cb.connect(address, token=token)
    for wrong in ("tcp://127.0.0.1", "tcp://:5", "tcp://127.0.0.1:0", "tcp://127.0.0.1:99999", "http://127.0.0.1:1"):
        with pytest.raises(cb.RequestError, match="is no address of a node"):
            cb.connect(wrong, token=token)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (NodeRecord(5, "h", "/d", ("tcp:",), ("tcp:",), protocol=99, release="7.1"), "version 7.1 .*protocol 99"),
        (b"\x97\x05\xa1h\xa2/d\x90\x90\xa0\x07", "an older version of cloudburst"),
        (NodeRecord(5, "h", "/d", ("tcp:",), ("tcp:",), python="cpython 3.99"), "runs cpython 3.99, this process runs"),
        (b"junk", "what answers at .* is no node of this kind"),
    ],
)
def test_node_of_another_version_is_named(
    start: Start, gateway: Enter, monkeypatch: pytest.MonkeyPatch, record: NodeRecord | bytes, message: str  # noqa: F811
) -> None:
    first = start("a", "--listen", "tcp://127.0.0.1:0")
    told = record if isinstance(record, bytes) else record.pack()
    monkeypatch.setattr(introduction, "Control", lambda *_: _Says(told))
    kind = cb.ProtocolError if record == b"junk" else cb.EnvironmentMismatch
    with pytest.raises(kind, match=f"{address_of(first)} .*{message}" if record != b"junk" else message):
        cb.connect(address_of(first), token=token_of(first))


class _Says(Control):
    """A node that says something else about itself than those that can be started here."""

    def __init__(self, record: bytes) -> None:
        self.record = record

    def ask(self, *_: object) -> bytes:
        return self.record

    def close(self) -> None:
        pass


def test_old_record_is_told_from_a_new_one() -> None:
    assert NodeRecord.unpack(b"\x97\x05\xa1h\xa2/d\x90\x90\xa0\x07").protocol == 1
    new = NodeRecord(5, "h", "/d", (), pid=7, release="1.2", python="cpython 3.11")
    assert NodeRecord.unpack(new.pack()) == new
    assert control.comes_from_afar(control.node_identity(5, 1, "tcp://h:1"))
    assert Secret("x" * 16).lane_key != Secret("y" * 16).lane_key
