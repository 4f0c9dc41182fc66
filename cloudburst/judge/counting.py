"""Anomalies as the papers count them, to be put beside their tables: transactions, of all that there are.

The one rule: a count has the definition of its paper, also where a level's is another. AFT (EuroSys 2020):
read-your-writes is a transaction that does not get back what it wrote; fractured is one that read version i of a key
together with an older version of another key that i's transaction wrote as well, or two versions of one. Cloudburst
(VLDB 2020): repeatable read is two versions of a key in one DAG; a lost update is a version that was overwritten by
one whose writer had not seen it. HydroCache (SIGMOD 2020): causal is a transaction that read a version which, along
reads alone, is under another that it depends on.

Which version is older is what lines prove; where both have commit stamps, also what these say. Lost updates need
stamps.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from cloudburst.judge.facts import CHANGED, INITIAL, OWN_UNSEEN, REGISTER, Facts
from cloudburst.judge.history import OK, WRITE
from cloudburst.judge.levels import FRACTURED, Forced, Violation, stale_directly
from cloudburst.judge.order import CELLS_MAX, Order


@dataclass(frozen=True, slots=True)
class Counts:
    """Transactions with each anomaly; None for what this history does not allow to count."""

    transactions: int
    repeatable_read: int
    read_your_writes: int
    fractured_reads: int
    causal: int | None
    lost_updates: int | None


def count(facts: Facts, fractured: list[Violation], forced: list[Forced]) -> Counts:
    """Return the counts; `fractured` and `forced` are what `levels.fractured` found."""
    changed = {one.transaction for one in facts.faults if one.kind == CHANGED}
    torn = {one.transaction for one in fractured if one.kind == FRACTURED} | changed
    torn |= {one.reader for one in forced if _older(facts, one.source, one.over)}
    reads_only = _order_of_reads(facts)
    return Counts(
        len(facts.transactions),
        len(changed),
        len({one.transaction for one in facts.faults if one.kind == OWN_UNSEEN}),
        len(torn),
        None if reads_only is None else len({reader for reader, _ in stale_directly(facts, reads_only)[0]}),
        None if reads_only is None else _lost_updates(facts, reads_only),
    )


def _older(facts: Facts, one: int, other: int) -> bool:
    if one == INITIAL:
        return True
    mine, its = facts.transactions[one].commit, facts.transactions[other].commit
    return mine is not None and its is not None and mine < its


def _order_of_reads(facts: Facts) -> Order | None:
    order = Order(facts, sessions=False)
    return order if order.columns * order.count <= CELLS_MAX else None


def _lost_updates(facts: Facts, order: Order) -> int | None:
    """Return how many transactions overwrote a version, by the order of stamps, that they had not seen."""
    versions: list[list[tuple[int, int]]] = [[] for _ in facts.keys]
    for number, one in enumerate(facts.transactions):
        if facts.counts[number] and any(op.kind == WRITE for _, op in one.operations()):
            if one.commit is None:
                if facts.outcomes[number] == OK:
                    return None
                continue
            for key in facts.finals[number]:
                if facts.kinds[key] == REGISTER:
                    versions[key].append((one.commit, number))
    lost = set()
    for found in versions:
        found.sort()
        for (_, earlier), (_, later) in pairwise(found):
            if not order.precedes(earlier, later):
                lost.add(later)
    return len(lost)
