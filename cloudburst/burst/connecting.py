"""A connection to an SSH host, whose key is known: by the file of hosts, or by the user's `known_hosts`.

The one rule: what is refused is said with what to write or do. Source: docs/decisions/0036.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cloudburst import config
from cloudburst.build import manifest
from cloudburst.burst.hostfile import HostEntry
from cloudburst.errors import EnvironmentMismatch


class Refused(Exception):
    """A host cannot be used; the words say why, and what to do."""


class Unfit(Refused):
    """What is there does not fit what is run here: another Python, or none."""


def require() -> None:
    """Raise EnvironmentMismatch when what speaks SSH is not installed here."""
    if importlib.util.find_spec("asyncssh") is None:
        mend = "build this file where that is installed" if manifest.directory() else "pip install asyncssh"
        raise EnvironmentMismatch(f"hosts by SSH need asyncssh: {mend}")


@asynccontextmanager
async def connected(entry: HostEntry) -> AsyncIterator[Any]:
    """Give a connection to a host. Raises Refused, OSError."""
    import asyncssh

    offered: list[Any] = []

    class Greeter(asyncssh.SSHClient):
        def validate_host_public_key(self, host: str, addr: str, port: int, key: Any) -> bool:
            offered.append(key)
            return False

    options: dict[str, Any] = {"connect_timeout": config.SSH_CONNECT_S, "login_timeout": config.SSH_CONNECT_S}
    if entry.host_key:
        options["known_hosts"] = ([_pinned(entry)], [], [])
    if entry.user:
        options["username"] = entry.user
    if entry.key:
        options["client_keys"] = [str(Path(entry.key).expanduser())]
    try:
        connection = await asyncssh.connect(
            entry.host, entry.port, client_factory=Greeter, keepalive_interval=config.AGENT_LEASE_S / 4, **options
        )
    except asyncssh.HostKeyNotVerifiable:
        raise Refused(_unknown(entry, offered)) from None
    except asyncssh.PermissionDenied as fault:
        who = entry.user or "this user"
        raise Refused(f"it does not let {who} in: {fault.reason}; is the key right (key)?") from None
    except (OSError, asyncssh.Error, TimeoutError, ValueError) as fault:
        raise Refused(f"it cannot be reached: {str(fault) or type(fault).__name__}") from None
    try:
        async with connection:
            yield connection
    except asyncssh.Error as fault:
        raise Refused(f"the connection was lost: {fault}") from None


def _pinned(entry: HostEntry) -> Any:
    import asyncssh

    try:
        return asyncssh.import_public_key(entry.host_key)
    except asyncssh.KeyImportError as fault:
        where = "/etc/ssh/ssh_host_ed25519_key.pub"
        raise Refused(f"host_key is no public key ({fault}): take it from the host's {where}") from None


def _unknown(entry: HostEntry, offered: list[Any]) -> str:
    if not offered:
        return "it has another kind of key than host_key says"
    key = offered[-1]
    words = " ".join(key.export_public_key().decode().split()[:2])
    if entry.host_key:
        return (
            f"its key is {key.get_fingerprint()}, and not the one of host_key: it is another machine, or was installed"
            f' anew; if you know why, write host_key = "{words}"'
        )
    return f'its key is not known: if {key.get_fingerprint()} is its fingerprint, write host_key = "{words}"'


def shell_of(entry: HostEntry, known: Path) -> tuple[str, ...]:
    """Return the command that opens a shell on a host, whose key is in a file."""
    words = ["ssh", "-p", str(entry.port), "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes"]
    if entry.key:
        words += ["-i", str(Path(entry.key).expanduser())]
    return (*words, f"{entry.user}@{entry.host}" if entry.user else entry.host)
