"""A call that its caller waits for: the calling thread sends it, waits, and decides about the next attempt.

The one rule: no other thread takes part, so a warm call is one hop there and one back. Source: DESIGN §6 (one hop).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cloudburst import frames
from cloudburst.attempts import Task
from cloudburst.futures import Future
from cloudburst.lanes import LaneLost
from cloudburst.membership import Membership
from cloudburst.outcomes import Outcome
from cloudburst.page import monotonic_us

UNBEGUN: Final = frames.reply(frames.BOUNCED, 0, frames.WHY_LEAVING)
"""The answer that stands for an executor at which nobody listens any more."""


class Blocking:
    """The calls of one client that are waited for. `start` spawns a call that must not be sent from here."""

    def __init__(self, start: Callable[[Membership, Task], Future]) -> None:
        self._start = start
        self._prefer = 0

    def complete(self, membership: Membership, task: Task) -> Outcome:
        """Carry a call to its end in this thread."""
        outcome: Outcome | None = None
        while outcome is None:
            now_us = monotonic_us()
            slot = membership.claim(self._prefer, task.deadline_us, now_us, task.near)
            try:
                outcome = self._attempt(membership, task, slot, now_us)
            finally:
                membership.chooser.release(slot)
            if outcome is None and monotonic_us() >= task.deadline_us:
                return task.expired(begun=task.attempts > 0)
            if outcome is None and task.homes is not None:  # it was continued with a function for few executors
                return self._spawned(membership, task)
            self._prefer = slot
        return outcome

    def _spawned(self, membership: Membership, task: Task) -> Outcome:
        """Leave a call to the spawner, and wait for it."""
        future = self._start(membership, task)
        try:
            future.exception()
        except BaseException:
            future.cancel()
            raise
        return future.outcome()

    def _attempt(self, membership: Membership, task: Task, slot: int, now_us: int) -> Outcome | None:
        incarnation = 0
        try:
            lane = membership.lane(slot)
        except LaneLost:
            membership.forget(slot)
            return task.answered(UNBEGUN, slot)
        incarnation = lane.incarnation
        try:
            reply = lane.exchange(task.frame(now_us), task.deadline_us - now_us)
        except TimeoutError:
            lane.close()
            return task.expired(begun=True)
        except LaneLost:
            lane.close()
            membership.clear_after(task, incarnation)
            return task.lost(slot, membership.fate(slot, incarnation), monotonic_us())
        except BaseException:
            lane.close()  # Ctrl-C, or a cancelled function: what it waited for is stopped as well
            membership.stop(slot, task)
            raise
        membership.give_back(lane)
        outcome = task.answered(reply, slot)
        if reply[5] & frames.SHARED and outcome is not None and outcome.descriptor is not None:
            return membership.fetch(task, membership.take(task, outcome, outcome.descriptor))
        return outcome
