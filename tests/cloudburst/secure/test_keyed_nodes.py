"""Two nodes under keys: all works between hosts, and one port of each is open, under TLS, to who has the right."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import anna
import cloudburst as cb
from anna.gate import WANTS_KEYS
from anna.keys import Keys
from anna.sealing import READ_BYTES, Seal
from cloudburst import frames, openings
from cloudburst.client import Client
from cloudburst.control import NEWS, node_identity, pack_request
from cloudburst.gateways import enter
from cloudburst.membership import Membership
from cloudburst.neighbours import NodeRecord
from cloudburst.openings import GUESTS, NODES, PORTER, RECORD
from cloudburst.pickling import python_tag
from tests.anna.local.processes import eventually
from tests.cloudburst.conftest import wait_until_gone
from tests.cloudburst.secure.conftest import Pair, SomeKeys
from tests.cloudburst.test_far_nodes import Program, ports_of
from tests.cloudburst.test_nodes import FUNCTIONS, WAIT_S

APPLICATION_DATA, ALERT_BYTES = 0x17, 2 + 17
"""An alert has 2 bytes; its kind and the seal make 17."""

REFUSED_S = 5.0
"""How long anything that is refused may wait; no test waits for as long."""


@pytest.fixture
def inside(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client on the first node's host."""
    monkeypatch.setenv("ANNA_KEYS", str(pair.keys.code))
    with pair.first.client() as client:
        for function in FUNCTIONS:
            client.register(function)
        yield client


