"""How many executors a node has: as many as its calls keep busy, and some to spare.

A pure policy: what the executors were seen doing, and `now`, in; their number out. Three rules keep it calm. What is
looked at is windows, never lifetimes: a short one to grow, the busiest of a longer time to shrink. There is a gap
between the utilisation at which it grows (`grow_over`) and at which it shrinks (`shrink_under`), and it goes to what is
between them, so that no step calls for its own reversal. Each step is bounded, and followed by a pause in which its
effect can be seen.
Waiting calls count by the time that they will take, not by their number: a thousand no-ops need nobody.
Source: Cloudburst (VLDB 2020) §4.4, for the thresholds of 70 % and (there) 20 %; D78 (lifetime means, off by one, a
floor of two); decision record 0023.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from math import ceil
from typing import Final


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers of the policy. A `grow_step` or `shrink_step` is a share of the executors that there are."""

    grow_over: float = 0.7
    shrink_under: float = 0.3
    grow_step: float = 1.0
    grow_step_max: int = 64
    shrink_step: float = 0.5
    grow_window_us: int = 1_000_000
    shrink_window_us: int = 5_000_000
    grow_pause_us: int = 500_000
    shrink_pause_us: int = 1_000_000
    backlog_us: int = 250_000
    """In how long what waits should be done."""
    idle_us: int = 30_000_000
    """How long nothing must have been called before the last executor goes, if it may."""
    look_us: int = 250_000
    idle_look_us: int = 1_000_000

    def for_idleness(self, idle_s: float) -> Policy:
        """Return it with another `idle_us`, and with windows that are no longer than that."""
        idle_us = int(idle_s * 1e6)
        return replace(
            self, idle_us=idle_us, shrink_window_us=min(self.shrink_window_us, idle_us),
            idle_look_us=min(self.idle_look_us, idle_us // 4),
        )  # fmt: skip


DEFAULT: Final = Policy()


@dataclass(frozen=True, slots=True)
class Load:
    """What was seen: `running` calls, `waiting` ones, and how many `calls` have begun since it was looked at before.

    `have` is how many executors there are, without those that are leaving; `starting` of them cannot run anything yet.
    """

    have: int
    starting: int
    running: int
    waiting: int
    calls: int


@dataclass(frozen=True, slots=True)
class _Seen:
    at_us: int
    us: int
    load: Load


class Scaler:
    """The number of executors of one node, from `least` to `most`."""

    def __init__(self, least: int, most: int, policy: Policy = DEFAULT) -> None:
        if not 0 <= least <= most or most < 1:
            raise ValueError(f"{least} to {most} executors; a node has 0 or more, and may have at least 1")
        self.least = least
        self.most = most
        self.policy = policy
        self._seen: deque[_Seen] = deque()
        self._last_us: int | None = None
        self._used_us = 0
        self._pause_until_us = 0

    def look_us(self, now_us: int) -> int | None:
        """Return when to say `see` again; None when there is nothing to look at."""
        if not self._seen:
            return now_us + self.policy.look_us
        load = self._seen[-1].load
        if not load.have and not load.waiting:
            return None
        busy = load.running or load.waiting or load.calls or load.starting
        return now_us + (self.policy.look_us if busy else self.policy.idle_look_us)

    def see(self, load: Load, now_us: int) -> int:
        """Take in what is going on, and return how many executors there should be."""
        self._remember(load, now_us)
        have = load.have
        if load.waiting and not have:
            return max(1, self.least)
        if have < self.least:
            return self.least
        if now_us < self._pause_until_us or load.starting:
            return have
        grown = self._grown(have, now_us)
        return grown if grown > have else self._shrunk(have, now_us)

    def _remember(self, load: Load, now_us: int) -> None:
        if self._last_us is None:
            self._last_us = self._used_us = now_us
        self._seen.append(_Seen(now_us, now_us - self._last_us, load))
        self._last_us = now_us
        if load.running or load.waiting or load.calls:
            self._used_us = now_us
        while self._seen[0].at_us <= now_us - self.policy.shrink_window_us and len(self._seen) > 1:
            self._seen.popleft()

    def _grown(self, have: int, now_us: int) -> int:
        policy, waiting = self.policy, self._seen[-1].load.waiting
        recent = self._within(policy.grow_window_us, now_us)
        busy = _busy(recent)
        needed = busy + waiting * self._call_us() / policy.backlog_us
        wanted = min(ceil(needed / policy.grow_over), self.most)
        if wanted <= have:
            return have
        step = min(policy.grow_step_max, max(1, int(have * policy.grow_step)))
        self._pause_until_us = now_us + policy.grow_pause_us
        return min(wanted, have + step)

    def _shrunk(self, have: int, now_us: int) -> int:
        policy, seen = self.policy, list(self._seen)
        if have > self.most:
            return self.most
        if sum(one.us for one in seen) < policy.shrink_window_us - policy.idle_look_us:
            return have  # it has not been looked at for long enough
        busy = max(_busy(self._within(policy.grow_window_us, one.at_us)) for one in seen)
        if seen[-1].load.waiting or busy >= policy.shrink_under * have:
            return have
        wanted = max(ceil(busy / policy.grow_over), self.least)
        if not wanted and now_us - self._used_us < policy.idle_us:
            wanted = 1
        if wanted >= have:
            return have
        self._pause_until_us = now_us + policy.shrink_pause_us
        return max(wanted, have - max(1, int(have * policy.shrink_step)))

    def _within(self, window_us: int, now_us: int) -> list[_Seen]:
        return [one for one in self._seen if now_us - window_us < one.at_us <= now_us] or [self._seen[-1]]

    def _call_us(self) -> float:
        """Return how long a call takes, from how much was run and how much began: by Little's law, over the window."""
        ran_us = sum(one.load.running * one.us for one in self._seen)
        calls = sum(one.load.calls for one in self._seen)
        return ran_us / calls if calls else float(self.policy.shrink_window_us)

    def check(self) -> None:
        """Assert the invariants: the window is no longer than it may be, and in order."""
        times = [one.at_us for one in self._seen]
        assert times == sorted(times)
        assert not times or times[-1] - times[0] <= self.policy.shrink_window_us + self.policy.idle_look_us


def _busy(seen: list[_Seen]) -> float:
    """Return how many executors were busy in the mean; what was seen counts for the time since it was looked before."""
    span_us = sum(one.us for one in seen)
    return sum(one.load.running * one.us for one in seen) / span_us if span_us else float(seen[-1].load.running)
