"""Redis, reached with redis-py and its C parser (hiredis)."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.peers import LOAD_KEY, Operation, Request, ServerProcess, StoreClient, Transport, free_port


class RedisServer(ServerProcess):
    """A private redis-server without persistence, on a Unix socket and a port."""

    def __init__(self, directory: Path, cpus: Iterable[int]) -> None:
        self.path = str(directory / "redis.sock")
        self.port = free_port()
        argv = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", self.path]
        super().__init__([*argv, "--save", "", "--appendonly", "no", "--daemonize", "no"], directory, cpus)
        self.wait_ready(self.path, ("127.0.0.1", self.port))

    def address(self, transport: Transport) -> str | tuple[str, int]:
        """Return where the server listens."""
        return self.path if transport == "unix" else ("127.0.0.1", self.port)

    def request(self, operation: Operation, value_bytes: int) -> Request:
        """Return the load generator's GET or SET."""
        from bench import loadgen

        head = b"$%d\r\n%b\r\n" % (len(LOAD_KEY), LOAD_KEY)
        template = (
            b"*2\r\n$3\r\nGET\r\n%b" % head
            if operation == "get"
            else b"*3\r\n$3\r\nSET\r\n%b$%d\r\n%b\r\n" % (head, value_bytes, b"x" * value_bytes)
        )
        return Request(loadgen.RESP, template, template.index(LOAD_KEY) + len(LOAD_KEY) - 8)

    def client(self, transport: Transport) -> StoreClient:
        """Return redis-py's functions on one connection."""
        import redis

        client: Any = redis.Redis(host="127.0.0.1", port=self.port)
        if transport == "unix":
            client = redis.Redis(unix_socket_path=self.path)

        def pipelined_get(keys: Sequence[str]) -> Sequence[object]:
            with client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.get(key)
                found: list[object] = pipe.execute()
            return found

        def pipelined_put(items: Mapping[str, bytes]) -> Sequence[object]:
            with client.pipeline(transaction=False) as pipe:
                for key, value in items.items():
                    pipe.set(key, value)
                done: list[object] = pipe.execute()
            return done

        return StoreClient(
            get=client.get,
            put=client.set,
            close=client.close,
            mget=client.mget,
            mput=client.mset,
            pipelined_get=pipelined_get,
            pipelined_put=pipelined_put,
        )


class Redis:
    """redis-py 5 or newer with hiredis on redis-server."""

    name = "redis-py"

    def missing(self) -> str | None:
        """Return how to get redis-server or the client."""
        if shutil.which("redis-server") is None:
            return "redis-server is not installed: apt-get install redis-server"
        if importlib.util.find_spec("redis") is None or importlib.util.find_spec("hiredis") is None:
            return "pip install redis hiredis"
        return None

    def version(self) -> str:
        """Return the versions of server, client and parser."""
        asked = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True)
        number = asked.stdout.partition("v=")[2].split()[0]
        return f"Redis {number}, redis-py {version('redis')}, hiredis {version('hiredis')}"

    def start(self, directory: Path, cpus: Iterable[int]) -> RedisServer:
        """Start a private server."""
        return RedisServer(directory, cpus)
