"""What goes through a pipe between two stages: where the results are and what may be done with them, and no data.

The one rule: a token is scoped to the results of one stage, signed, and expires; nothing in it is a key. Where there
are keys, who writes it signs with his, and shows his certificate: it counts when the cluster of the node that is meant
has given him the right `code`, and not longer than his keys. Without keys the signature is made with the cluster's
secret where there is one, else with a key that only this user can read, and does not count where there are some. So a
line that somebody else has put into a pipe is refused. Source: decision records 0038, 0049.
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
from typing import TYPE_CHECKING, Final, Protocol

from cloudburst.errors import NotSigned, RequestError
from cloudburst.keyring import lesser_keys_in, signatures_with
from cloudburst.running import runtime_directory
from cloudburst.secret import Secret

if TYPE_CHECKING:
    from cloudburst.signing import Signatures

MARK: Final = b"\x1ecb-results-1 "
"""What a token begins with: a byte that no line of text begins with, and its version."""
USE: Final = b"cloudburst results 1 "
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

    def signed(self, seal: Seal) -> bytes:
        """Return it as a line."""
        said = base64.urlsafe_b64encode(json.dumps(asdict(self)).encode())
        return MARK + said + b"." + seal.proof(said) + b"\n"


class Seal(Protocol):
    """What tokens for one node are signed with, and known by."""

    def proof(self, said: bytes) -> bytes:
        """Return what proves that who said it may."""

    def check(self, said: bytes, proof: bytes, now_s: float) -> None:
        """Raise RequestError unless a proof is one."""


class Shared:
    """A key that whoever may sign has."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def proof(self, said: bytes) -> bytes:
        """Return what proves that who said it has the key."""
        return hmac.digest(self._key, USE + said, hashlib.sha256).hex().encode()

    def check(self, said: bytes, proof: bytes, now_s: float) -> None:
        """Raise RequestError unless a proof is one."""
        if not hmac.compare_digest(self.proof(said), proof):
            raise RequestError("the token of the stage before is signed with another key: both have to be of one user")


class Certified:
    """The keys of a cluster."""

    def __init__(self, signatures: Signatures) -> None:
        self._signatures = signatures

    def proof(self, said: bytes) -> bytes:
        """Return a signature, and whose it is. Raises BadKeys."""
        return b".".join(map(base64.urlsafe_b64encode, self._signatures.proof(said, USE)))

    def check(self, said: bytes, proof: bytes, now_s: float) -> None:
        """Raise RequestError unless a proof is one of somebody who has the right `code`, and has it still."""
        signature, _, certificates = proof.partition(b".")
        try:
            if not certificates:
                raise ValueError(proof)
            parts = base64.urlsafe_b64decode(signature), base64.urlsafe_b64decode(certificates)
            self._signatures.check(said, *parts, USE, now_s)
        except ValueError:
            raise RequestError("the token of the stage before is not signed with keys of this cluster") from None
        except NotSigned as fault:
            raise RequestError(f"the token of the stage before is refused: {fault}") from None


def read(line: bytes, now_s: float) -> Token:
    """Return the token in a line. Raises RequestError unless it is whole, signed by who may, and in time."""
    said, _, proof = line.removeprefix(MARK).strip().partition(b".")
    try:
        token = Token(**json.loads(base64.urlsafe_b64decode(said)))
    except (ValueError, TypeError):
        raise RequestError("what comes from the stage before is no token: it was cut off, or changed") from None
    seal_of(token.directory).check(said, proof, now_s)
    if token.until_s < now_s:
        raise RequestError(f"the token of the stage before has expired {now_s - token.until_s:,.0f} s ago")
    if token.right != "take":
        raise RequestError(f"the token of the stage before is to {token.right!r}, and not to take results")
    return token


def seal_of(directory: str | os.PathLike[str]) -> Seal:
    """Return what tokens for the node in a directory are signed with."""
    signatures = signatures_with(lesser_keys_in(directory))
    if signatures is not None:
        return Certified(signatures)
    secret = Secret.of(directory)
    return Shared(_own_key() if secret is None else secret.lane_key)


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
