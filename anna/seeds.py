"""The addresses at which a node asks for the cluster that it is to be of.

The one rule: they are asked in turn, each after a pause that doubles whenever all were asked, while no node of a
cluster is heard, and again when there was none for so long that it would be called dead.
Pure: `now` is monotonic, in ns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from anna import config

NEVER: Final = 2**63 - 1
"""A time that does not come."""

DEAD_AFTER_NS: Final = config.DEAD_AFTER_US * 1000
SEED_RETRY_FIRST_NS: Final = config.SEED_RETRY_FIRST_US * 1000
SEED_RETRY_MAX_NS: Final = config.SEED_RETRY_MAX_US * 1000


@dataclass(slots=True)
class Seeds:
    """The addresses, how often one was asked (`tried`), and when to ask the next."""

    addresses: tuple[str, ...]
    due: int
    tried: int = 0
    pause: int = SEED_RETRY_FIRST_NS

    def next(self, now: int) -> str:
        """Return whom to ask now."""
        address = self.addresses[self.tried % len(self.addresses)]
        self.due = now + self.pause
        self.tried += 1
        if self.tried % len(self.addresses) == 0:
            self.pause = min(2 * self.pause, SEED_RETRY_MAX_NS)
        return address

    def heard(self, now: int) -> None:
        """Note a sign of another node: seeds are asked again when there has been none for DEAD_AFTER_US."""
        self.tried, self.pause = 0, SEED_RETRY_FIRST_NS
        if self.addresses:
            self.due = now + DEAD_AFTER_NS
