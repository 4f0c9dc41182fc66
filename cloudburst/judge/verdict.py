"""The whole judgement of a history: each level held or not, what breaks it, and the counts of papers.

The one rule: a level holds when its own checks and those of all weaker levels find nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cloudburst.judge import counting, coverage, levels
from cloudburst.judge.explaining import explain
from cloudburst.judge.facts import Facts, gather
from cloudburst.judge.history import History
from cloudburst.judge.levels import CAUSAL, LEVELS, MONOTONIC, OWN_WRITES, READ_ATOMIC, REPEATABLE, Violation
from cloudburst.judge.order import Order


@dataclass(slots=True)
class Verdict:
    """What was found. `found` has a list for each level that was asked for, and for what a session sees of itself."""

    facts: Facts
    order: Order
    found: dict[str, list[Violation]] = field(default_factory=dict)
    counts: counting.Counts | None = None

    def violations(self, level: str) -> list[Violation]:
        """Return what breaks a level: what its own checks found, and those of the weaker levels."""
        if level not in LEVELS:
            return self.found[level]
        return [one for weaker in LEVELS[: LEVELS.index(level) + 1] for one in self.found[weaker]]

    def held(self, level: str) -> bool:
        return not self.violations(level)

    def transactions(self, level: str) -> int:
        """Return how many transactions have read what the level forbids."""
        return len({one.transaction for one in self.violations(level)})

    def kinds(self, level: str) -> dict[str, int]:
        """Return how often each kind was found by the level's own checks, the most frequent first."""
        return dict(Counter(one.kind for one in self.found[level]).most_common())

    def explain(self, violation: Violation) -> list[str]:
        return explain(violation, self.facts, self.order)


def judge(history: History, level: str = CAUSAL, stage: Callable[[str], None] | None = None) -> Verdict:
    """Judge a history up to a level; causal includes what a session sees of itself. Raises HistoryError.
     `stage` is told what is done next. About 10 s of processor time for 100,000 transactions of 4 operations in 50
    sessions.
    """
    tell: Callable[[str], None] = stage or (lambda _: None)
    wanted: Sequence[str] = LEVELS[: LEVELS.index(level) + 1]
    tell("who read what from whom")
    facts = gather(history)
    tell("what must come before what")
    order = Order(facts)
    verdict = Verdict(facts, order)
    faults = levels.of_faults(facts)
    verdict.found[REPEATABLE] = [one for one in faults if one.level == REPEATABLE]
    tell(READ_ATOMIC)
    fractured, forced = levels.fractured(facts)
    if READ_ATOMIC in wanted:
        dirty = [one for one in faults if one.level == READ_ATOMIC]
        verdict.found[READ_ATOMIC] = [*dirty, *fractured, *coverage.of_direct_reads(facts, order)]
    if CAUSAL in wanted:
        tell(CAUSAL)
        verdict.found[CAUSAL] = [*levels.stale(facts, order), *coverage.of_the_past(facts, order)]
        tell("what sessions see of themselves")
        verdict.found[OWN_WRITES] = levels.own_writes(facts, order)
        verdict.found[MONOTONIC] = levels.monotonic(facts, order)
    tell("counts as papers have them")
    verdict.counts = counting.count(facts, fractured, forced)
    return verdict
