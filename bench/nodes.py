"""Nodes of ours as a shell starts them, for tables that compare nodes, not libraries; and a plain connection to them.

The one rule: a node here is `anna serve` with nothing added, in directories of the run, ended by pid. A `Line` speaks
one frame at a time and chooses its worker itself, which a client of ours would not let it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

import msgpack

from anna.codec import encode_value
from anna.messages import View
from bench import loadgen
from bench.peers import LOAD_KEY, Request, ServerProcess, connect
from bench.peers.ours import OP_GET, OP_PUT, REQUEST_HEADER_BYTES, STAMP_AT, UNSTAMPED, frame
from bench.processes import POLL_S, end

OP_VIEW: Final = 6
OP_STATUS: Final = 7
ACK_AT: Final = 14
ACK_ONE: Final = 1
ACK_DISK: Final = 255
REPLY: Final = struct.Struct("<IBBBBIIQ")
STATUS_OK: Final = 0
SETTLE_TIMEOUT_S: Final = 60.0


class Node(ServerProcess):
    """One `anna serve`, pinned to `cpus`. It listens on Unix sockets, and on a port of 127.0.0.1 for other nodes."""

    def __init__(
        self,
        directory: Path,
        cpus: Iterable[int],
        *,
        workers: int = 1,
        factor: int | None = None,
        data: Path | None = None,
        join: str | None = None,
        keys: Path | None = None,
    ) -> None:
        options = ["--workers", str(workers), "--dir", str(directory / "run"), "--listen", "tcp://127.0.0.1:0"]
        options += ["--factor", str(factor)] if factor is not None else []
        options += ["--data", str(data)] if data is not None else []
        options += ["--join", join] if join is not None else []
        options += ["--keys", str(keys)] if keys is not None else []
        argv = [sys.executable, "-m", "anna.cli", "serve", "--json", *options]
        self.begun = time.monotonic()
        super().__init__(argv, directory, cpus, {"PYTHONPATH": os.pathsep.join(sys.path)})
        self.addresses = self._announced()
        self.paths = [text.removeprefix("unix:") for own in self.addresses for text in own if text.startswith("unix:")]
        self.wait_ready(*self.paths)

    @property
    def seed(self) -> str:
        """Where another node finds this one."""
        return next(text for own in self.addresses for text in own if text.startswith("tcp:"))

    def _announced(self) -> list[list[str]]:
        """Return the addresses of each worker, as the node says them when it has started."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.log.read_text(errors="replace").splitlines():
                if line.startswith("{"):
                    found: list[list[str]] = json.loads(line)["workers"]
                    return found
            time.sleep(POLL_S)
        words = self.log.read_text(errors="replace")[-2000:]
        self.stop()
        raise RuntimeError(f"{self.process.args!r} did not start:\n{words}")

    def kill(self) -> None:
        """End supervisor and workers without a warning, as a crash does."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        end(self.pids)


class Line:
    """One connection to one worker, one frame at a time."""

    def __init__(self, path: str) -> None:
        self.link = connect(path)
        self.stamp = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()

    def ask(self, operation: int, key: bytes = b"", payload: bytes = b"", ack: int = 0) -> tuple[int, int, bytes]:
        """Send one frame; return the reply's status, stamp and payload."""
        request = bytearray(frame(operation, key, payload))
        request[ACK_AT] = ack
        request[STAMP_AT : STAMP_AT + 8] = self.stamp.to_bytes(8, "little")
        self.link.sendall(request)
        head = self._exactly(REPLY.size)
        length, _, status, _, _, _, _, stamp = REPLY.unpack(head)
        self.stamp = max(self.stamp, stamp)
        return status, stamp, self._exactly(length + 4 - REPLY.size)

    def _exactly(self, size: int) -> bytes:
        got = self.link.recv(size, socket.MSG_WAITALL) if size else b""
        if len(got) < size:
            raise ConnectionError(f"the worker closed after {len(got)} of {size} bytes")
        return got

    def put(self, key: bytes, value: bytes, ack: int = 0) -> int:
        """Write a value; return the answer's stamp, which is at least the write's."""
        status, stamp, payload = self.ask(OP_PUT, key, UNSTAMPED + encode_value(value), ack)
        if status != STATUS_OK:
            raise RuntimeError(f"put of {key!r} was answered with status {status}: {payload!r}")
        return stamp

    def get(self, key: bytes) -> bytes | None:
        """Return the state of a key, stamp and writer included; None when there is none."""
        status, _, payload = self.ask(OP_GET, key)
        return payload if status == STATUS_OK else None

    def view(self) -> View:
        """Return the worker's view."""
        return View.from_wire(msgpack.unpackb(self.ask(OP_VIEW)[2]))

    def status(self) -> dict[str, Any]:
        """Return the worker's figures."""
        found: dict[str, Any] = msgpack.unpackb(self.ask(OP_STATUS)[2])
        return found


def wait_settled(paths: Iterable[str], nodes: int) -> None:
    """Return when every worker knows `nodes` nodes and has all that it should have, and epochs become stable."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    for path in paths:
        with Line(path) as line:
            while time.monotonic() < deadline:
                found = line.status()
                if found["complete"] and len(line.view().serving) >= nodes:
                    break
                time.sleep(POLL_S)
            else:
                raise RuntimeError(f"after {SETTLE_TIMEOUT_S:g} s a worker has not settled: {found}")


def put_request(value_bytes: int, ack: int = ACK_ONE) -> Request:
    """Return the load generator's put with an acknowledgement level."""
    template = bytearray(frame(OP_PUT, LOAD_KEY, UNSTAMPED + encode_value(b"x" * value_bytes)))
    template[ACK_AT] = ack
    return Request(loadgen.ANNA, bytes(template), REQUEST_HEADER_BYTES + len(LOAD_KEY) - 8, STAMP_AT)


def load_key(number: int) -> bytes:
    """Return the load generator's key of a number."""
    return LOAD_KEY[:-8] + b"%08d" % number
