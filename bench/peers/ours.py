"""Our own store: `anna serve` with one worker, reached with `anna.connect`."""

from __future__ import annotations

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


class OurServer(ServerProcess):
    """A private one-worker node, on a Unix socket and a port."""

    def __init__(self, directory: Path, cpus: Iterable[int]):
        self.path = str(directory / "anna.sock")
        self.port = free_port()
        argv = [sys.executable, "-m", "anna", "serve", "--workers", "1"]
        argv += ["--listen", f"unix:{self.path}", "--listen", f"tcp://127.0.0.1:{self.port}"]
        super().__init__(argv, directory, cpus, {"PYTHONPATH": os.pathsep.join(sys.path)})
        self.wait_ready(self.path, ("127.0.0.1", self.port))

    def address(self, transport: Transport) -> str | tuple[str, int]:
        """Return where the worker listens."""
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
                return [pipe.get(key) for key in keys]

        def pipelined_put(items: Mapping[str, bytes]) -> Sequence[object]:
            with client.pipeline() as pipe:
                return [pipe.put(key, value) for key, value in items.items()]

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
            import anna

            anna.connect  # noqa: B018
        except (ImportError, AttributeError) as error:
            return f"anna is not built ({error}): make build"
        return None

    def version(self) -> str:
        """Return the version of the distribution."""
        return "anna of this tree"

    def start(self, directory: Path, cpus: Iterable[int]) -> OurServer:
        """Start a private node."""
        return OurServer(directory, cpus)
