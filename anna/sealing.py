"""TLS as a value: bytes that arrived go in, bytes to send come out, and nothing here waits or has a socket.

The one rule: no byte of a request leaves or is taken before both sides have shown certificates of one cluster. What
goes wrong says which side was not believed, at which address, and of which clusters the two are.
Source: decision record 0037; the form is h11's.
"""

from __future__ import annotations

import ssl
from typing import Final

from anna.errors import NotAdmitted, ProtocolError
from anna.gate import Right
from anna.keys import Identity, Keys, identity_of

READ_BYTES: Final = 65536

_ALERTS: Final = {
    "UNKNOWN_CA": "it does not believe the authority of these keys",
    "CERTIFICATE_REQUIRED": "it takes only who shows keys",
    "CERTIFICATE_EXPIRED": "these keys have expired",
    "BAD_CERTIFICATE": "it does not take these keys",
    "ACCESS_DENIED": "it does not take these keys",
    "DECRYPT_ERROR": "these keys are not what they say they are",
}


class NotBelieved(NotAdmitted):
    """The other side shows a certificate that these keys' authorities have not signed."""


class Seal:
    """One side of one connection. `peer` is who the other is, once `shake` has returned True."""

    __slots__ = ("_incoming", "_keys", "_object", "_outgoing", "_where", "peer")

    def __init__(self, keys: Keys, address: str | None = None) -> None:
        """Dial `address`, or accept whom nobody knows yet (None)."""
        self._keys = keys
        self._where = address
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = keys.server if address is None else keys.client
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=address is None)
        self.peer: Identity | None = None

    def shake(self) -> bool:
        """Go on with the handshake; return whether it is over. Raises NotAdmitted, which `take` tells the other."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise self._refusal(error) from None
        self.peer = identity_of(self._object.getpeercert() or {})
        if self.peer is None or self.peer.cluster != self._keys.cluster:
            theirs = self.peer and self.peer.cluster
            raise NotBelieved(f"{self._other()} is of cluster {theirs}, not {self._keys.cluster}")
        if self._where is not None and self.peer.right < Right.ADMIN:
            raise NotBelieved(f"{self._other()} is {self.peer.name}, whose right is not that of a node")
        return True

    def feed(self, data: bytes) -> None:
        """Take in bytes that arrived."""
        self._incoming.write(data)

    def take(self) -> bytes:
        """Return what is to be sent."""
        return self._outgoing.read()

    def write(self, data: bytes | memoryview) -> None:
        """Have something to send. Raises NotAdmitted."""
        try:
            self._object.write(data)
        except ssl.SSLError as error:
            raise self._refusal(error) from None

    def read(self) -> bytes:
        """Return all that was said in what has arrived, b"" for nothing. Raises NotAdmitted."""
        said = []
        try:
            while data := self._object.read(READ_BYTES):
                said.append(data)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError as error:
            if not said:
                raise self._refusal(error) from None
        return said[0] if len(said) == 1 else b"".join(said)

    def read_into(self, place: memoryview) -> int:
        """Put some of what was said into `place`; return how many bytes, 0: more has to arrive. Raises NotAdmitted."""
        try:
            return self._object.read(len(place), place)  # type: ignore[return-value]
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            return 0
        except ssl.SSLError as error:
            raise self._refusal(error) from None

    def _other(self) -> str:
        return "who dialled" if self._where is None else f"who listens at {self._where}"

    def _refusal(self, error: ssl.SSLError) -> Exception:
        """Return the error that one of OpenSSL's stands for."""
        reason = error.reason or str(error)
        if isinstance(error, ssl.SSLCertVerificationError):
            told = f"{error.verify_message}; these keys are of cluster {self._keys.cluster}"
            return NotBelieved(f"{self._other()} shows keys that are not believed: {told}")
        if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return NotAdmitted(f"{self._other()} shows no keys")
        if "ALERT" in reason:
            said = reason.lower().replace("_", " ")
            why = next((told for alert, told in _ALERTS.items() if reason.endswith(alert)), said)
            own = f"keys in {self._keys.directory}, cluster {self._keys.cluster}"
            return NotAdmitted(f"{self._other()} refuses these keys: {why} ({own})")
        if self.peer is None:
            hint = "" if self._where is None else ": it was started without --keys, or is something else"
            return NotAdmitted(f"{self._other()} does not speak TLS{hint} ({reason.lower().replace('_', ' ')})")
        return ProtocolError(f"what came from {self._where or self.peer.name} was changed on its way ({reason})")
