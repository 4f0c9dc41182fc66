"""Virtual time: one queue of events, one seed, one digest of all that happened.

The one rule: nothing in the simulator asks the machine for the time, for randomness or for an order. An event runs at
its moment of virtual time, events of one moment in the order in which they were planned, and every draw comes from a
stream that is named and seeded by text. So a seed is a history: two runs of it have the same digest, in any process
and under any PYTHONHASHSEED.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from random import Random
from typing import Any

NS = 1
US = 1000
MS = 1_000_000
SECOND = 1_000_000_000

TRACE_EVENTS = 200
"""How many of the last events are kept to be printed when a run fails."""


class Schedule:
    """The event queue. `now` is virtual nanoseconds since the start; `clocks` makes the machines' clocks of it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0
        self.events = 0
        self.recent: deque[str] = deque(maxlen=TRACE_EVENTS)
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0
        self._hash = blake2b(digest_size=16)

    def stream(self, name: str) -> Random:
        """Return the random numbers of one concern. Draws of one stream never shift another's."""
        return Random(f"{self.seed}/{name}")

    def at(self, when: int, action: Callable[..., None], *arguments: Any) -> None:
        """Plan `action(*arguments)`; a moment that has passed means now."""
        self._planned += 1
        heapq.heappush(self._queue, (max(when, self.now), self._planned, action, arguments))

    def after(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        """Plan `action(*arguments)` in `delay` ns."""
        self.at(self.now + delay, action, *arguments)

    def note(self, what: str) -> None:
        """Put one event into the digest and among the last events."""
        line = f"{self.now} {what}"
        self.events += 1
        self.recent.append(line)
        self._hash.update(line.encode())

    def run(self, until: int) -> None:
        """Run every event up to and including `until`; then it is `until`."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(queue)
            action(*arguments)
        self.now = max(self.now, until)

    @property
    def digest(self) -> str:
        """The digest of all events so far, as hexadecimal digits."""
        return self._hash.copy().hexdigest()
