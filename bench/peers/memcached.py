"""memcached, reached with pylibmc (libmemcached, C) in the binary protocol.

memcached listens on a port or on a Unix socket, not on both, so one server runs for each; the idle one costs
nothing.
"""

from __future__ import annotations

import getpass
import importlib.util
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.peers import Operation, Request, ServerProcess, StoreClient, Transport, free_port

MEMORY_MIB = 1024
ITEM_MAX = "4m"


class MemcachedServer:
    """Two private one-thread servers, one for each transport."""

    def __init__(self, directory: Path, cpus: Iterable[int]) -> None:
        self.path = str(directory / "memcached.sock")
        self.port = free_port()
        where = list(cpus)
        common = ["memcached", "-t", "1", "-m", str(MEMORY_MIB), "-I", ITEM_MAX, "-u", getpass.getuser()]
        on_port = ["-l", "127.0.0.1", "-p", str(self.port)]
        self._unix = ServerProcess([*common, "-s", self.path], directory / "unix", where)
        self._tcp = ServerProcess([*common, *on_port], directory / "tcp", where)
        self._unix.wait_ready(self.path)
        self._tcp.wait_ready(("127.0.0.1", self.port))

    @property
    def pids(self) -> list[int]:
        """Both servers."""
        return [*self._unix.pids, *self._tcp.pids]

    def address(self, transport: Transport) -> str | tuple[str, int]:
        """Return where the server of `transport` listens."""
        return self.path if transport == "unix" else ("127.0.0.1", self.port)

    def request(self, operation: Operation, value_bytes: int) -> Request | None:
        """Return None: the load generator does not speak memcached's protocol."""
        return None

    def client(self, transport: Transport) -> StoreClient:
        """Return pylibmc's functions on one connection."""
        import pylibmc

        where = self.path if transport == "unix" else f"127.0.0.1:{self.port}"
        client: Any = pylibmc.Client([where], binary=True, behaviors={"tcp_nodelay": True})
        return StoreClient(
            get=client.get,
            put=client.set,
            close=client.disconnect_all,
            mget=client.get_multi,
            mput=client.set_multi,
        )

    def stop(self) -> None:
        """End both."""
        self._unix.stop()
        self._tcp.stop()


class Memcached:
    """pylibmc on memcached."""

    name = "pylibmc"

    def missing(self) -> str | None:
        """Return how to get memcached or the client."""
        if shutil.which("memcached") is None:
            return "memcached is not installed: apt-get install memcached"
        if importlib.util.find_spec("pylibmc") is None:
            return "apt-get install libmemcached-dev && pip install pylibmc"
        return None

    def version(self) -> str:
        """Return the versions of server and client."""
        server = subprocess.run(["memcached", "--version"], capture_output=True, text=True, check=True).stdout
        return f"{server.strip()}, pylibmc {version('pylibmc')}"

    def start(self, directory: Path, cpus: Iterable[int]) -> MemcachedServer:
        """Start the private servers."""
        return MemcachedServer(directory, cpus)
