"""What a session has written to one key, so that it can read it back before any worker has accepted it.

The one rule: a write is placed in the session's own history at once, as a worker would place it in the store's: by a
stamp of the session's own clock, which is later than all that was ever written, and under a writer that no worker is.
So registers, counters, removals and siblings read inside a session as they will after it, and what several functions
have written is joined like anything else. Only what is committed is turned back into requests, for the workers to
place. Source: DESIGN §4 (value = base ⊔ deltas ≤ E ⊔ own writes).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from anna.commits import Write, write_of
from anna.lattices import LWW, Lattice, Map, ORSet

CLOCK_MIN: Final = 1 << 62
"""Stamps from here on are of sessions' own clocks: a worker's come to that in the year 2166."""
WRITERS_MIN: Final = 1 << 63
"""Writers from here on are sessions': no worker has such an id."""
SEES: Final = frozenset((ORSet.NUMBER, Map.NUMBER))
"""The types whose writes mean something else depending on what is there: a removal removes what the session sees."""


class Own(NamedTuple):
    """The writes of sessions to one key: joined, with when the last of them was, and the last delete (0: none).

    With `lives_us` the last of them lives for so long from the commit on. A session itself reads it to its end.
    """

    stamp: int
    deleted: int
    delta: Lattice | None
    lives_us: int = 0

    def over(self, state: Lattice | None) -> Lattice | None:
        """Return what the key holds for who sees `state` and these writes. Raises LatticeTypeMismatch."""
        if self.deleted:
            state = None
        if self.delta is None:
            return state
        return self.delta if state is None else state.join(self.delta)

    def requests(self) -> tuple[bool, Lattice | None]:
        """Return what is to be committed: whether the key is deleted first, and what is then written."""
        return self.deleted > 0, None if self.delta is None else self.delta.as_request(WRITERS_MIN)

    def write(self, key: bytes) -> Write:
        """Return them as a write of a transaction."""
        gone, state = self.requests()
        return write_of(key, state, gone, self.lives_us)

    def placed(self, stamp: int, writer: int) -> Own:
        """Return the writes as the owners have placed them in a transaction: all of it depends on its id and stamp."""
        request = self.requests()[1]
        if request is None:
            return self
        return self._replace(delta=request.as_prepared(None, writer).assign(None, stamp, writer))

    @property
    def size_bytes(self) -> int:
        """About what it takes."""
        return 0 if self.delta is None else int(self.delta.size_bytes)


def written(
    before: Own | None, seen: Lattice | None, value: Lattice, stamp: int, writer: int, lives_us: int = 0
) -> Own:
    """Return the writes to a key after one more: of `value`, by who sees `seen`. Raises LatticeTypeMismatch."""
    if seen is not None and type(seen) is not type(value):
        from anna.errors import LatticeTypeMismatch

        raise LatticeTypeMismatch.between(type(seen).__name__, type(value).__name__)
    # A register that its author has stamped gives way, as at a worker, only to what is later than it.
    delta = value.assign(seen, stamp, writer)
    if before is None:
        return Own(stamp, 0, delta, lives_us)
    return Own(stamp, before.deleted, delta if before.delta is None else before.delta.join(delta), lives_us)


def deleted(stamp: int) -> Own:
    """Return the writes to a key after a delete: nothing of what was before shows."""
    return Own(stamp, stamp, None)


def joined(first: Own, second: Own) -> Own:
    """Return the writes of two branches to one key; the second's register wins a tie.

    What was written before the later delete of the two, by the sessions' clock, is gone, whichever branch wrote it.
    """
    gone = max(first.deleted, second.deleted)
    alive = [one for one in (first, second) if one.delta is not None and (one.deleted == gone or one.stamp > gone)]
    stamp = max(first.stamp, second.stamp)
    if not alive:
        return Own(stamp, gone, None)
    lives_us = max(alive, key=lambda one: one.stamp).lives_us
    if len(alive) == 1:
        return Own(stamp, gone, alive[0].delta, lives_us)
    left, right = alive[0].delta, alive[1].delta
    assert left is not None
    assert right is not None
    if isinstance(left, LWW) and isinstance(right, LWW):
        return Own(stamp, gone, left if left.stamp > right.stamp else right, lives_us)
    return Own(stamp, gone, left.join(right), lives_us)
