"""How many machines a run has, between two bounds: more when calls wait, fewer when machines have nothing to do.

A pure core: what the executors of all machines do, and a time, in; a number and the reason out. A machine takes seconds
to minutes until it is there and costs money from then on, so what counts is what lasts: calls that have waited the
whole of one window (`grow_s`) while all executors were busy, and the busiest moment of another, long one (`shrink_s`).
What it shrinks to is less busy than what it grows at, and after each step the windows begin anew, so no step calls for
its own reversal. A step at most doubles or halves. How many executors a machine has is another policy
(`cloudburst.autoscaling`). Source: DESIGN §6 (nodes follow the replicas); Cloudburst (VLDB 2020) §4.4;
docs/decisions/0044.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from math import ceil
from typing import Final

from cloudburst.errors import RequestError


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the greatest number of machines. Raises RequestError when there are none such."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if self.least < 1:
            raise RequestError(f"{self.least} hosts; a cluster has at least 1")
        if self.most < self.least:
            raise RequestError(f"{self} hosts; the first number is the least, the second the greatest")

    @classmethod
    def of(cls, said: int | str | Bounds) -> Bounds:
        """Return what a number, or a text such as `3` and `2..10`, says. Raises RequestError."""
        if isinstance(said, Bounds):
            return said
        found = re.fullmatch(r"(-?\d+)(?:\.\.(-?\d+))?", str(said))
        if found is None:
            raise RequestError(f"{said!r} is no number of hosts: 3, or 2..10")
        return cls(int(found[1]), int(found[2] or found[1]))

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return self.least == self.most

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}..{self.most}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of the policy. Times are in seconds; `busy` is a share of the executors."""

    busy: float = 0.9
    grow_s: float = 3.0
    shrink_s: float = 60.0
    rest_s: float = 30.0
    """How long it asks for no more after machines were not obtained."""


@dataclass(frozen=True, slots=True)
class Load:
    """What was seen: how many executors there are, how many of them run something, and how many calls wait."""

    executors: int
    running: int
    waiting: int


DEFAULT: Final = Sizes()


class Sizing:
    """The number of machines of one run."""

    def __init__(self, sizes: Sizes = DEFAULT) -> None:
        self._sizes = sizes
        self._seen: deque[tuple[float, Load]] = deque()
        self._hosts = 0
        self._rest_until = float("-inf")

    def rest(self, now: float) -> None:
        """Take in that machines were not obtained."""
        self._rest_until = now + self._sizes.rest_s
        self._seen.clear()

    def see(self, bounds: Bounds, hosts: int, load: Load, now: float) -> tuple[int, str]:
        """Take in what so many machines do; return how many there should be, and why when that is another number."""
        if hosts != self._hosts:
            self._hosts = hosts
            self._seen.clear()
        self._seen.append((now, load))
        sizes = self._sizes
        while len(self._seen) > 1 and self._seen[1][0] <= now - max(sizes.grow_s, sizes.shrink_s):
            self._seen.popleft()
        if hosts < bounds.least:
            return (hosts, "") if now < self._rest_until else (bounds.least, f"there were {hosts} of {bounds} hosts")
        if hosts > bounds.most:
            return bounds.most, f"there were {hosts} of {bounds} hosts"
        return self._grown(bounds, hosts, now) or self._shrunk(bounds, hosts, now) or (hosts, "")

    def _grown(self, bounds: Bounds, hosts: int, now: float) -> tuple[int, str] | None:
        sizes, seen = self._sizes, self._within(self._sizes.grow_s, now)
        if not seen or hosts == bounds.most or now < self._rest_until:
            return None
        if not all(load.waiting and load.running >= sizes.busy * load.executors for load in seen):
            return None
        each = max(1.0, seen[-1].executors / hosts)
        needed = ceil(min(load.running + load.waiting for load in seen) / each)
        wanted = min(bounds.most, 2 * hosts, max(hosts + 1, needed))
        least = min(load.waiting for load in seen)
        return wanted, f"{least} calls or more waited for {sizes.grow_s:g} s, and all executors were busy"

    def _shrunk(self, bounds: Bounds, hosts: int, now: float) -> tuple[int, str] | None:
        sizes, seen = self._sizes, self._within(self._sizes.shrink_s, now)
        if not seen or hosts == bounds.least:
            return None
        each = max(1.0, seen[-1].executors / hosts)
        busiest = max(load.running + load.waiting for load in seen)
        needed = max(bounds.least, ceil(busiest / (sizes.busy * each)), hosts - max(1, hosts // 2))
        if needed >= hosts:
            return None
        return needed, f"no more than {busiest} calls ran or waited for {sizes.shrink_s:g} s"

    def _within(self, window_s: float, now: float) -> list[Load]:
        """Return what was seen in a window; nothing when it has not been looked at for so long."""
        if not self._seen or self._seen[0][0] > now - window_s:
            return []
        return [load for at, load in self._seen if at >= now - window_s]

    def check(self) -> None:
        """Assert the invariants: what is kept is in order, and one entry at most is older than the windows."""
        times = [at for at, _ in self._seen]
        assert times == sorted(times)
        assert all(times[-1] - at < max(self._sizes.grow_s, self._sizes.shrink_s) for at in times[1:])
