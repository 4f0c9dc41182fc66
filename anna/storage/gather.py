"""Whether the next commit waits a moment for those whom the last one answered, to have their next writes too.

The one rule: a wait has to pay. Clients that write again at once fall into two groups by themselves, each of which
waits for the commit of the other; together they need half as many. Clients that do not write again would be waited for
in vain, so after each wait in vain twice as many commits as before do not wait. Pure: whoever uses it has the clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from anna.config import GATHER_PERCENT, GATHER_REST_COMMITS_MAX


@dataclass(slots=True)
class Gather:
    """How many are awaited, how many commits do not wait yet, and how many will not after the next wait in vain."""

    awaited: int = 0
    rest: int = 0
    rest_next: int = 1

    def begin(self, waited: int, answered: int) -> bool:
        """A commit answered so many of those who waited: tell whether the next one should wait for them."""
        if not answered:
            return False
        if self.rest:
            self.rest -= 1
            return False
        self.awaited = waited
        return True

    def is_enough(self, waiting: int) -> bool:
        """Tell whether so many are all that need be waited for: a few stragglers have the commit after."""
        return waiting * 100 >= self.awaited * GATHER_PERCENT

    def end(self, *, in_vain: bool) -> None:
        """Note how a wait ended: they came, or the time was up."""
        self.rest = self.rest_next if in_vain else 0
        self.rest_next = min(2 * self.rest_next, GATHER_REST_COMMITS_MAX) if in_vain else 1
