"""A socket in the node's directory that leads to a node on another host, for ZeroMQ, which cannot say where to.

The relay listens there for as long as the connection is open on which it was asked to; the next relay is asked again.
Source: decision record 0040.
"""

from __future__ import annotations

import socket

from cloudburst import openings
from cloudburst.loop import Loop


class Way:
    """The way to the socket `to` of the node at an endpoint, tcp://HOST:PORT, from the node in `directory`."""

    def __init__(self, loop: Loop, directory: str, endpoint: str, to: str, name: str) -> None:
        """Have it made; `name` is the socket's."""
        self._loop = loop
        self._relay = f"{directory}/{openings.RELAY_SOCKET}"
        self._opening = openings.pack({"to": to, "at": endpoint.removeprefix("tcp://"), "listen": name})
        self.endpoint = f"ipc://{directory}/{name}"
        """Where ZeroMQ connects; it tries until somebody listens there."""
        self._asking = self._ask()

    def _ask(self) -> socket.socket:
        asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        asking.connect(self._relay)  # which never waits: the node itself listens, and the relay accepts
        asking.sendall(self._opening)
        asking.setblocking(False)
        self._loop.watch(asking.fileno(), self._look)
        return asking

    def _look(self) -> None:
        """Ask again: nothing is ever said here, so the relay has ended."""
        self.close()
        self._asking = self._ask()

    def close(self) -> None:
        """Let it go."""
        self._loop.forget(self._asking.fileno())
        self._asking.close()
