"""A node's own keys are nowhere that its users' functions, who run as the same user, can read: no file, no process.

The node is the one that `cb up` has on a host: its agent is told the keys over standard input. What runs here runs
without capabilities, as it does for anybody but root.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509

import cloudburst as cb
from anna.authority import Issuer
from anna.gate import Right
from anna.keys import Keys
from cloudburst import local, sandbox
from cloudburst.burst import reaping
from cloudburst.membership import Membership
from cloudburst.sandbox import Sandbox
from cloudburst.secret import Secret
from cloudburst.shape import Shape
from cloudburst.signing import Signatures, unwrap
from tests.anna.local.processes import eventually
from tests.cloudburst.test_lifecycle import all_gone

ROOT: Final = Path(__file__).parents[3]
WAIT_S: Final = 60.0
ISSUER: Final = Issuer.fresh()

VICTIM: Final = """
import os, sys
kept = sys.stdin.readline().encode()
fd = os.memfd_create("kept")
os.write(fd, kept)
print("ready", flush=True)
sys.stdin.read()
"""


def places_of(first: str, second: str, pids: list[int], directories: list[str]) -> list[str]:
    """Return where the two parts of a secret stand one behind the other, of what a function can read."""
    import os
    import re

    one, two = first.encode(), second.encode()

    def holds(data: bytes) -> bool:
        return any(data.startswith(two, found.end()) for found in re.finditer(re.escape(one), data))

    def file_holds(path: str) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            return holds(os.pread(fd, 1 << 20, 0))
        except OSError:
            return False
        finally:
            os.close(fd)

    def memory_holds(pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
                for line in maps:
                    start, end = (int(one, 16) for one in line.split()[0].split("-"))
                    if " rw" in line and end - start < 1 << 28:
                        try:
                            memory.seek(start)
                            if holds(memory.read(end - start)):
                                return True
                        except (OSError, OverflowError):
                            pass
        except OSError:
            pass
        return False

    found = [
        os.path.join(place, name)
        for directory in directories
        for place, _, names in os.walk(directory)
        for name in names
        if file_holds(os.path.join(place, name))
    ]
    for pid in [*pids, os.getpid(), os.getppid()]:
        found += ["memory"] * memory_holds(pid)
        try:
            open_there = [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
            found += [f"descriptor of {pid}" for path in open_there if file_holds(path)]
        except OSError:
            pass
    return found


def as_anybody() -> list[str]:
    """Return what a command begins with that is to run without capabilities."""
    if os.geteuid() != 0:
        return []
    words = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    if shutil.which("setpriv") is None or subprocess.run([*words, "true"], check=False).returncode != 0:
        pytest.skip("LOUD: setpriv is not here, or may not drop capabilities; root reads everything")
    return words


class Agent:
    """The program that `cb up` runs on a host, and what it says."""

    def __init__(self, name: str, files: dict[str, str]) -> None:
        self.directory = Path(f"/tmp/{reaping.PREFIX}{name}-host")
        pipe = subprocess.PIPE
        command = [*as_anybody(), sys.executable, "-c", "from cloudburst.burst.agent import main; main()"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.secret = Secret.fresh().text
        order = {"run": name, "name": "host", "join": "", "address": "127.0.0.1", "executors": 1, "least": None}
        order |= {"most": None, "workers": 1, "secret": self.secret, "until": 0, "keys": files}
        self.tell(order)
        self.address = self.hear("address")["address"]

    def tell(self, said: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(said) + "\n")
        self.process.stdin.flush()

    def hear(self, wanted: str) -> dict[str, Any]:
        """Return the next line that has something, while saying that somebody is here."""
        assert self.process.stdout is not None
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            self.tell({"beat": 1})
            if select.select([self.process.stdout], [], [], 1.0)[0]:
                said: dict[str, Any] = json.loads(self.process.stdout.readline())
                assert "fault" not in said, said
                if wanted in said:
                    return said
        raise AssertionError(f"it has not said {wanted}")

    def client(self) -> cb.Client:
        lease = local.join(self.directory / "node")
        assert lease is not None
        return cb.Client(lambda: Membership(lease))

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(WAIT_S)
        self.process.stdout.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(f"{os.getpid()}k", ISSUER.issue("host", Right.ADMIN, timedelta(hours=1)))
    yield made
    made.end()
    eventually(lambda: not made.directory.exists(), "the node and its keys are gone")


def shown_by(pids: list[int]) -> Iterator[bytes]:
    """Return arguments and environments of processes, as far as they can be seen."""
    for pid in pids:
        for name in ("cmdline", "environ"):
            with suppress(PermissionError):
                yield Path(f"/proc/{pid}/{name}").read_bytes()


def logs_in(directory: Path) -> list[bytes]:
    """Return what a node and its store have written, of which there is something."""
    found = [path.read_bytes() for path in directory.rglob("log")]
    assert found
    return found


def halves(files: dict[str, str]) -> tuple[str, str]:
    """Return two parts of the line of a private key that is in no other."""
    line = files["key.pem"].splitlines()[2]
    return line[:30], line[30:]


def shown_at(address: str) -> int:
    """Return the number of the certificate that is shown there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), WAIT_S) as stream, context.wrap_socket(stream) as shown:
        return x509.load_der_x509_certificate(shown.getpeercert(binary_form=True) or b"").serial_number


