"""A host's two clocks, made of virtual time.

The one rule: no two hosts agree on anything. The monotonic clock of each begins somewhere else at each boot, so that
code which compares two hosts' readings goes wrong at once (P14); the wall clock is off by a little from the start and
may jump by an hour (P13). A running worker keeps time by the monotonic clock; only a start reads the wall.
"""

from __future__ import annotations

from random import Random

from tests.sim.schedule import SECOND, US, Schedule

WALL_AT_START_US = 200_000_000_000_000
"""Microseconds since 2020 at virtual time 0."""

MONOTONIC_ORIGIN_MAX_NS = 10**15


class HostClock:
    """The clocks of one host. `skew_us` is how far its wall clock is off at the start; below `rate` 1 they run slow."""

    def __init__(self, schedule: Schedule, draw: Random, skew_us: int) -> None:
        self._schedule = schedule
        self._draw = draw
        self._skew_us = skew_us
        self.rate = 1.0
        self._origin = draw.randrange(MONOTONIC_ORIGIN_MAX_NS)

    def monotonic(self) -> int:
        """Return nanoseconds since nobody knows when."""
        now = self._schedule.now
        return (now if self.rate == 1.0 else int(now * self.rate)) + self._origin

    def moment_of(self, monotonic: int) -> int:
        """Return the virtual time at which `monotonic()` will be that."""
        moment = monotonic - self._origin
        return moment if self.rate == 1.0 else int(moment / self.rate) + 1

    def wall_us(self) -> int:
        """Return microseconds since 2020 as this host believes."""
        return WALL_AT_START_US + self._skew_us + self._schedule.now // US

    def jump(self, seconds: int) -> None:
        """Move the wall clock; the monotonic one does not notice."""
        self._skew_us += seconds * SECOND // US

    def reboot(self) -> None:
        """Begin the monotonic clock anew."""
        self._origin = self._draw.randrange(MONOTONIC_ORIGIN_MAX_NS)
