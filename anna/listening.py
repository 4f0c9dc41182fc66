"""The sockets that workers listen on, bound before there are workers.

The one rule: the supervisor binds and keeps them, so that a connection to a worker that is just being
restarted waits in the kernel instead of being refused, and so that a port is lost to nobody. An address
that other machines can reach is refused without keys (`anna.keys`): who can connect could read and write everything.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from anna.address import Address, TcpAddress, UnixAddress
from anna.errors import RequestError, UnavailableError

BACKLOG: Final = 1024
"""Connections that may wait at one socket to be accepted."""


MAKE_KEYS: Final = "make keys with `anna keys new DIR` and give --keys DIR"
"""What to do about an address that others can reach."""


LAB: Final = "CLOUDBURST_LAB"
"""Names the variable that says, by 1, that this is a laboratory: its network is nobody else's."""


class NotLocal(RequestError, ValueError):
    """The address can be reached from other machines."""


class CannotListen(UnavailableError, OSError):
    """The system refused to bind an address."""


@dataclass(slots=True)
class SeatSockets:
    """What one seat listens on; `addresses` are what its worker is known by, in the order of `sockets`."""

    sockets: list[socket.socket] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    def listen(self, address: Address) -> None:
        """Bind one more address. Raises CannotListen."""
        bound, known_as = _bind(address)
        self.sockets.append(bound)
        self.addresses.append(str(known_as))
        if isinstance(address, UnixAddress):
            self.files[address.path] = _identity(address.path)

    def listen_for_leases(self, path: str) -> None:
        """Bind the socket for leases, on which one message is one packet. Raises CannotListen."""
        bound, known_as = _bind(UnixAddress(path), socket.SOCK_SEQPACKET)
        bound.setblocking(False)
        self.sockets.append(bound)
        self.addresses.append(str(known_as))
        self.files[path] = _identity(path)

    def close(self) -> None:
        """Close every socket; others may hold them still."""
        for listener in self.sockets:
            listener.close()

    def unlink(self) -> None:
        """Remove the files of the Unix sockets, unless something else has taken their names meanwhile."""
        for path, identity in self.files.items():
            try:
                if _identity(path) == identity:
                    os.unlink(path)
            except FileNotFoundError:
                pass


def check_local(addresses: list[Address], insecure: bool, keyed: bool = False, fix: str = MAKE_KEYS) -> list[str]:
    """Return a warning for each address that other machines can reach. Raises NotLocal unless `insecure`, in a lab.

    With keys (`keyed`) there is nothing to warn of: who connects shows his. `fix` is what the error says to do.
    A wildcard is never accepted: the view tells clients where to connect, and `0.0.0.0` is nowhere.
    """
    warnings = []
    for address in addresses:
        if isinstance(address, TcpAddress) and address.host in ("0.0.0.0", "::"):
            raise NotLocal(f"{address}: name the interface that clients connect to; the view passes it on to them")
        if address.local or keyed:
            continue
        if not insecure:
            raise NotLocal(f"{address} can be reached from other machines: {fix} (--insecure is for loopback and labs)")
        if os.environ.get(LAB) != "1":
            raise NotLocal(f"{address} can be reached from other machines: --insecure takes {LAB}=1 there; {fix}")
        warnings.append(f"{address} is open to everyone who can reach it: --insecure")
    return warnings


def bind_seats(unix_paths: list[str], extra: list[Address]) -> list[SeatSockets]:
    """Bind a Unix socket for each seat, and the `extra` addresses besides.

    Each seat gets each TCP address, at ports that count up from the given one (port 0: all by the system's
    choice); the first seat alone gets an extra Unix address, as a seed. All or none are bound. Raises
    CannotListen.
    """
    seats: list[SeatSockets] = []
    try:
        for seat, path in enumerate(unix_paths):
            sockets = SeatSockets()
            seats.append(sockets)
            sockets.listen(UnixAddress(path))
            for address in extra:
                if isinstance(address, TcpAddress):
                    sockets.listen(TcpAddress(address.host, address.port and address.port + seat))
                elif seat == 0:
                    sockets.listen(address)
    except BaseException:
        for sockets in seats:
            sockets.unlink()
            sockets.close()
        raise
    return seats


def _bind(address: Address, kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, Address]:
    try:
        if isinstance(address, UnixAddress):
            return _bind_unix(address, kind)
        return _bind_tcp(address)
    except (OSError, OverflowError) as error:
        raise CannotListen(f"cannot listen on {address}: {getattr(error, 'strerror', None) or error}") from None


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path, follow_symlinks=False)
    return (found.st_dev, found.st_ino)


def _bind_unix(address: UnixAddress, kind: int) -> tuple[socket.socket, Address]:
    _remove_abandoned(address.path, kind)
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        with _owner_only():
            listener.bind(address.path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener, address


def _remove_abandoned(path: str, kind: int) -> None:
    """Remove a socket on which nobody listens any more, left by a process that was killed."""
    try:
        if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            return  # connecting to a plain file is refused too, but the file is somebody's
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # of another kind, or not ours to reach: binding will tell


def _bind_tcp(address: TcpAddress) -> tuple[socket.socket, Address]:
    if address.port > 65535:
        raise OverflowError("the last port is 65535")
    family, _, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener, TcpAddress(address.host, listener.getsockname()[1])


@contextmanager
def _owner_only() -> Iterator[None]:
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
