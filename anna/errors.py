"""What can go wrong, arranged by the two questions that a caller has: whose fault is it, and may I retry?

`definite` is True when the request surely had no effect, now or later; False when it may have had one. Source:
STYLE (errors); the definite/indefinite split is Maelstrom's.
"""

from __future__ import annotations

from typing import Self


class AnnaError(Exception):
    """The root of every error that `anna` raises."""

    definite: bool = True


class RequestError(AnnaError):
    """The request was at fault; the same request will fail again."""


class KeyNotFound(RequestError, KeyError):
    """No value is stored under the key."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class BadKey(RequestError, ValueError):
    """The key is not text or bytes of 1 to `KEY_BYTES_MAX` bytes, or is reserved."""


class LatticeTypeMismatch(RequestError, TypeError):
    """A key keeps the lattice type of its first write; this write or join was of another."""

    @classmethod
    def between(cls, have: str, got: str, key: str | None = None) -> Self:
        """Return the error for a state of type `have` that was offered one of type `got`."""
        where = f"{key!r} holds" if key is not None else "cannot join:"
        return cls(f"{where} a {have}, got a {got}")


class ValueTooLarge(RequestError, ValueError):
    """The value, key count or frame exceeds its named limit in `anna.config`."""


class NotSerializable(RequestError, TypeError):
    """The value has no encoding: it can be carried neither by a typed codec nor by pickle."""


class NeedsPickle(RequestError, TypeError):
    """The value is a pickle and this client was opened with `allow_pickle=False`."""


class NotSupported(RequestError):
    """The peer is well-formed but asked for an operation, option or version that this side does not have."""


class StampAhead(RequestError, ValueError):
    """A client's stamp is further ahead of the worker's clock than `STAMP_AHEAD_MAX_US` allows."""


class Changed(RequestError):
    """A put that compares found another stamp than the one that it named: somebody wrote meanwhile."""


class NotAdmitted(RequestError, PermissionError):
    """The two sides do not know each other's keys, or these keys do not have the right that the request needs."""


class UnavailableError(AnnaError):
    """Nothing was wrong with the request; a retry may succeed."""


class RequestTimeout(UnavailableError, TimeoutError):
    """The deadline passed before the answer came: the request may have taken effect."""

    definite = False


class ConnectionLost(UnavailableError, ConnectionError):
    """The connection ended while the request was under way: it may have taken effect."""

    definite = False


class NoWorkers(UnavailableError):
    """The view names no worker that could be reached."""


class StaleReplica(UnavailableError):
    """The replica that was asked may lack what this client has seen already, and no other could be reached in time."""


class DiskFull(UnavailableError, OSError):
    """The node has no room to make a write durable; nothing was written."""


class SnapshotExpired(UnavailableError):
    """The epoch that this session reads at is no longer kept."""


class Overloaded(UnavailableError):
    """A bounded queue, or the memory for keys and values, is full; the request was not begun."""


class StorageFailed(UnavailableError):
    """A disk failed under a commit: whether that commit is durable is not known, and none after it will be."""

    definite = False


class DataInUse(UnavailableError):
    """Another process has the seat's data open."""


class Damaged(AnnaError):
    """Stored data is not as it was written, so it is not served: it must come from a replica."""


class ProtocolError(AnnaError):
    """The peer's bytes are not of the protocol."""
