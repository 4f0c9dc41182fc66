"""What a watcher of a key is shown.

The one rule: what was shown never goes back. States of one key are joined, whichever owner they came from, and shown
when they grew; a deletion forgets what was shown, so the next write is shown whatever it is.
"""

from __future__ import annotations

from typing import Final

from anna.lattices import Lattice

PUSH_KEY_BYTES: Final = 2
"""A push begins with the length of its key in so many bytes."""


class Watched:
    """The state of one key as far as its watcher has seen it."""

    def __init__(self) -> None:
        self._state: Lattice | None = None

    @property
    def state(self) -> Lattice | None:
        """What was shown last; None when nothing was, or it was deleted since."""
        return self._state

    def show(self, state: Lattice | None) -> Lattice | None:
        """Take a state (None: there is none) and return what is to be shown, None for nothing."""
        known = self._state
        if state is None or known is None or type(known) is not type(state):
            self._state = state
            return state
        joined = known.join(state)
        if joined == known:
            return None
        self._state = joined
        return joined


def pushed(payload: bytes) -> bytes:
    """Return the state in a push's payload: u16 key bytes, key, state."""
    return payload[PUSH_KEY_BYTES + int.from_bytes(payload[:PUSH_KEY_BYTES], "little") :]
