"""The file that lists a user's SSH hosts: `hosts.toml`.

The one rule: a host is known by its key. What is wrong with the file is said with the host and the line to write.

    [defaults]                 # of every host, each may be left out
    user = "me"
    key = "~/.ssh/id_ed25519"

    [[host]]
    host = "10.0.0.5"
    host_key = "ssh-ed25519 AAAA…"

Source: burst-systems §5.5; docs/deploy.md.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from cloudburst.errors import RequestError

LOOPBACK: Final = ("127.", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One host: how it is reached, and what is used there.

    `key` is the file of the private key, "" for the user's agent and default keys; `host_key` the host's public key,
    "" for what the user's `known_hosts` says. `address` is where the other hosts reach it, "" where it was reached.
    """

    host: str
    port: int = 22
    user: str = ""
    key: str = ""
    host_key: str = ""
    python: str = "python3"
    address: str = ""

    @property
    def place(self) -> str:
        """What it is called where people see it."""
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.host}" + (f":{self.port}" if self.port != 22 else "")

    @property
    def loopback(self) -> bool:
        """Whether other machines cannot reach what listens there."""
        return (self.address or self.host).startswith(LOOPBACK)


def read(path: str) -> tuple[HostEntry, ...]:
    """Return the hosts of a file, in its order. Raises RequestError."""
    try:
        with open(Path(path).expanduser(), "rb") as file:
            said = tomllib.load(file)
    except OSError as fault:
        raise RequestError(
            f"the file of hosts {path!r} cannot be read: {fault.strerror}; --on ssh:FILE names a file like hosts.toml"
        ) from None
    except tomllib.TOMLDecodeError as fault:
        raise RequestError(f"{path} is no TOML: {fault}") from None
    wrong = sorted(set(said) - {"defaults", "host"})
    if wrong:
        raise RequestError(f"{path} has {', '.join(wrong)}; it has [defaults] and one [[host]] for each host")
    defaults, hosts = said.get("defaults", {}), said.get("host", [])
    if not hosts:
        raise RequestError(f'{path} lists no hosts: [[host]], and under it host = "10.0.0.5"')
    return tuple(_entry(path, number, {**defaults, **one}) for number, one in enumerate(hosts, 1))


def _entry(path: str, number: int, said: dict[str, Any]) -> HostEntry:
    kinds = {one.name: int if one.name == "port" else str for one in fields(HostEntry)}
    where = f"{path}, host {number} ({said.get('host', 'unnamed')})"
    if not said.get("host"):
        raise RequestError(f'{where}: host = "…" is missing')
    for name, value in said.items():
        if name not in kinds:
            raise RequestError(f"{where}: {name} is not known; there are {', '.join(kinds)}")
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            raise RequestError(f"{where}: {name} is {value!r}; it is {'a number' if kinds[name] is int else 'text'}")
    return HostEntry(**said)
