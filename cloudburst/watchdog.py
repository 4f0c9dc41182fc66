"""Stops calls that outlive their deadline, from outside the process that runs them.

A pure core: what a slot of the page shows and `now` in, instructions out. A call is interrupted at its deadline plus
a grace, and its executor is killed if the very same call still runs a little later. It is told of a call only once
that has run long (`executor.alarm`), so short calls cost nothing here, and it looks at a busy executor about once a
second, so an idle node is never woken. Source: reliability C (infinite loops; SIGTERM, then SIGKILL).
"""

from __future__ import annotations

from dataclasses import dataclass

from cloudburst import config
from cloudburst.messages import Instruction, Interrupt, Kill, Watch


@dataclass(slots=True)
class _Ward:
    """One executor under watch: when to look again, the call in question, and how far its stopping has got."""

    look_us: int
    invocation: tuple[int, int] = (0, 0)
    stop_us: int = 0
    interrupted: bool = False


class Watchdog:
    """Watches the slots that reported a long call or whose call was cancelled."""

    def __init__(
        self,
        grace_us: int = config.KILL_GRACE_US,
        kill_us: int = config.KILL_US,
        look_every_us: int = config.LOOK_US,
    ) -> None:
        self._grace_us = grace_us
        self._kill_us = kill_us
        self._look_every_us = look_every_us
        self._wards: dict[int, _Ward] = {}
        self.killed: dict[int, tuple[int, int]] = {}
        """The invocation for which a slot's executor was killed last: its death is then no crash."""

    @property
    def next_look_us(self) -> int | None:
        """When `due` next has something to do."""
        return min((ward.look_us for ward in self._wards.values()), default=None)

    def due(self, now_us: int) -> list[int]:
        """Return the slots to look at now; call `see` for each."""
        return [slot for slot, ward in self._wards.items() if ward.look_us <= now_us]

    def see(
        self, slot: int, running: bool, invocation: tuple[int, int], deadline_us: int, now_us: int
    ) -> list[Instruction]:
        """Take in what a slot is doing, after it reported a long call or when it was due."""
        if not running:
            return self.forget(slot)
        ward = self._wards.get(slot)
        if ward is None:
            ward = self._wards[slot] = _Ward(now_us)
        if ward.invocation != invocation:
            ward.invocation, ward.stop_us, ward.interrupted = invocation, 0, False
        stop_us = min(deadline_us + self._grace_us, ward.stop_us or (1 << 63))
        if now_us < stop_us:
            ward.look_us = min(stop_us, now_us + self._look_every_us)
            return [Watch(slot, ward.look_us)]
        if not ward.interrupted:
            ward.interrupted = True
            ward.look_us = now_us + self._kill_us
            ward.stop_us = now_us
            return [Watch(slot, ward.look_us), Interrupt(slot, invocation)]
        self.killed[slot] = invocation
        del self._wards[slot]
        return [Watch(slot, 0), Kill(slot)]

    def stop(self, slot: int, invocation: tuple[int, int], now_us: int) -> list[Instruction]:
        """See to it that a cancelled invocation ends: after the grace it is interrupted, and then killed."""
        ward = self._wards.get(slot)
        if ward is None or ward.invocation != invocation:
            ward = self._wards[slot] = _Ward(now_us + self._kill_us, invocation)
        if not ward.interrupted:
            ward.stop_us = min(now_us + self._kill_us, ward.stop_us or (1 << 63))
            ward.look_us = min(ward.look_us, ward.stop_us)
        return [Watch(slot, ward.look_us)]

    def forget(self, slot: int) -> list[Instruction]:
        """Stop watching a slot: it is idle, or its executor has ended."""
        return [] if self._wards.pop(slot, None) is None else [Watch(slot, 0)]

    def check(self) -> None:
        """Assert the invariants: nothing is killed that was not interrupted first, and each ward is looked at again."""
        for ward in self._wards.values():
            assert ward.look_us > 0
            assert not ward.interrupted or ward.stop_us > 0
