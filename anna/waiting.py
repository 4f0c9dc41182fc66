"""What a node says while it waits for the cluster that it is to join: for whom, for how long, and how that went.

The one rule: it is said soon, and then ever more seldom, for as long as no node of a cluster answers; a node never
gives up by itself, because those that it waits for may be starting, too. Pure: `now` is monotonic, in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from anna.config import SEED_RETRY_MAX_US

SAID_AFTER_S: Final = 2.0
"""How long nothing is said: seeds that run answer within some milliseconds."""

SAID_EACH_S_MAX: Final = 60.0
"""The longest pause before it is said again; the first ones double."""


@dataclass(slots=True)
class Waiting:
    """The wait of one node, since `begun`."""

    begun: float
    due: float = 0.0
    pause: float = SAID_AFTER_S

    def __post_init__(self) -> None:
        self.due = self.begun + self.pause

    def is_due(self, now: float) -> bool:
        """Whether it is time to say something (again)."""
        return now >= self.due

    def say(self, now: float, tries: int, reasons: Mapping[str, str], foreign: int) -> str:
        """Return what is to be said.

        `reasons` gives for each seed how asking it went; `foreign` counts messages of another cluster.
        """
        self.pause = min(2 * self.pause, SAID_EACH_S_MAX)
        self.due = now + self.pause
        seeds = "the seed has" if len(reasons) == 1 else f"none of the {len(reasons)} seeds has"
        no = " not" if len(reasons) == 1 else ""
        asked = f"asked {tries:,} time{'s' * (tries != 1)}"
        heard = f"; {foreign:,} message{'s' * (foreign != 1)} came from a cluster of another name" if foreign else ""
        went = ", ".join(f"{address} ({reason})" for address, reason in reasons.items())
        return (
            f"waiting to join: {seeds}{no} answered for a cluster in {now - self.begun:.0f} s, {asked}: {went}{heard}. "
            f"It serves no key until one does, and goes on asking, at most {SEED_RETRY_MAX_US / 1e6:.0f} s apart"
        )
