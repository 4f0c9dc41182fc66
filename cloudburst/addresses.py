"""How an executor is reached: by a Unix socket from its own host, by TCP from others, or through relays under TLS.

The kernel is asked to notice by itself when the other host has gone: nothing else may be sent on a connection for as
long as a call runs. Source: DESIGN §5 (transports).
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from cloudburst import config, openings
from cloudburst.page import Page, executor_socket

PROBES_MAX: Final = 3


def executor_address(page: Page, directory: Path | str, slot: int, incarnation: int) -> str:
    """Return where the executor in a slot of a node's page listens.

    `unix:PATH`, `tcp:HOST:PORT`, or `tls:HOST:PORT/NAME` (`openings`).
    """
    return page.home(slot)[3] or f"unix:{directory}/{executor_socket(slot, incarnation)}"


def is_far(address: str) -> bool:
    """Whether an address is on another host."""
    return not address.startswith("unix:")


def split_place(place: str) -> tuple[str, int]:
    """Return (host, port) of HOST:PORT, where an IPv6 host may be in brackets. Raises ValueError."""
    host, _, port = place.rpartition(":")
    return host.strip("[]"), int(port)


def notice_absence(opened: socket.socket) -> None:
    """Have the kernel notice that the other host has gone."""
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


def open_socket(
    address: str, directory: Path | str, tell: bool = False
) -> tuple[socket.socket, str | tuple[str, int], bytes]:
    """Return a socket for an address, what it connects to, and what is to be said there first.

    What is under TLS goes through the relay of the own node, in `directory`, which is to `tell` when it has reached it.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), rest, b""
    if address.startswith(openings.SCHEME):
        at, name = openings.place_of(address)
        relay = f"{directory}/{openings.RELAY_SOCKET}"
        opening = openings.pack({"to": name, "at": at, "tell": tell})
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), relay, opening
    host, port = split_place(rest)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    notice_absence(opened)
    return opened, (host, port), b""


def connect(address: str, hello: bytes, timeout_s: float, directory: Path | str) -> socket.socket:
    """Return a blocking connection on which `hello` has been said. Raises OSError."""
    connection, place, first = open_socket(address, directory, tell=True)
    try:
        connection.settimeout(timeout_s)
        connection.connect(place)
        if first:
            connection.sendall(first)
            if connection.recv(1) != openings.THERE:
                raise ConnectionRefusedError(f"{address} cannot be reached")
        connection.sendall(hello)
        connection.settimeout(None)
    except OSError:
        connection.close()
        raise
    return connection


def begin_to_connect(address: str, hello: bytes, directory: Path | str) -> tuple[socket.socket, bytes]:
    """Return a connection that does not block, and what must still be said on it once it is there. Raises OSError."""
    connection, place, first = open_socket(address, directory)
    hello = first + hello
    connection.setblocking(False)
    try:
        connection.connect(place)
        return connection, hello[connection.send(hello) :]
    except BlockingIOError:
        return connection, hello
    except OSError:
        connection.close()
        raise
