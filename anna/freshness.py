"""Never older than seen: which reads of a client could miss what it has read or written before, and what they have to
ask for.

While a client uses one owner of each key, its home, nothing can be missed: that worker has all that it ever answered.
When it goes to another owner, or when another worker becomes the key's home, a read there must be *strict*: the worker
answers only if everything up to a stamp has arrived. This is the stamp up to which the client may have seen something
of the key at others.

The one rule: a stamp is an upper bound of what was seen, never a lower one; and what is stable is everywhere, so it
asks for nothing. Hence nothing is kept for each key, only for each worker that could not be reached, and for former
placements of keys, each until the stable epoch has passed its stamp. Source: reliability, P6 (read your writes,
monotonic reads, through failover).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from anna.config import EPOCH_US
from anna.messages import View
from anna.routing.placement import Placement
from anna.vectors import Vector

PLACEMENTS_KEPT_MAX: Final = 4
"""Former placements that are told apart; when there are more, every key counts as moved."""

COUNTER_BITS: Final = 10
"""What stands below the microseconds in a stamp."""


@dataclass(slots=True)
class Absence:
    """One home that the client went past: how much it had seen there, and has seen of that home's keys elsewhere."""

    left: int
    """Nothing above this stamp was seen at the home before it was left."""
    elsewhere: dict[int, int] = field(default_factory=dict)
    """For each other worker, the greatest stamp of an answer about a key of this home."""
    answered: bool = False
    """Whether the home has answered since it was left, so that the next leaving has a new stamp."""


class Freshness:
    """What one client must ask for. Workers are named by their ids, so views may come and go."""

    def __init__(self) -> None:
        self.stable: int | None = None
        self.floor = 0
        self._formers: list[Placement] = []
        self._all_moved = False
        self._absences: dict[int, Absence] = {}

    @property
    def unsettled(self) -> bool:
        """Whether any read may have to be strict."""
        return bool(self._formers or self._all_moved or self._absences)

    def moved(self, former: Placement, seen: int, view: View) -> None:
        """The client goes over from a placement to that of `view`; it has seen stamps up to `seen`."""
        serving = {worker.worker_id for node in view.serving for worker in node.workers}
        for worker_id in list(self._absences):
            if worker_id not in serving:
                self._absences.pop(worker_id, None)
        self.floor = seen
        self._formers = [*self._formers, former]
        if len(self._formers) > PLACEMENTS_KEPT_MAX:
            self._formers, self._all_moved = [], True

    def needed(self, key: bytes, home: int, target: int, seen: int) -> int:
        """Return the stamp up to which `target` must have everything to be asked for `key`; 0 when it need not.

        `home` answered with the stamp `seen` when it answered last.
        """
        stamp = self.floor if self._has_moved(key, target) else 0
        absence = self._absences.get(home)
        if absence is None and target != home:
            absence = self._absences[home] = Absence(seen)
        if absence is not None:
            if target != home:
                if absence.answered:
                    absence.left, absence.answered = seen, False
                stamp = max(stamp, absence.left)
            stamp = max(stamp, *(s for worker, s in list(absence.elsewhere.items()) if worker != target), 0)
        return 0 if self.is_stable(stamp) else stamp

    def answered(self, home: int, by: int, stamp: int, seen: int) -> None:
        """A key of `home` (which answered with `seen` last) was read or written at `by`, whose clock was at `stamp`."""
        absence = self._absences.get(home)
        if by == home:
            if absence is not None:
                absence.answered = True
            return
        if absence is None:
            absence = self._absences[home] = Absence(seen)
        absence.elsewhere[by] = max(stamp, absence.elsewhere.get(by, 0))

    def learn_stable(self, low: int) -> None:
        """Take note of the low 32 bits of a stable epoch (0: the worker knows none), and forget what it settles."""
        if low == 0 or (self.stable is not None and not _reached(low, self.stable)):
            return
        self.stable = low
        if self.is_stable(self.floor):
            self._formers, self._all_moved, self.floor = [], False, 0
        for home, absence in list(self._absences.items()):
            absence.elsewhere = {w: s for w, s in list(absence.elsewhere.items()) if not self.is_stable(s)}
            if self.is_stable(absence.left):
                absence.left = 0
            if absence.answered and not absence.elsewhere and not absence.left:
                self._absences.pop(home, None)

    def is_stable(self, stamp: int) -> bool:
        """Whether everything up to `stamp` is known to be on all its replicas."""
        return stamp == 0 or (self.stable is not None and _reached(self.stable, (stamp >> COUNTER_BITS) // EPOCH_US))

    def _has_moved(self, key: bytes, target: int) -> bool:
        """Whether another worker than `target` was the key's home under a placement whose end is not stable."""
        return self._all_moved or any(
            former.workers > 0 and former.owner_of(key).worker_id != target for former in self._formers
        )


def _reached(stable: int, epoch: int) -> bool:
    """Whether a stable epoch has come up to another; both may be given by their low 32 bits."""
    return ((stable - epoch) & 0xFFFFFFFF) < 0x80000000


def homes_of(view: View) -> object:
    """Return what decides which worker is the home of a key.

    With one copy of each key a new process in a seat is no reason to wait for anything: what the old one had is gone.
    """
    if view.default == Vector(1) and not view.vectors.serving:
        return [(node.node_id, node.tier) for node in view.serving]
    nodes = [(node.node_id, node.tier, node.workers) for node in view.serving]
    return view.default, view.vectors.serving, nodes
