"""The processes of a node beside its executors: the cache, the porter and the relay. One that ends is replaced.

The node makes the sockets that they listen on and keeps them, so that nobody is refused while one is away.
Source: DESIGN §6; decision records 0005, 0024, 0040.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from anna.keyplaces import MEMORY, descriptor_of
from anna.rundir import RunDirectory
from cloudburst import openings
from cloudburst.executor import zygote
from cloudburst.keyring import VARIABLE
from cloudburst.page import monotonic_us
from cloudburst.segments.shelf import Shelf

log = logging.getLogger("cloudburst.aides")

CACHE_SOCKET: Final = "cache.sock"
PORTER_SOCKET: Final = "porter.sock"
PAUSE_US: Final = 100_000
"""How long one that has ended stays away."""


@dataclass(slots=True)
class Aide:
    """One of them: what the zygote is told, with which sockets, and keys in memory; the process, 0 for none."""

    name: str
    order: bytes = b""
    ends: list[socket.socket] = field(default_factory=list)
    held: tuple[int, ...] = ()
    pid: int = 0
    due_us: int = 0


class Aides:
    """Those of the node in `directory`, which the zygote at the other end of `link` forks."""

    def __init__(self, directory: RunDirectory, link: socket.socket) -> None:
        self._directory = directory
        self._link = link
        self.cache, self.porter, self.relay = Aide("cache"), Aide("porter"), Aide("relay")
        self._by_slot = {zygote.CACHE: self.cache, zygote.PORTER: self.porter, zygote.RELAY: self.relay}
        self.relay_port = 0
        """At which other hosts reach all of this node through its relay, 0 when they do not."""

    def open_cache(self) -> str:
        """Listen for the cache's clients, before there is a cache; return its address."""
        self.cache.ends = [self._near(CACHE_SOCKET)]
        return f"unix:{self._directory.file(CACHE_SOCKET)}"

    def start_cache(self, address: str, seeds: tuple[str, ...]) -> None:
        """Fork the cache of the store whose workers are at `seeds`, to whose nodes it shows this process's keys."""
        self.cache.held = _held(os.environ.get(VARIABLE))
        self._start(self.cache, {"cache": address, "seeds": seeds})

    def start_porter(self, shelf: Shelf, reach: str) -> None:
        """Fork the process that moves large values between this host and others, and say where it is.

        `reach` is the name of this host for others, "" when they do not come.
        """
        self.porter.ends = [self._near(PORTER_SOCKET, socket.SOCK_SEQPACKET)]
        address = ""
        if self.relay_port:
            self.porter.ends.append(self._near(openings.PORTER))
            address = openings.address(reach, self.relay_port, openings.PORTER)
        elif reach:
            far = listen(reach)
            self.porter.ends.append(far)
            address = f"tcp:{reach}:{far.getsockname()[1]}"
        shelf.show_porter(self._directory.file(PORTER_SOCKET), address)
        self._start(self.porter, {})

    def start_relay(self, keys: str, host: str, port: int) -> None:
        """Fork the process that speaks with the keys at a place; it listens for other hosts unless `host` is ""."""
        self.relay.held = _held(keys)
        self.relay.ends = [self._near(openings.RELAY_SOCKET)]
        if host:
            far = listen(host, port)
            self.relay.ends.append(far)
            self.relay_port = far.getsockname()[1]
        self._start(self.relay, {"keys": MEMORY if self.relay.held else keys})

    def _near(self, name: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        opened = socket.socket(socket.AF_UNIX, kind)
        opened.bind(self._directory.file(name))
        opened.listen(1024)
        return opened

    def _start(self, aide: Aide, order: dict[str, Any]) -> None:
        slot = next(slot for slot, one in self._by_slot.items() if one is aide)
        aide.order = msgpack.packb({"slot": slot, "incarnation": 0, **order})
        self._fork(aide)

    def _fork(self, aide: Aide) -> None:
        socket.send_fds(self._link, [aide.order], [*(end.fileno() for end in aide.ends), *aide.held])

    @property
    def due_us(self) -> Iterable[int]:
        """When those that have ended are to be replaced."""
        return [aide.due_us for aide in self._by_slot.values() if aide.due_us]

    def do_due(self, now_us: int) -> None:
        """Replace those whose time has come."""
        for aide in self._by_slot.values():
            if aide.due_us and aide.due_us <= now_us:
                aide.due_us = 0
                self._fork(aide)

    def take_in(self, news: dict[str, Any]) -> bool:
        """Take in that the zygote has forked one, or that one has ended; False when it is none of these."""
        aide = self._by_slot.get(news["slot"])
        if aide is None:
            return False
        aide.pid = 0 if "code" in news else news["pid"]
        if "code" in news:
            log.error("the %s (pid %d) ended with %d", aide.name, news["pid"], news["code"])
            aide.due_us = monotonic_us() + PAUSE_US
        return True


def _held(place: str | None) -> tuple[int, ...]:
    """Return the descriptor of keys that are in memory, if these are."""
    fd = descriptor_of(place or "")
    return () if fd is None else (fd,)


def listen(host: str, port: int = 0) -> socket.socket:
    """Return a socket at which other hosts reach this one; port 0 is one of the system's choice. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    os.set_inheritable(listener.fileno(), False)
    return listener
