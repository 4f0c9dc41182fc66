"""What nodes on several hosts share where there are no keys: a secret, in a file of each one's directory.

Whoever has it may run code on every node, like this user himself. Requests between nodes are encrypted with keys that
are made from it (CURVE), so who does not have it cannot even say hello. A connection to an executor begins with a proof
of it; what comes after is not encrypted, which is why other machines' addresses take keys, with which nothing of this
is used (`relay`), or `--insecure` in a laboratory. Source: DESIGN §5, §7; decision record 0040.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final

from cloudburst.errors import RequestError

SECRET_FILE: Final = "secret"
LEAST_BYTES: Final = 16


class Secret:
    """One secret text, and the keys that are made from it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if len(text.encode()) < LEAST_BYTES:
            raise RequestError(f"a secret has at least {LEAST_BYTES} bytes; this one has {len(text.encode())}")
        self._text = text

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Secret:
        """Return the secret in a file. Raises RequestError unless its owner alone can read it."""
        try:
            mode = os.stat(path).st_mode
            text = Path(path).read_text().strip()
        except OSError as fault:
            raise RequestError(f"the secret cannot be read: {fault}") from None
        if mode & 0o077:
            raise RequestError(f"{path} holds a secret and can be read by others: chmod 600 {path}")
        return cls(text)

    @classmethod
    def of(cls, directory: str | os.PathLike[str]) -> Secret | None:
        """Return the secret of the node in a directory; None for one that no other host can reach."""
        path = Path(directory, SECRET_FILE)
        return cls.read(path) if path.exists() else None

    @classmethod
    def fresh(cls) -> Secret:
        """Return a new one."""
        return cls(secrets.token_hex(32))

    def keep(self, directory: str | os.PathLike[str]) -> Path:
        """Write it into a node's directory; return the file."""
        path = Path(directory, SECRET_FILE)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(self._text + "\n")
        return path

    @property
    def text(self) -> str:
        """What is to be written where only its owner can read, or said where only he hears."""
        return self._text

    def _made(self, use: str) -> bytes:
        return hmac.digest(self._text.encode(), use.encode(), hashlib.sha256)

    @property
    def lane_key(self) -> bytes:
        """What opens a connection to an executor from another host."""
        return self._made("cloudburst lane 1")

    def control_keys(self) -> tuple[bytes, bytes]:
        """Return the (public, private) CURVE keys of every node's control socket."""
        import zmq
        from zmq.utils import z85

        private = z85.encode(self._made("cloudburst control 1"))
        return zmq.curve_public(private), private

    def __repr__(self) -> str:
        return "<a secret>"


def lane_key_of(directory: str | os.PathLike[str]) -> bytes:
    """Return what the clients of a node in `directory` open connections to other hosts with; b"" for nothing."""
    secret = Secret.of(directory)
    return b"" if secret is None else secret.lane_key
