"""What is compared: one file a subject, all with the same few methods.

A subject that is not installed says how to get it (`missing`) and is skipped, never failed. The clients'
methods are the libraries' own bound methods wherever the library has one: the harness adds no frame to
anybody's hot path.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from bench.processes import POLL_S, descendants, end, pin

Transport = Literal["tcp", "unix"]
Operation = Literal["get", "put"]
OPERATIONS: tuple[Operation, ...] = ("get", "put")
TRANSPORTS: tuple[Transport, ...] = ("tcp", "unix")
READY_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class StoreClient:
    """One connected client, as functions; None where the library has no such thing."""

    get: Callable[[str], object]
    put: Callable[[str, bytes], object]
    close: Callable[[], object]
    mget: Callable[[list[str]], object] | None = None
    mput: Callable[[dict[str, bytes]], object] | None = None
    pipelined_get: Callable[[Sequence[str]], Sequence[object]] | None = None
    pipelined_put: Callable[[Mapping[str, bytes]], Sequence[object]] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One request for the load generator: bytes in which eight decimal digits are the key's number."""

    protocol: int
    template: bytes
    digits_at: int
    stamp_at: int = -1


LOAD_KEY = b"key:0000" + b"0" * 8
"""The key of a `Request`; its last eight bytes are the number. redis-benchmark's keys look the same."""


class StoreServer(Protocol):
    """A running private server."""

    @property
    def pids(self) -> list[int]: ...
    def client(self, transport: Transport) -> StoreClient: ...
    def address(self, transport: Transport) -> str | tuple[str, int]: ...
    def request(self, operation: Operation, value_bytes: int) -> Request | None:
        """Return the load generator's request, None when it does not speak the protocol."""

    def stop(self) -> None: ...


class StorePeer(Protocol):
    """A store that can be started; its `name` is the column's."""

    name: str

    def missing(self) -> str | None:
        """Return how to get what is not installed, None when nothing is."""

    def version(self) -> str: ...
    def start(self, directory: Path, cpus: Iterable[int]) -> StoreServer: ...


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def connect(address: str | tuple[str, int]) -> socket.socket:
    """Return a connected socket; small TCP packets leave at once."""
    if isinstance(address, str):
        link = socket.socket(socket.AF_UNIX)
        link.connect(address)
        return link
    link = socket.create_connection(address)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


class ServerProcess:
    """A server program that was started for us alone, pinned, and is stopped by pid."""

    def __init__(
        self, argv: Sequence[str], directory: Path, cpus: Iterable[int], env: Mapping[str, str] | None = None
    ) -> None:
        self.log = directory / "server.log"
        self.cpus = frozenset(cpus)
        directory.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        pin([self.process.pid], self.cpus)

    @property
    def pids(self) -> list[int]:
        """The server's process and all below it."""
        return [self.process.pid, *descendants(self.process.pid)]

    def wait_ready(self, *addresses: str | tuple[str, int]) -> None:
        """Return when every address accepts connections; raise with the server's own words otherwise."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        waiting = list(addresses)
        while waiting:
            with contextlib.suppress(OSError):
                connect(waiting[0]).close()
                waiting.pop(0)
                continue
            if self.process.poll() is not None or time.monotonic() > deadline:
                words = self.log.read_text(errors="replace")[-2000:]
                self.stop()
                raise RuntimeError(f"{self.process.args!r} did not listen on {waiting[0]!r}:\n{words}")
            time.sleep(POLL_S)
        pin(self.pids, self.cpus)

    def stop(self) -> None:
        """End the server and everything that it started."""
        end(self.pids)
        self.process.wait()
