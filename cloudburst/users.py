"""Who uses a node: the leases on it, connections to its `lease.sock` that end with their holders, however those end.

A greeting goes out to whoever connects; who then says who it is becomes a client, and gets the node's page, where its
control socket is, and leases on executors. Source: DESIGN §6; anna/supervisor.py (leases).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, Final

import msgpack

from anna.rundir import LEASE_SOCKET, RunDirectory
from cloudburst.loop import Loop
from cloudburst.messages import ClientJoined, ClientLeft
from cloudburst.version import RELEASE, layout

log = logging.getLogger("cloudburst.users")

LEASE_PROTOCOL: Final = 1


class Users:
    """The leases on one node. `tell` takes ClientJoined and ClientLeft; `leased` and `left` the first and last lease.

    `stop` is called when a client says that the node is to end; `welcome` says what one is told, and `page` is a
    descriptor of the page, to be read only.
    """

    def __init__(
        self, tell: Callable[[ClientJoined | ClientLeft], None], leased: Callable[[], None],
        left: Callable[[], None], stop: Callable[[], None], welcome: Callable[[int], dict[str, Any]],
        page: int,
    ) -> None:  # fmt: skip
        self._tell, self._leased, self._left, self._stop = tell, leased, left, stop
        self._welcome, self._page = welcome, page
        self._greeting = msgpack.packb(
            {"protocol": LEASE_PROTOCOL, "pid": os.getpid(), "layout": layout(), "release": RELEASE}
        )
        self._clients: set[int] = set()
        self._leases: dict[int, tuple[socket.socket, int]] = {}

    def listen(self, directory: RunDirectory, loop: Loop) -> None:
        """Let them come."""
        self._loop = loop
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(directory.file(LEASE_SOCKET))
        self._listener.listen(128)
        self._listener.setblocking(False)
        loop.watch(self._listener.fileno(), self._accept)

    def shut(self) -> None:
        """Let nobody come any more."""
        self._listener.close()

    def close(self) -> None:
        """Give up every lease."""
        for connection, _ in self._leases.values():
            connection.close()

    def _accept(self) -> None:
        try:
            lease, _ = self._listener.accept()
        except OSError as fault:
            log.warning("could not accept a lease: %s", fault)
            return
        lease.setblocking(False)
        with contextlib.suppress(OSError):
            lease.send(self._greeting)
        self._leases[lease.fileno()] = (lease, 0)
        self._loop.watch(lease.fileno(), lambda: self._hear(lease))
        self._leased()

    def _hear(self, lease: socket.socket) -> None:
        """Welcome a client that says who it is; part with one that is gone."""
        try:
            said = lease.recv(4096)
            if said:
                self._let_in(lease, said)
                return
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, TypeError) as fault:
            log.warning("a lease ended: %s", fault)
        fd = lease.fileno()
        self._loop.forget(fd)
        _, client = self._leases.pop(fd)
        lease.close()
        if client:
            self._clients.discard(client)
            self._tell(ClientLeft(client))
        if not self._leases:
            self._left()

    def _let_in(self, lease: socket.socket, said: bytes) -> None:
        hello = msgpack.unpackb(said)
        if hello.get("stop") and self._leases[lease.fileno()][1]:
            log.info("stopping: client %016x says so", self._leases[lease.fileno()][1])
            self._stop()
            return
        client, pid = int(hello["client"]), int(hello["pid"])
        if client in self._clients:
            raise ValueError(f"client {client:016x} is here already")
        self._leases[lease.fileno()] = (lease, client)
        self._clients.add(client)
        self._tell(ClientJoined(client, pid))
        socket.send_fds(lease, [msgpack.packb(self._welcome(client))], [self._page])
