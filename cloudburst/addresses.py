"""How an executor is reached: by a Unix socket from its own host, by TCP from others.

The kernel is asked to notice by itself when the other host has gone: nothing else may be sent on a connection for as
long as a call runs. Source: DESIGN §5 (transports).
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from cloudburst import config
from cloudburst.page import Page, executor_socket

PROBES_MAX: Final = 3


def executor_address(page: Page, directory: Path | str, slot: int, incarnation: int) -> str:
    """Return where the executor in a slot of a node's page listens: `unix:PATH` or `tcp:HOST:PORT`."""
    return page.home(slot)[3] or f"unix:{directory}/{executor_socket(slot, incarnation)}"


def open_socket(address: str) -> tuple[socket.socket, str | tuple[str, int]]:
    """Return a socket for an address, that will notice that the other host has gone, and what it connects to."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), rest
    host, _, port = rest.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    silence_s = int(config.NODE_SILENCE_S)
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES_MAX),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * silence_s),
    ):
        opened.setsockopt(level, option, value)
    return opened, (host.strip("[]"), int(port))


def connect(address: str, hello: bytes, timeout_s: float) -> socket.socket:
    """Return a blocking connection on which `hello` has been said. Raises OSError."""
    connection, place = open_socket(address)
    try:
        connection.settimeout(timeout_s)
        connection.connect(place)
        connection.sendall(hello)
        connection.settimeout(None)
    except OSError:
        connection.close()
        raise
    return connection


def begin_to_connect(address: str, hello: bytes) -> tuple[socket.socket, bytes]:
    """Return a connection that does not block, and what must still be said on it once it is there. Raises OSError."""
    connection, place = open_socket(address)
    connection.setblocking(False)
    try:
        connection.connect(place)
        return connection, hello[connection.send(hello) :]
    except BlockingIOError:
        return connection, hello
    except OSError:
        connection.close()
        raise
