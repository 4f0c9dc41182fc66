"""What somebody reads who hears all that goes between hosts: with keys nothing, and without them everything.

Two hosts with a node each, and one with a client alone, are network namespaces on a bridge; packet sockets on all of
its ports hear every frame. The one rule: the same program runs with keys and without, so that what is looked for is
known to go by.
"""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from anna import authority
from anna.gate import Right
from cloudburst.secret import Secret
from tests.lab import hosts
from tests.lab.hosts import Host, Lab

ROOT: Final = Path(__file__).parents[3]
ALL_PROTOCOLS: Final = 3
BUFFER_BYTES: Final = 256 * 1024 * 1024
WAIT_S: Final = 90.0
LARGE: Final = 20_000
MARKS: Final = ("argument", "result", "large", "value", "message", "record")

PROGRAM: Final = f"""
import os, sys, time
import numpy as np
import cloudburst as cb

def mark(what, count=1):
    return f"MARK-{{what}}-of-the-users;" * count

def answer(asked):
    return asked.replace("argument", "result")

def listen():
    return cb.ctx().recv(timeout=30)

def tell(to, said):
    cb.ctx().send(to, said, timeout=30)

client = cb.connect(sys.argv[1], token=os.environ.get("TOKEN"))
end = time.monotonic() + 30
while sum(bool(node["executors"]) for node in client.status()["nodes"]) < 2:
    assert time.monotonic() < end, client.status()["nodes"]
    time.sleep(0.05)
answer.__doc__ = mark("record")
for function in (answer, listen, tell):
    client.register(function)
client.register(lambda array: int(array.size), name="size")
assert [client.call("answer", mark("argument", 9)) for _ in range(4)] == [mark("result", 9)] * 4
large = np.frombuffer(mark("large", {LARGE}).encode(), np.uint8)
assert [client.spawn("size", large).result(timeout=30) for _ in range(4)] == [large.size] * 4
for number in range(10):
    client.put(f"key-{{number}}", mark("value", 9))
    assert client.get(f"key-{{number}}") == mark("value", 9)
listening = client.spawn("listen")
client.spawn("tell", listening.id, mark("message", 9)).result(timeout=30)
assert listening.result(timeout=30) == mark("message", 9)
client.close()
print("all was as it should be")
"""


@cache
def why_no_lab() -> str | None:
    return hosts.why_not()


@pytest.fixture
def bridge() -> Iterator[Lab]:
    if (reason := why_no_lab()) is not None:
        pytest.skip(f"NO LAB HERE: {reason}")
    with hosts.lab("a", "b", "c") as made:
        yield made


class Ear:
    """Hears every frame that arrives at a host, or leaves it."""

    def __init__(self, host: Host) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, BUFFER_BYTES)  # SO_RCVBUFFORCE
        self._socket.bind(("eth0", 0))
        self._heard: list[bytes] = []
        self._over, self._end = os.pipe()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            ready, _, _ = select.select([self._socket, self._over], [], [])
            if self._socket in ready:
                self._heard.append(self._socket.recv(1 << 17))
            elif ready:
                return

    def stop(self) -> bytes:
        """Return all that it has heard, frame after frame."""
        os.close(self._end)
        self._thread.join()
        self._socket.close()
        os.close(self._over)
        return b"".join(self._heard)


def environment(host: Host, **others: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name != "ANNA_KEYS"}
    own = {"CLOUDBURST_HOST": host.name, "CLOUDBURST_DIR": f"{host.directory}/for-{host.name}", "PYTHONPATH": str(ROOT)}
    return plain | own | others


@contextmanager
def node(host: Host, *words: str, **said: Any) -> Iterator[str]:
    """Run a node on a host; give the address at which others join it."""
    command = [sys.executable, "-m", "cloudburst", "node", "--dir", f"{host.directory}/{host.name}", "--executors", "1"]
    command += ["--workers", "1", "--listen", f"tcp://{host.address}:0", *words]
    process = host.start(*command, stderr=subprocess.PIPE, env=environment(host, **said), cwd=ROOT)
    try:
        yield address_said_by(process)
    finally:
        process.terminate()
        process.communicate(timeout=WAIT_S)


def address_said_by(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said, end = "", time.monotonic() + WAIT_S
    while (found := re.search(r"--join (tcp://[\d.]+:\d+) --", said)) is None:
        assert select.select([process.stderr], [], [], max(0.0, end - time.monotonic()))[0], said
        data = os.read(process.stderr.fileno(), 4096).decode()
        assert data, said
        said += data
    return found.group(1)


def heard_of_it(lab: Lab, words: tuple[str, ...], node_said: dict[str, str], client_said: dict[str, str]) -> bytes:
    """Return all frames between the hosts while two nodes and a client make one another's acquaintance, and work."""
    a, b, c = lab["a"], lab["b"], lab["c"]
    ears = [Ear(host) for host in (a, b, c)]
    try:
        with node(a, *words, **node_said) as address, node(b, *words, "--join", address, **node_said):
            program = c.start(
                sys.executable, "-c", PROGRAM, address, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
                env=environment(c, **client_said),
            )  # fmt: skip
            said, errors = program.communicate(timeout=WAIT_S)
            assert (said, program.returncode) == ("all was as it should be\n", 0), errors
    finally:
        heard = b"".join(ear.stop() for ear in ears)
    return heard


def mark(what: str) -> bytes:
    return f"MARK-{what}-of-the-users;".encode()


def test_with_keys_nobody_on_the_bridge_reads_anything(bridge: Lab, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    authority.found(keys)
    authority.issue(keys, tmp_path / "code", "alice", Right.CODE)
    heard = heard_of_it(bridge, (), {"ANNA_KEYS": str(keys)}, {"ANNA_KEYS": str(tmp_path / "code")})
    assert len(heard) > 4 * LARGE * len(mark("large")), "the large values went by"
    assert [what for what in MARKS if mark(what) in heard] == []
    assert b"MARK-" not in heard


def test_without_keys_everything_is_read_on_the_bridge(bridge: Lab, tmp_path: Path) -> None:
    """Else the other test would find nothing whatever went by."""
    secret = Secret.fresh()
    words = ("--insecure", "--secret", str(secret.keep(tmp_path)))
    heard = heard_of_it(bridge, words, {"CLOUDBURST_LAB": "1"}, {"TOKEN": secret.text})
    assert [what for what in MARKS if mark(what) not in heard] == []
