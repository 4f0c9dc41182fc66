"""Real workers in processes of their own, at Unix and TCP sockets that the system chooses."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import pytest

from anna.messages import NodeInfo, View, WorkerInfo
from anna.server import serve_worker


@dataclass
class RunningWorkers:
    """A node's workers, forked from the test's process."""

    view: View
    listeners: list[list[socket.socket]]
    pids: list[int] = field(default_factory=list)
    views: list[socket.socket] = field(default_factory=list)
    fillers: list[socket.socket] = field(default_factory=list)
    keys: str | None = None

    def start(self, place: int) -> None:
        """Fork the worker at `place`, on its listening sockets."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for other in [*self.views, ours]:
                    other.close()
                serve_worker(self.view, place, self.listeners[place], theirs, keys=self.keys)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        for old in self.views[place : place + 1]:
            old.close()
        self.pids[place : place + 1] = [pid]
        self.views[place : place + 1] = [ours]

    def kill(self, place: int, number: int = signal.SIGKILL) -> int:
        """Signal the worker at `place`, wait for its end, and return its wait status."""
        os.kill(self.pids[place], number)
        return os.waitpid(self.pids[place], 0)[1]

    def vanish(self, place: int) -> None:
        """Kill the worker at `place`, and let every attempt to reach it be refused."""
        for listener in self.listeners[place]:
            listener.shutdown(socket.SHUT_RDWR)
        self.kill(place)

    def blackhole(self, place: int) -> None:
        """Kill the worker at `place`, and let every attempt to reach it hang, as at a machine that is not there."""
        self.kill(place)
        unix, tcp = self.listeners[place]
        unix.shutdown(socket.SHUT_RDWR)
        tcp.listen(0)  # one connection may wait to be accepted; once it does, the kernel drops all others
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(tcp.getsockname())
            self.fillers.append(filler)

    def tell(self, place: int, view: View) -> None:
        """Give the worker at `place` a newer view."""
        self.views[place].sendall(msgpack.packb(view.to_wire()))

    def unix(self, place: int = 0) -> str:
        return self.view.workers[place].addresses[0]

    def tcp(self, place: int = 0) -> str:
        return self.view.workers[place].addresses[1]


@contextlib.contextmanager
def running_workers(
    count: int,
    *,
    tcp_first: bool = False,
    tcp_alone: bool = False,
    nodes: int = 1,
    factor: int = 1,
    disk_nodes: int = 0,
    first_node: int = 1,
    keys: Path | None = None,
) -> Iterator[RunningWorkers]:
    """Run `count` workers on each of `nodes` nodes, the last of them disk nodes, with `factor` copies of each key.

    Nodes are numbered from `first_node`. With `keys`, their TCP streams are under TLS.
    """
    directory = Path(tempfile.mkdtemp(prefix="anna-test-"))
    listeners, workers = [], []
    for place in range(count * nodes):
        unix, tcp = socket.socket(socket.AF_UNIX), socket.socket()
        unix.bind(str(directory / f"{place}.sock"))
        tcp.bind(("127.0.0.1", 0))
        for listener in (unix, tcp):
            listener.listen(64)
        addresses = [f"unix:{directory}/{place}.sock", f"tcp://127.0.0.1:{tcp.getsockname()[1]}"]
        if tcp_first or tcp_alone:
            addresses = addresses[::-1][: 1 if tcp_alone else 2]
        workers.append(WorkerInfo(1000 + place, tuple(addresses), place % count))
        listeners.append([unix, tcp])
    tiers = ["memory"] * (nodes - disk_nodes) + ["disk"] * disk_nodes
    seats = (tuple(workers[n * count : (n + 1) * count]) for n in range(nodes))
    infos = (NodeInfo(n, some, tier=tier) for n, (some, tier) in enumerate(zip(seats, tiers, strict=True), first_node))
    cluster = RunningWorkers(View(1, tuple(infos), factor), listeners, keys=None if keys is None else str(keys))
    try:
        for place in range(count * nodes):
            cluster.start(place)
        yield cluster
    finally:
        for pid in cluster.pids:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        for open_socket in [*(s for pair in listeners for s in pair), *cluster.views, *cluster.fillers]:
            open_socket.close()
        shutil.rmtree(directory)


@pytest.fixture
def one_worker() -> Iterator[RunningWorkers]:
    with running_workers(1) as cluster:
        yield cluster


@pytest.fixture
def three_workers() -> Iterator[RunningWorkers]:
    with running_workers(3) as cluster:
        yield cluster


@pytest.fixture
def two_nodes() -> Iterator[RunningWorkers]:
    """Two nodes of one worker each, and two copies of each key."""
    with running_workers(1, nodes=2, factor=2) as cluster:
        yield cluster
