"""When to start a crashed worker again.

The one rule: a worker that ran well is restarted at once; one that crashes again and again waits longer
each time, so that a fault which every start meets costs little and can be read in the log. Pure: `now` is
an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

RAN_WELL_S: Final = 10.0
"""A worker that lived this long has its earlier crashes forgotten."""

PAUSE_FIRST_S: Final = 0.1
"""Pause before the second restart in a row; the first has none."""

PAUSE_MAX_S: Final = 5.0


@dataclass(slots=True)
class Backoff:
    """The restarts of one seat.

    >>> seat = Backoff()
    >>> seat.started(now=0.0)
    >>> [seat.crashed(now=0.5), seat.crashed(now=0.6), seat.crashed(now=0.7)]
    [0.0, 0.1, 0.2]
    """

    crashes: int = 0
    started_at: float = 0.0

    def started(self, now: float) -> None:
        """Note that the worker was started."""
        self.started_at = now

    def crashed(self, now: float) -> float:
        """Note that the worker ended; return for how many seconds its successor must wait."""
        self.crashes = 1 if now - self.started_at >= RAN_WELL_S else self.crashes + 1
        doublings = self.crashes - 2
        if doublings < 0:
            return 0.0
        return PAUSE_MAX_S if doublings > 16 else min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0**doublings)
