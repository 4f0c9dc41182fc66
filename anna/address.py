"""An address is text that says where a worker listens: `unix:PATH` or `tcp://HOST:PORT`.

The one rule: every address is parsed here, once, so that the command line, the view and the clients agree on
what is well-formed and on what is local. A local address cannot be reached from another machine.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

UNIX_PATH_BYTES_MAX: Final = 107
"""Longest path of a Unix socket on Linux (`sun_path` has 108 bytes and ends with a zero)."""

ADDRESS_BYTES_MAX: Final = 272
"""Longest address: a host name of 253 bytes, the scheme and a port."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket at `path`."""

    path: str

    @property
    def local(self) -> bool:
        """Whether only this machine can connect: always."""
        return True

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port at `host`, a name or an IP literal; port 0 asks the system for a free one when listening."""

    host: str
    port: int

    @property
    def local(self) -> bool:
        """Whether the host is a loopback address. A name other than `localhost` is not trusted to be one."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """Return the address that `text` names; `str()` of it parses to the same. Raises ValueError."""
    if len(text.encode()) > ADDRESS_BYTES_MAX:
        raise ValueError(f"an address has {len(text):,} characters; address_bytes_max is {ADDRESS_BYTES_MAX}")
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text.startswith("tcp://"):
        return _parse_tcp(text)
    raise ValueError(f"address {text!r} is neither unix:PATH nor tcp://HOST:PORT")


def _parse_unix(text: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    size = len(path.encode())
    if size == 0 or "\0" in path:
        raise ValueError(f"address {text!r} names no path")
    if size > UNIX_PATH_BYTES_MAX:
        limit = f"unix_path_bytes_max is {UNIX_PATH_BYTES_MAX}"
        raise ValueError(f"socket path {path!r} has {size} bytes; {limit}")
    return UnixAddress(path)


def _parse_tcp(text: str) -> TcpAddress:
    host, separator, port = text.removeprefix("tcp://").rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"address {text!r}: write an IPv6 host in brackets, as in tcp://[::1]:6450")
    if not separator or not host or any(c.isspace() or c in "/@[]\0" for c in host):
        raise ValueError(f"address {text!r} is not of the form tcp://HOST:PORT")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"address {text!r}: the port is {port!r}, not a number from 0 to 65535")
    return TcpAddress(host, int(port))
