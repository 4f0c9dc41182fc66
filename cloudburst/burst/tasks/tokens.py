"""What goes through a pipe between two stages: where the results are and what may be done with them, and no data.

The one rule: a token is scoped to the results of one stage, signed, and expires; nothing in it is a key. The signature
is made with the cluster's secret where there is one, else with a key that only this user can read, so a line that
somebody else has put into a pipe is refused. Source: decision record 0038.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cloudburst.errors import RequestError
from cloudburst.running import runtime_directory
from cloudburst.secret import Secret

MARK: Final = b"\x1ecb-results-1 "
"""What a token begins with: a byte that no line of text begins with, and its version."""
LIVES_S: Final = 24 * 3600.0
KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Token:
    """Leave to take the results of the stage at `prefix`, whose owner is `owner`, from the node in `directory`."""

    prefix: str
    owner: str
    directory: str
    until_s: float
    right: str = "take"

    def signed(self, key: bytes) -> bytes:
        """Return it as a line."""
        said = base64.urlsafe_b64encode(json.dumps(asdict(self)).encode())
        return MARK + said + b"." + _signature(key, said) + b"\n"


def read(line: bytes, now_s: float) -> Token:
    """Return the token in a line. Raises RequestError unless it is whole, signed by this user, and in time."""
    said, _, signature = line.removeprefix(MARK).strip().partition(b".")
    try:
        token = Token(**json.loads(base64.urlsafe_b64decode(said)))
    except (ValueError, TypeError):
        raise RequestError("what comes from the stage before is no token: it was cut off, or changed") from None
    if not hmac.compare_digest(_signature(key_of(token.directory), said), signature):
        raise RequestError("the token of the stage before is signed with another key: both have to be of one user")
    if token.until_s < now_s:
        raise RequestError(f"the token of the stage before has expired {now_s - token.until_s:,.0f} s ago")
    if token.right != "take":
        raise RequestError(f"the token of the stage before is to {token.right!r}, and not to take results")
    return token


def _signature(key: bytes, said: bytes) -> bytes:
    return hmac.digest(key, b"cloudburst results 1 " + said, hashlib.sha256).hex().encode()


def key_of(directory: str | os.PathLike[str]) -> bytes:
    """Return what tokens for the node in a directory are signed with."""
    secret = Secret.of(directory)
    return _own_key() if secret is None else secret.lane_key


def pipes_directory() -> Path:
    """Return this user's private directory of what stages tell each other, made if need be. Raises RequestError."""
    path = runtime_directory() / f"cloudburst-pipes-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or path.is_symlink():
        raise RequestError(f"{path} has to belong to this user, and to be closed to all others: remove it")
    return path


def _own_key() -> bytes:
    path = pipes_directory() / "key"
    if not path.exists():
        beside = path.with_name(f"key-{secrets.token_hex(4)}")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        try:
            os.link(beside, path)  # the first one stays
        except FileExistsError:
            pass
        finally:
            beside.unlink()
    return path.read_bytes()