@pytest.fixture
def guest(pair: Pair, tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client on a third host, with keys of the right `code`."""
    monkeypatch.setenv("CLOUDBURST_HOST", "c")
    monkeypatch.setenv("CLOUDBURST_DIR", str(directory / "c"))
    keys = Keys(pair.keys.code)
    client = Client(lambda: Membership(enter(pair.address, None, 0, keys)))
    pid = client.status()["pid"]
    yield client
    client.close()
    wait_until_gone(pid)
    assert [one for one in directory.iterdir() if one.name.startswith("c")] == [], "it has left nothing"


def dialled(address: str) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=REFUSED_S)


def rest_of(stream: socket.socket) -> bytes:
    """Return all that comes until the other side closes. Raises TimeoutError when it does not."""
    said = b""
    try:
        while data := stream.recv(READ_BYTES):
            said += data
    except ConnectionError:
        pass
    return said


def records_in(heard: bytes) -> list[tuple[int, int]]:
    """Return (kind, bytes) of each TLS record; from the keys on, all are of the kind of data."""
    found, at = [], 0
    while at < len(heard):
        found.append((heard[at], int.from_bytes(heard[at + 3 : at + 5])))
        at += 5 + found[-1][1]
    return found


def opened(address: str, keys: Path, to: str) -> bytes:
    """Open a stream to a name with keys; return what is answered. Raises RequestError, NotAdmitted."""
    with dialled(address) as stream:
        seal = Seal(Keys(keys), address)
        while not seal.shake():
            stream.sendall(seal.take())
            seal.feed(stream.recv(READ_BYTES))
        seal.write(openings.pack({"to": to}))
        stream.sendall(seal.take())
        said = b""
        while (split := openings.split(said, openings.ANSWER_BYTES_MAX)) is None:
            data = stream.recv(READ_BYTES)
            assert data, "it was closed without a word"
            seal.feed(data)
            said += seal.read()
        return openings.unpack_answer(split[0])


def test_calls_graphs_messages_and_large_values_go_to_another_host(inside: Client) -> None:
    page = inside._joined().page
    [far] = [page.home(slot)[3] for slot in page.ready() if page.home(slot)[3]]
    assert re.fullmatch(r"tls:127\.0\.0\.1:\d+/e0-1\.sock", far)
    assert set(Counter(inside.map("place_after", [0.03] * 20))) == {"a", "b"}
    inside.dag("where", {"x": [], "y": [], "all": ["x", "y"]},
               functions={"x": "place_after", "y": "place_after", "all": "names"})  # fmt: skip
    assert sorted(inside.call("where", {"x": (0.1,), "y": (0.1,)})) == ["a", "b"]
    sent = [inside.spawn("grown", np.full(1_000_000, float(n)), 1.0, 0.1) for n in range(8)]
    found = [one.result(timeout=WAIT_S) for one in sent]
    assert {place for place, _ in found} == {"a", "b"}
    assert [float(array[-1]) for _, array in found] == [n + 1.0 for n in range(8)]


def test_guest_with_the_right_code_calls_and_registers_from_a_third_host(pair: Pair, guest: Client) -> None:
    for function in FUNCTIONS:
        guest.register(function)
    assert [guest.call("increment", n) for n in range(20)] == list(range(1, 21))
    eventually(lambda: len([one for one in guest.status()["nodes"] if one["executors"]]) == 2, "both nodes are met")
    assert set(guest.map("place_after", [0.03] * 20)) == {"a", "b"}
    guest.put("n", 41)
    assert guest.call("increment", cb.Ref("n")) == 42
    place, array = guest.call("grown", np.ones(100_000), 1.0)
    assert (place in ("a", "b"), array[-1]) == (True, 2.0)
    with pair.first.client() as own:
        assert len(own.status()["guests"]) == 1


def test_only_relays_and_stores_listen_for_others(pair: Pair, inside: Client) -> None:
    for one in (pair.first, pair.second):
        with one.client() as client:
            status = client.status()
        owned = {pid: ports_of(pid) for pid in [status["porter_pid"], status["cache_pid"], *pids(status)]}
        assert set(map(tuple, owned.values())) == {()}, "neither porter, nor cache, nor executor"
        assert len(ports_of(status["relay_pid"])) == 1
        assert not (one.directory / "secret").exists(), "there is none to be shared"


def pids(status: dict[str, list[dict[str, int]]]) -> list[int]:
    return [row["pid"] for row in status["executors"]]


def test_relay_that_is_killed_is_replaced_and_everything_goes_on(pair: Pair, inside: Client) -> None:
    before = inside.status()["relay_pid"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: inside.status()["relay_pid"] not in (0, before), "there is another")
    end = time.monotonic() + WAIT_S
    while set(inside.map("place_after", [0.03] * 20)) != {"a", "b"}:
        assert time.monotonic() < end, "the other host is not used any more"


# -- what is refused


def test_who_has_no_keys_reads_what_to_do(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(cb.RequestError, match=rf"{pair.address} takes only who shows keys: give keys=DIR"):
        enter(pair.address, "x" * 64)
    monkeypatch.delenv("ANNA_KEYS", raising=False)
    with pytest.raises(cb.RequestError, match=r"where it has keys, connect\(…, keys=…\) or \$ANNA_KEYS"):
        cb.connect(pair.address).status()


def test_keys_of_another_cluster_are_refused_by_both_sides(pair: Pair) -> None:
    clusters = rf"these keys are of cluster {Keys(pair.keys.other).cluster}; he is of cluster"
    with pytest.raises(cb.RequestError, match=rf"{pair.address} cannot be used with these keys: .*{clusters}"):
        enter(pair.address, None, 0, Keys(pair.keys.other))


def test_keys_with_the_right_data_call_nothing_and_say_what_it_takes(pair: Pair) -> None:
    told = f"the node at {pair.address} says: the keys of data have the right data; to call or register functions needs"
    with pytest.raises(cb.RequestError, match=told):
        enter(pair.address, None, 0, Keys(pair.keys.data))
    for name in (NODES, GUESTS, PORTER, RECORD, "e0-1.sock", "control.sock"):
        with pytest.raises(cb.RequestError, match=r"the keys of data have the right data|there is no 'control.sock'"):
            opened(pair.address, pair.keys.data, name)


def test_keys_with_the_right_code_are_no_node(pair: Pair, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(cb.RequestError, match="the keys of code have the right code; to be one of its nodes needs"):
        opened(pair.address, pair.keys.code, NODES)
    stranger = Program(directory / "c", "c", "--keys", str(pair.keys.code), "--join", pair.address)
    stranger.read_until("(the keys of code have the right code; to be a node needs admin)")
    assert stranger.process.wait(WAIT_S) != 0
    stranger.stop()


@pytest.mark.parametrize("to", [GUESTS, PORTER, "e0-1.sock"])
def test_guest_is_led_to_what_the_right_code_allows(pair: Pair, to: str) -> None:
    assert opened(pair.address, pair.keys.code, to) == b""


@pytest.mark.parametrize("name", ["control.sock", "lease.sock", "../b/control.sock", "e0-1.sock/", "e9-9.sock"])
def test_nobody_is_led_to_other_sockets(pair: Pair, name: str) -> None:
    if "/" in name:
        with pytest.raises(AssertionError, match="closed without a word"):
            opened(pair.address, pair.keys.admin, name)
    else:
        with pytest.raises(cb.RequestError, match=r"there is no|is not there"):
            opened(pair.address, pair.keys.admin, name)


def test_plain_bytes_are_answered_with_one_alert_and_run_nothing(pair: Pair, inside: Client) -> None:
    call = frames.hello(5, python_tag()) + frames.call(1, b"increment", b"", invocation=(5, 1), timeout_us=10**7)
    request = pack_request("functions", {})
    for said in (call, openings.pack({"to": GUESTS}), NEWS + request, b"GET / HTTP/1.1\r\n\r\n"):
        with dialled(pair.address) as stream:
            stream.sendall(said)
            assert rest_of(stream) == WANTS_KEYS
    assert inside.call("increment", 1) == 2


def test_recorded_bytes_that_are_sent_again_are_not_understood(pair: Pair, inside: Client) -> None:
    """What a client has said, from its first byte to its last, is a recording to whoever hears it on the way."""
    recorded = []
    with dialled(pair.address) as stream:
        seal = Seal(Keys(pair.keys.code), pair.address)
        done = False
        while not done:
            done = seal.shake()
            if said := seal.take():
                recorded.append(said)
                stream.sendall(said)
            if not done:
                seal.feed(stream.recv(READ_BYTES))
        seal.write(openings.pack({"to": RECORD}))
        recorded.append(seal.take())
        stream.sendall(recorded[-1])
        answer = b""
        while not answer:
            seal.feed(stream.recv(READ_BYTES))
            answer = seal.read()
    with dialled(pair.address) as again:
        for said in recorded:
            again.sendall(said)
        heard = rest_of(again)
    assert str(pair.first.directory).encode() in answer, "who said it first was told"
    assert records_in(heard)[-1] == (APPLICATION_DATA, ALERT_BYTES), "the last that is said is an alert"


def test_keys_are_not_shown_to_who_listens_without(some_keys: SomeKeys, directory: Path) -> None:
    plain = Program(directory / "p", "p", "--listen", "tcp://127.0.0.1:0")
    try:
        address = plain.read_until(r"--join (tcp://127\.0\.0\.1:\d+) --secret")
        with pytest.raises(cb.RequestError, match=r"(TLS|handshake): it was started without --keys"):
            enter(address, None, 0, Keys(some_keys.code))
    finally:
        plain.stop()


def test_guest_speaks_for_itself_alone(pair: Pair, inside: Client) -> None:
    """Keys of the right code could have a node be forgotten by saying that it ends."""
    from cloudburst.neighbourhood import Neighbourhood
    from cloudburst.neighbours import Neighbours

    node = Neighbourhood.__new__(Neighbourhood)
    node.core = Neighbours(1, "here", 4, 8)
    node.core.found([NodeRecord(2, "there", "/run/2", ("tcp://h:1",))], 0)
    with pytest.raises(cb.RequestError, match="a guest is not node 0000000000000002"):
        node.hear(node_identity(2, 1, "tcp://h:1", guest=True), "part", {})
    record = NodeRecord(3, "there", "/run/3", ("tcp://h:2",)).pack()
    with pytest.raises(cb.RequestError, match="a guest is not one of the nodes"):
        node.hear(node_identity(3, 1, "tcp://h:1", guest=True), "meet", {"record": record})


def test_neither_arguments_of_processes_nor_logs_show_a_key(pair: Pair, inside: Client) -> None:
    secret = "".join((pair.keys.admin / "key.pem").read_text().splitlines()[1:-1])
    shown = subprocess.run(["ps", "-eo", "args", "ww"], capture_output=True, text=True, check=True).stdout
    said = pair.first.said + pair.second.said
    logs = "".join(path.read_text() for path in pair.first.directory.parent.rglob("log"))
    for piece in (secret[:40], secret[40:80], "PRIVATE KEY"):
        assert piece not in shown + said + logs


def test_store_that_is_dialled_without_keys_says_so_at_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANNA_KEYS", raising=False)
    with anna.connect(f"unix:{pair.first.directory}-store/w0.sock") as near:
        addresses = [one for worker in near.view.workers for one in worker.addresses if one.startswith("tcp")]
    assert len(addresses) == 2
    for address in addresses:
        with pytest.raises(anna.NotAdmitted, match="takes only who shows keys"):
            anna.connect(address)
        for keys in (pair.keys.other,):
            with pytest.raises(anna.NotAdmitted):
                anna.connect(address, keys=keys)
