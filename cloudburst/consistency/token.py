"""A session's token: what another session, client or machine has to be told to see all that it saw and wrote.

The one rule: a token that was not made by `text_of` is refused, for a wrong epoch would show what is older than what
was promised, or wait for what never comes. Its last digits are a check of the others. Source: SURFACE (`s.token`).
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from cloudburst.consistency.session import Past, Snapshot
from cloudburst.errors import RequestError

_WIDTH = 16
_CHECK = 8


class Token(NamedTuple):
    """Where a session read, and the stamp of its last commit."""

    snapshot: Snapshot
    last: int

    def text(self) -> str:
        """Return it as text, 56 hexadecimal digits."""
        body = "".join(f"{number:0{_WIDTH}x}" for number in (*self.snapshot, self.last))
        return body + _check(body)

    def join(self, other: Token) -> Token:
        """Return what stands for both: the later epoch, the later stamp."""
        return Token(max(self.snapshot, other.snapshot), max(self.last, other.last))

    def past(self) -> Past:
        """Return what a session comes after that has nothing but this: it waits until the epoch has the last commit."""
        past = Past()
        past.saw(self.snapshot)
        past.wrote(self.last)
        return past


NO_TOKEN = Token(Snapshot(), 0)


def token_of(text: str) -> Token:
    """Return what `Token.text` wrote. Raises RequestError."""
    body = text[: 3 * _WIDTH] if isinstance(text, str) else ""
    if len(body) != 3 * _WIDTH or text[3 * _WIDTH :] != _check(body):
        raise RequestError(f"{text!r} is no token of a session: that is what `session.token` was, whole")
    try:
        epoch, view, last = (int(body[at : at + _WIDTH], 16) for at in range(0, 3 * _WIDTH, _WIDTH))
    except ValueError:
        raise RequestError(f"{text!r} is no token of a session: it has other digits than hexadecimal ones") from None
    return Token(Snapshot(epoch, view), last)


def _check(body: str) -> str:
    return hashlib.blake2b(body.encode(errors="replace"), digest_size=_CHECK // 2).hexdigest()
