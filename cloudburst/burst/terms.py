"""What a run may take: how long, how long without work, how much money, and when it is over by that.

A pure core: times and machines in, a reason out. Nothing here ends anything. Source: burst-systems §5.1 (cb up);
docs/decisions/0036.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloudburst import config
from cloudburst.burst.provider import Plan
from cloudburst.errors import CostLimit, RequestError

LEAST_PAID_S: Final = 60.0
"""A run whose money would be gone sooner is refused before anything is asked for."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The bounds of one run; None for none. Raises RequestError for one that is not above 0."""

    ready_in_s: float = config.READY_IN_S
    ttl_s: float | None = None
    idle_stop_s: float | None = None
    max_cost: float | None = None
    price: float | None = None
    """What a machine costs in an hour, in US dollars, where whoever asks knows better than the provider."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RequestError(f"{name} is {value:g}; it must be above 0")

    @property
    def any(self) -> bool:
        """Whether the run may be over before somebody ends it."""
        return not (self.ttl_s is None and self.idle_stop_s is None and self.max_cost is None)

    def check(self, plan: Plan, spent: float = 0.0) -> None:
        """Raise CostLimit when what is planned costs so much that it would end at once."""
        if self.max_cost is None or not plan.price:
            return
        paid_s = (self.max_cost - spent) / plan.price * 3600
        if paid_s < LEAST_PAID_S:
            raise CostLimit(
                f"{len(plan.places)} machines cost ${plan.price:.2f} an hour: the ${self.max_cost:.2f} of max_cost, of"
                f" which ${spent:.2f} are spent, last for {max(0.0, paid_s):.0f} s; ask for fewer, or allow more"
            )


class Meter:
    """How long a run has lasted, and what it has cost. Times are in seconds, of one clock."""

    def __init__(self, terms: Terms, now: float) -> None:
        self._terms = terms
        self._begun = self._active = self._counted = now
        self.spent = 0.0

    def count(self, now: float, price: float, active: float) -> str:
        """Take in that machines have cost so much an hour until now, and when one was last at work.

        Returns why the run is over, "" while it is not.
        """
        self.spent += price * max(0.0, now - self._counted) / 3600
        self._counted = now
        self._active = max(self._active, active)
        terms = self._terms
        if terms.ttl_s is not None and now - self._begun >= terms.ttl_s:
            return f"its time is over (ttl {terms.ttl_s:g} s)"
        if terms.max_cost is not None and self.spent >= terms.max_cost:
            return f"its money is spent (${self.spent:.2f} of max_cost ${terms.max_cost:.2f})"
        if terms.idle_stop_s is not None and now - self._active >= terms.idle_stop_s:
            return f"{IDLE} (idle_stop {terms.idle_stop_s:g} s)"
        return ""


IDLE: Final = "nothing has run for a while"


def seconds(text: str) -> float:
    """Return a duration in seconds: 90, 90s, 5m, 2h. Raises ValueError."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:], 0)
    value = float(text[:-1]) * unit if unit else float(text)
    if not 0 < value < float("inf"):
        raise ValueError(f"{text} is no duration above 0")
    return value
