"""Our own store: one worker, reached with `anna.connect`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.peers import LOAD_KEY, Operation, Request, ServerProcess, StoreClient, Transport, free_port

OP_GET = 1
OP_PUT = 2
LWW_NUMBER = 1
REQUEST_HEADER_BYTES = 24
STAMP_AT = 16
UNSTAMPED = bytes(16)


def frame(operation: int, key: bytes, payload: bytes) -> bytes:
    """Return one request in the wire form of `anna/wire.pxd`."""
    numbers = bytes([1, operation, LWW_NUMBER, 0]) + bytes(4)
    body = numbers + len(key).to_bytes(2, "little") + bytes(2) + bytes(8) + key + payload
    return len(body).to_bytes(4, "little") + body


def serve(address: str, directory: Path, cpus: list[int]) -> ServerProcess:
    """Start one worker that listens at `address`."""
    argv = [sys.executable, "-m", "bench.peers.our_node", address]
    return ServerProcess(argv, directory, cpus, {"PYTHONPATH": os.pathsep.join(sys.path)})


class OurServer:
    """Two private one-worker nodes, one on a Unix socket and one on a port.

    A client that knows both ways to a worker takes the faster, so each node has only one.
    """

    def __init__(self, directory: Path, cpus: Iterable[int]) -> None:
        self.path = str(directory / "anna.sock")
        self.port = free_port()
        where = list(cpus)
        self._unix = serve(f"unix:{self.path}", directory / "unix", where)
        self._tcp = serve(f"tcp://127.0.0.1:{self.port}", directory / "tcp", where)
        self._unix.wait_ready(self.path)
        self._tcp.wait_ready(("127.0.0.1", self.port))

    @property
    def pids(self) -> list[int]:
        """Both nodes."""
        return [*self._unix.pids, *self._tcp.pids]

    def stop(self) -> None:
        """End both."""
        self._unix.stop()
        self._tcp.stop()

    def address(self, transport: Transport) -> str | tuple[str, int]:
        """Return where the worker of `transport` listens."""
        return self.path if transport == "unix" else ("127.0.0.1", self.port)

    def request(self, operation: Operation, value_bytes: int) -> Request:
        """Return the load generator's get or put; it carries the stamp seen last, as our client's do."""
        from anna.codec import encode_value
        from bench import loadgen

        template = (
            frame(OP_GET, LOAD_KEY, b"")
            if operation == "get"
            else frame(OP_PUT, LOAD_KEY, UNSTAMPED + encode_value(b"x" * value_bytes))
        )
        return Request(loadgen.ANNA, template, REQUEST_HEADER_BYTES + len(LOAD_KEY) - 8, STAMP_AT)

    def client(self, transport: Transport) -> StoreClient:
        """Return the client's functions."""
        import anna

        client = anna.connect(f"unix:{self.path}" if transport == "unix" else f"tcp://127.0.0.1:{self.port}")

        def pipelined_get(keys: Sequence[str]) -> Sequence[object]:
            with client.pipeline() as pipe:
                for key in keys:
                    pipe.get(key)
                return pipe.execute()

        def pipelined_put(items: Mapping[str, bytes]) -> Sequence[object]:
            with client.pipeline() as pipe:
                for key, value in items.items():
                    pipe.put(key, value)
                return pipe.execute()

        return StoreClient(
            get=client.get,
            put=client.put,
            close=client.close,
            mget=client.mget,
            mput=client.mput,
            pipelined_get=pipelined_get,
            pipelined_put=pipelined_put,
        )


class Ours:
    """anna with one worker."""

    name = "ours"

    def missing(self) -> str | None:
        """Return how to build the extensions."""
        try:
            importlib.import_module("anna")
            importlib.import_module("bench.loadgen")
        except ImportError as error:
            return f"the extensions are not built ({error}): make build"
        return None

    def version(self) -> str:
        """Return the version of the distribution."""
        return "anna of this tree"

    def start(self, directory: Path, cpus: Iterable[int]) -> OurServer:
        """Start a private node."""
        return OurServer(directory, cpus)