def test_functions_find_the_nodes_key_in_no_file_and_no_process(agent: Agent) -> None:
    files = ISSUER.issue("host", Right.ADMIN, timedelta(hours=1))
    agent.tell({"keys": files})  # as they are renewed, and so that these are known
    number = x509.load_pem_x509_certificate(files["certificate.pem"].encode()).serial_number
    first, second = halves(files)
    victim = subprocess.Popen(
        [*as_anybody(), sys.executable, "-c", VICTIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert victim.stdin is not None
    assert victim.stdout is not None
    try:
        victim.stdin.write(first + second + "\n")
        victim.stdin.flush()
        assert victim.stdout.readline() == "ready\n"
        with agent.client() as client:

            def taken_up() -> bool:
                agent.tell({"beat": 1})
                return shown_at(agent.address) == number

            eventually(taken_up, "the relay shows the newer keys")
            client.register(places_of)
            client.register(lambda path: os.listdir(path), name="names")
            client.register(lambda: dict(os.environ), name="surroundings")
            assert client.call("names", str(agent.directory / "node" / "code")) != [], "its own keys are there"
            own = reaping.processes_of(str(agent.directory))
            assert client.status()["relay_pid"] in own
            found = client.call("places_of", first, second, [*own, agent.process.pid], [str(agent.directory)])
            assert found == []
            own_words = [line for line in files["key.pem"].splitlines() if len(line) > 20 and "KEY" not in line]
            for shown in (*shown_by([*own, agent.process.pid]), *logs_in(agent.directory)):
                assert not [word for word in (*own_words, agent.secret) if word.encode() in shown]
            environment = client.call("surroundings")
            assert environment["ANNA_KEYS"] == str(agent.directory / "node" / "code")
            assert not [word for word in (*own_words, agent.secret) if word in str(environment)]
            found = client.call("places_of", first, second, [victim.pid], [])
            assert f"descriptor of {victim.pid}" in found, "a process that is not closed is read"
            record = unwrap(bytes(client._joined().store(system=True).get(b"\0cb/record/places_of")))
        place = agent.directory / "node" / "code"
        Signatures(place).check(*record)  # signed with keys that are nowhere
    finally:
        victim.stdin.close()
        victim.wait(WAIT_S)
        victim.stdout.close()


def test_keys_in_memory_are_replaced_under_who_has_them_and_never_read_by_halves() -> None:
    """In a program of its own: whoever has such keys closes itself."""
    program = """
import sys, threading
from datetime import timedelta
from anna.authority import Issuer
from anna.gate import Right
from anna.keymemory import Held
from anna.keys import Keys
from cloudburst.signing import Signatures, unwrap

issuer = Issuer.fresh()
several = [issuer.issue("host", Right.ADMIN, timedelta(days=1)) for _ in range(2)]
held, over = Held(several[0]), threading.Event()

def replace():
    number = 0
    while not over.is_set():
        number += 1
        held.renew(several[number % 2])

thread = threading.Thread(target=replace)
thread.start()
try:
    for _ in range(10):
        assert Keys(held.place).holder.name == "host"
        own = Signatures(held.place)
        own.check(*unwrap(own.sign(b"record")))
finally:
    over.set()
    thread.join()
print(sorted(held.lesser))
Keys("memory:77")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_S, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "['code/authorities.pem', 'code/certificate.pem', 'code/key.pem']\n", done.stderr
    assert "BadKeys: this process was not given the keys at descriptor 77" in done.stderr


def read_from(path: str) -> str:
    try:
        return f"{len(Path(path).read_text())} bytes"
    except OSError as error:
        return type(error).__name__


def listed(path: str) -> list[str]:
    return sorted(os.listdir(path))


def test_sandbox_shows_nothing_of_the_operators_keys_but_the_lesser_ones(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory that is none of those which every sandbox empties."""
    try:
        sandbox.require(Sandbox())
    except cb.EnvironmentMismatch as fault:
        pytest.skip(f"LOUD: no sandbox can be had here: {fault}")
    from anna import authority

    place = Path(os.environ.get("KEYS_PLACE", "/opt"), f"cb-keys-{os.getpid()}")
    try:
        place.mkdir(mode=0o700)
    except OSError as fault:
        pytest.skip(f"LOUD: no directory can be made in {place.parent}: {fault}")
    try:
        authority.found(place / "keys")
        for name, value in (("CLOUDBURST_DIR", "node"), ("ANNA_DIR", "store")):
            monkeypatch.setenv(name, str(directory / value))
        shape = Shape.of(1)
        lease = local.ensure_shape(directory / "node", shape, sandbox="bwrap", keys=Keys(place / "keys"))
        with cb.Client(lambda: Membership(lease)) as client:
            client.register(read_from)
            client.register(listed)
            assert client.call("listed", str(place / "keys")) == ["code"]
            assert client.call("read_from", str(place / "keys" / "key.pem")) == "FileNotFoundError"
            assert client.call("read_from", str(place / "keys" / "authority-key.pem")) == "FileNotFoundError"
            assert client.call("read_from", str(place / "keys" / "code" / "key.pem")).endswith("bytes")
        all_gone(directory)
    finally:
        with suppress(OSError):
            shutil.rmtree(place)


