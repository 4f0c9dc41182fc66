"""A real node of its own for the tests of this directory, with real processes and a real store."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cloudburst as cb
from cloudburst.processes import wait_for_end
from tests.cloudburst import samples

WAIT_S = 20.0


class Post:
    """Where functions under test report to: one line of words for each event, waited for, never polled."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "post.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(WAIT_S)

    def wait(self) -> list[str]:
        """Return the words of the next event."""
        return self._socket.recv(4096).decode().split()

    def close(self) -> None:
        self._socket.close()


def release(address: str, word: str) -> None:
    """Send a word to a function that waits for one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(word.encode(), address)


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process that is not ours, by its pidfd."""
    assert wait_for_end(pid, "it", WAIT_S), f"process {pid} has not ended"


@contextmanager
def every_executor_held(client: cb.Client, post: Post) -> Iterator[list[cb.Future]]:
    """Within this block each executor runs a call that does not end, so that every other call waits."""
    held = [client.options(retries=0).spawn("hold", post.address) for _ in client.status()["executors"]]
    for _ in held:
        assert post.wait()[0] == "begun"
    try:
        yield held
    finally:
        for future in held:
            if future.cancel():
                assert post.wait()[0] == "stopped"


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path short enough for sockets."""
    made = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def post(directory: Path) -> Iterator[Post]:
    opened = Post(directory)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """The private directories of this session's node and store."""
    made = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
    before = {name: os.environ.get(name) for name in ("CLOUDBURST_DIR", "ANNA_DIR")}
    os.environ |= {"CLOUDBURST_DIR": str(made / "node"), "ANNA_DIR": str(made / "store")}
    yield made
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def node(home: Path) -> Iterator[cb.Client]:
    """A client of a node with two executors, on which the samples are registered under their own names."""
    client = cb.connect(executors=2)
    for function in samples.ALL:
        client.register(function)
    yield client
    client.close()


@pytest.fixture
def client(node: cb.Client) -> cb.Client:
    """The client, with every executor idle and nothing of an earlier test under way."""
    for _ in range(2):
        assert node.call("nothing") is None
    return node
