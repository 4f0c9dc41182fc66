"""When a node ends: told to, or unused, and then as soon as nothing runs there any more.

A pure core: leases, signals and `now` in, an answer out. A node that stops takes no more calls, and hands back those
that wait; what runs there has `drain_s` to end, or until its own deadline. Who says it twice means at once.
Source: DESIGN §6 (leases are revoked on departure).
"""

from __future__ import annotations

from typing import Final

from cloudburst import config

FIRST_LEASE_US: Final = 10_000_000
"""How long a new node waits for its first user."""
LOOK_US: Final = 100_000
"""How often a node that stops looks whether anybody still waits for what runs there."""
LOCK_RETRY_US: Final = 20_000
"""And for its directory's lock, which whoever is just joining or starting a node there holds."""


class Lifetime:
    """The life of one node. `linger_us` is how long it stays without a lease; None: until it is told to stop."""

    def __init__(self, linger_us: int | None, now_us: int) -> None:
        self._linger_us = linger_us
        self._unused_us = None if linger_us is None else now_us + FIRST_LEASE_US
        self._until_us: int | None = None
        self._began_us = 0
        self.leaves = False
        """Whether it was told to stop while others may go on: then it leaves their cluster in order."""

    @property
    def stopping(self) -> bool:
        """Whether it takes no more calls."""
        return self._until_us is not None

    def leased(self) -> None:
        """Take in that somebody uses it."""
        if not self.stopping:
            self._unused_us = None

    def left(self, now_us: int) -> None:
        """Take in that its last lease has ended."""
        if self._linger_us is not None and not self.stopping:
            self._unused_us = now_us + self._linger_us

    def unused(self, now_us: int) -> bool:
        """Whether nobody has used it for so long that it should stop; ask again a little later if it cannot yet."""
        if self.stopping or self._unused_us is None or now_us < self._unused_us:
            return False
        self._unused_us = now_us + LOCK_RETRY_US
        return True

    def stop(self, now_us: int, leaves: bool = False) -> bool:
        """Begin to stop; the second time, end at once. Return whether it has begun now."""
        begun = not self.stopping
        if begun:
            self._began_us = now_us
        self.leaves = self.leaves or leaves
        self._until_us = now_us + int(config.DRAIN_S * 1e6) if begun else now_us
        return begun

    def over(self, now_us: int, empty: bool, unwanted: bool) -> bool:
        """Whether it is time to end: nothing is left there, or nothing that somebody waits for, or time is over."""
        if self._until_us is None:
            return False
        given_up = unwanted and now_us >= self._began_us + config.KILL_GRACE_US
        return empty or given_up or now_us >= self._until_us

    def next_look_us(self, now_us: int) -> int | None:
        """When to ask again."""
        return self._unused_us if self._until_us is None else now_us + (LOOK_US if now_us < self._until_us else 1000)
