"""The least that a Python client of Redis can do: format, send, receive, slice.

It is a measure, not a library: what the server and the sockets allow when the client costs next to nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path

from bench.peers import StoreClient, Transport, connect
from bench.peers.redis_server import Redis, RedisServer

READ_BYTES = 16384


class ThinClient:
    """One blocking connection, one request at a time."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link

    def get(self, key: str) -> bytes:
        """Return the value of `key`."""
        raw = key.encode()
        self.link.sendall(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(raw), raw))
        reply = self.link.recv(READ_BYTES)
        end = reply.index(b"\n") + 1
        size = int(reply[1:end])
        if len(reply) == end + size + 2:
            return reply[end:-2]
        body = bytearray(size + 2)
        body[: len(reply) - end] = reply[end:]
        rest = memoryview(body)[len(reply) - end :]
        while rest:
            done = self.link.recv_into(rest)
            if not done:
                raise ConnectionError(f"redis-server closed with {len(rest):,} bytes to come")
            rest = rest[done:]
        return bytes(memoryview(body)[:-2])

    def put(self, key: str, value: bytes) -> None:
        """Write `value`."""
        raw = key.encode()
        head = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(raw), raw, len(value))
        self.link.sendall(b"%b%b\r\n" % (head, value))
        reply = self.link.recv(64)
        if reply != b"+OK\r\n":
            raise ConnectionError(f"redis-server answered {reply!r}")


class ThinServer(RedisServer):
    """The same redis-server with the bare client."""

    def client(self, transport: Transport) -> StoreClient:
        """Return the bare client's functions."""
        link = connect(self.address(transport))
        client = ThinClient(link)
        return StoreClient(get=client.get, put=client.put, close=link.close)


class ThinRedis(Redis):
    """A bare socket on redis-server."""

    name = "bare socket"

    def start(self, directory: Path, cpus: Iterable[int]) -> ThinServer:
        """Start a private server."""
        return ThinServer(directory, cpus)
