"""Where a node is asked: the socket for processes of its own host, and those for nodes of others, if they may come.

With keys these come through the relay, which knows their rights: nodes to one socket, guests to another.

An answer goes back over the socket that the request came by, which the identity of who asks says: those who ask from
other hosts have identities of their own kind, so nothing is kept of them. Source: DESIGN §5 (control by ZeroMQ).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from anna.rundir import RunDirectory
from cloudburst import config
from cloudburst.control import CONTROL_SOCKET, comes_from_afar, is_guest
from cloudburst.loop import Loop
from cloudburst.openings import GUESTS, NODES
from cloudburst.secret import Secret
from cloudburst.shape import Shape

Hear = Callable[[bytes, bytes, bytes], None]
"""Takes who asks, the number of the request, and the request."""


class Switchboard:
    """The control sockets of one node; `hear` takes what comes.

    `sealed` is the address of its relay, if that listens for other hosts.
    """

    def __init__(self, directory: RunDirectory, shape: Shape, loop: Loop, hear: Hear, sealed: str = "") -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self._loop, self._hear = loop, hear
        self._near = self._socket()
        self._far: Any = None
        self._guests: Any = None
        self.endpoints: tuple[str, ...] = (f"ipc://{directory.file(CONTROL_SOCKET)}",)
        """Where it is asked: from its own host, and then from others, if they may."""
        self._near.bind(self.endpoints[0])
        self._watch(self._near)
        if sealed:
            self._far, self._guests = self._led(directory, NODES), self._led(directory, GUESTS)
            self.endpoints += (sealed,)
        elif shape.place is not None:
            self._listen_far(str(shape.place), _secret_of(directory))

    def _socket(self) -> Any:
        opened = self.context.socket(zmq.ROUTER)
        opened.setsockopt(zmq.LINGER, 100)
        opened.setsockopt(zmq.MAXMSGSIZE, 2 * config.FUNCTION_BYTES_MAX)
        return opened

    def _led(self, directory: RunDirectory, name: str) -> Any:
        """Return a socket to which the relay leads others."""
        opened = self._socket()
        opened.bind(f"ipc://{directory.file(name)}")
        self._watch(opened)
        return opened

    def _listen_far(self, place: str, secret: Secret) -> None:
        self._far = self._socket()
        self._far.curve_server = True
        self._far.curve_secretkey = secret.control_keys()[1]
        self._far.bind(place)
        self.endpoints += (self._far.getsockopt_string(zmq.LAST_ENDPOINT),)
        self._watch(self._far)

    def _watch(self, opened: Any) -> None:
        self._loop.watch(opened, lambda: self._take_all(opened))

    def _take_all(self, opened: Any) -> None:
        while True:
            try:
                parts = opened.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(parts) == 3 and self._of(parts[0]) is opened:
                self._hear(*parts)

    def send(self, routing_id: bytes, number: bytes, data: bytes) -> None:
        """Send an answer, or news; it is lost when nobody is there any more."""
        self._of(routing_id).send_multipart([routing_id, number, data])

    def _of(self, routing_id: bytes) -> Any:
        """Return the socket over which who has this identity asks."""
        if is_guest(routing_id):
            return self._guests
        return self._far if comes_from_afar(routing_id) else self._near

    def close(self) -> None:
        """Close the sockets, once what was sent has gone out, or soon after."""
        self.context.destroy(linger=100)


def _secret_of(directory: RunDirectory) -> Secret:
    """Return what a node shares with those of other hosts: a new one if none was given."""
    secret = Secret.of(directory.path)
    if secret is None:
        secret = Secret.fresh()
        secret.keep(directory.path)
    return secret
