"""The owner's part of a queue: it announces tasks, and says which result of each one counts.

The one rule: a task is settled once, by its owner alone, with the first success that has come, or as failed when no
further attempt can be made. So there is exactly one result however often a task was run. Pure, as `queue`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cloudburst import config
from cloudburst.burst.tasks.facts import Announced, Ended, Fact, Lost, Result, Settled
from cloudburst.burst.tasks.queue import Ledger, Rules


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a task, and how often it was begun.

    `result` is None, and `why` says so, when no worker has lived to its end.
    """

    key: bytes
    attempts: int
    result: Result | None
    why: str
    settled: Settled

    @property
    def ok(self) -> bool:
        """Whether it is done."""
        return self.result is not None and self.result.ok


class Desk:
    """The tasks of one owner, whose name is `name`."""

    def __init__(self, name: str, rules: Rules, window: int = config.QUEUE_WINDOW_TASKS) -> None:
        self.name = name
        self.ledger = Ledger(rules)
        self.window = window
        self.announced = self.done = self.failed = 0

    @property
    def room(self) -> int:
        """How many more tasks may be announced now."""
        return self.window - (self.announced - self.done - self.failed)

    @property
    def empty(self) -> bool:
        """Whether all that was announced is settled."""
        return self.announced == self.done + self.failed

    def offer(self, key: bytes, body: bytes, now_us: int) -> Announced:
        """Announce a task, whose key must be new. Ask for `room` first."""
        assert self.room > 0
        assert key not in self.ledger.entries
        fact = Announced(key, body)
        self.ledger.absorb(self.name, fact, now_us)
        self.announced += 1
        return fact

    def withdraw(self, now_us: int) -> list[Fact]:
        """Give up every task that nobody has leased yet; what is leased goes on."""
        ledger = self.ledger
        entries = ledger.entries
        given_up = [key for key in ledger.unsettled if not ledger.live(key, now_us) and not entries[key].chosen()]
        facts: list[Fact] = [Settled(key, 0, "") for key in given_up]
        for fact in facts:
            ledger.absorb(self.name, fact, now_us)
        self.announced -= len(facts)
        return facts

    def lose(self, worker: str, now_us: int) -> Lost:
        """Say that a worker has ended, so that nobody waits for its leases to expire."""
        fact = Lost(worker)
        self.ledger.absorb(self.name, fact, now_us)
        return fact

    def all_silent(self, workers: Iterable[str], now_us: int) -> bool:
        """Whether all of these have been heard of, and none lately: nobody would take their tasks."""
        ledger = self.ledger
        names = list(workers)
        return bool(names) and all(ledger.was_heard(name) and not ledger.alive(name, now_us) for name in names)

    def absorb(self, writer: str, facts: Iterable[Fact], now_us: int) -> list[Outcome]:
        """Take in what a worker has written; return what is settled by that, each task once in the desk's life."""
        outcomes = []
        for fact in facts:
            self.ledger.absorb(writer, fact, now_us)
            if isinstance(fact, Ended):
                outcomes += self._settle(fact.key, now_us)
        return outcomes

    def look(self, now_us: int) -> list[Outcome]:
        """Return what is settled because its last workers are lost. Call it every second or so."""
        spent = [key for key in self.ledger.unsettled if self.ledger.spent(self.ledger.entries[key])]
        return [outcome for key in spent for outcome in self._settle(key, now_us)]

    def _settle(self, key: bytes, now_us: int) -> list[Outcome]:
        entry = self.ledger.entries[key]
        if key not in self.ledger.unsettled:
            return []
        chosen = entry.chosen()
        if chosen is not None:
            attempt, worker, result = chosen
            self.done += 1
            return [self._outcome(key, result, "", Settled(key, attempt, worker), now_us)]
        if not self.ledger.spent(entry) or self.ledger.live(key, now_us):
            return []
        ends = sorted((place, end) for place, end in entry.ends.items() if end is not None)
        last = ends[-1][1] if ends else None
        lost = sum(place not in entry.ends for place in entry.begun or entry.leases)
        why = f"{lost} workers were lost under it" if entry.failures < self.ledger.rules.failures_max else ""
        self.failed += 1
        return [self._outcome(key, last if not why else None, why, Settled(key, 0, ""), now_us)]

    def _outcome(self, key: bytes, result: Result | None, why: str, settled: Settled, now_us: int) -> Outcome:
        self.ledger.absorb(self.name, settled, now_us)
        return Outcome(key, len(self.ledger.entries[key].begun), result, why, settled)

    def check(self) -> None:
        """Assert the invariants: all that was announced is settled or not, and is counted once."""
        self.ledger.check()
        assert self.announced - self.done - self.failed == len(self.ledger.unsettled)
        assert self.room >= 0
