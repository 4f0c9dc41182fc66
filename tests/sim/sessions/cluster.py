"""A store's workers, the caches of nodes before them, and clients whose sessions run there: all from one plan.

The one rule: workers, network and clocks are those of `tests.sim`; here is only what stands before them.
"""

from __future__ import annotations

from typing import Any

from anna.messages import View
from cloudburst.consistency.levels import Level, level_of
from tests.sim.checkers import Violation
from tests.sim.cluster import Cluster
from tests.sim.sessions.caches import CacheHost
from tests.sim.sessions.clients import Client

Plan = dict[str, Any]

STAMP_AT = 16
"""Where a request's frame has the greatest stamp that its sender has seen."""


class SessionCluster(Cluster):
    """All of it. `lines` are the history, each with the level at which its transaction ran."""

    def __init__(self, plan: Plan) -> None:
        super().__init__({**plan, "clients": 0, "operations": []})
        self.ack: int = plan["ack"]
        self.strongest = max(level_of(client["level"]).number for client in plan["actors"])
        self.lines: list[tuple[Level, dict[str, Any]]] = []
        self.violations: list[Violation] = []
        for node, rate in zip(self.nodes, plan.get("rates", ())):
            node.clock.rate = rate
        self.committed: dict[bytes, int] = {}
        self._hops = self.schedule.stream("hops")
        first = len(self.nodes)
        self.caches = [CacheHost(self, n, first + n, skew) for n, skew in enumerate(plan["cache_skews"])]
        self.actors = [Client(self, number, **client) for number, client in enumerate(plan["actors"])]

    def view_now(self) -> View:
        """Return the view as some worker knows it, or as it was when all began."""
        return next((process.worker.view for process in self.processes()), self.view)

    def cache(self, number: int) -> CacheHost:
        """Return the cache of a node."""
        return self.caches[number % len(self.caches)]

    def hop(self) -> int:
        """Return how long a call takes from one node to the next, in ns."""
        return self.network.quality.delay + int(self._hops.random() * self.network.quality.jitter)

    def new_nonce(self) -> int:
        """Return a number for the first attempt of a coordinator, in a range that no other draws."""
        return self.ids.getrandbits(56) << 8

    def note_commit(self, transaction: bytes, stamp: int, after: int) -> None:
        """Write down where somebody was told that a transaction is committed: all are told the same."""
        known = self.committed.get(transaction)
        self.committed[transaction] = stamp
        if known not in (None, stamp):
            self.fail("two-effects", f"{transaction.hex()} was committed at {known} and at {stamp}")
        if known is None and stamp <= after and not self.planted("stamps-alone"):
            self.fail("early-commit", f"{transaction.hex()} at {stamp} does not come after {after}")

    def spoil(self, frame: bytes) -> bytes:
        """Return a frame as it leaves a node for an owner: as it is, unless that is the fault."""
        if self.planted("stamps-alone"):
            return frame[:STAMP_AT] + bytes(8) + frame[STAMP_AT + 8 :]
        return frame

    def fail(self, checker: str, message: str) -> None:
        """Write down what must not be."""
        self.violations.append(Violation(checker, message))
