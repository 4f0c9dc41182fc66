"""Repeatable, read-atomic, causal, and what one session sees of itself: whether some order of all commits explains
the reads.

The one rule (Biswas & Enea, OOPSLA 2019, which Cerone et al. say in terms of visibility): a read of x by t3 from t1
forces every t2 that wrote x and that t3 must have seen before t1; a history is of the level when the forced orders
and the order that lines say have no cycle together. The levels differ only in what t3 must have seen:

    read-atomic    those that it read from directly                           (commits keep the order of reads)
    causal         all of its past, along reads, sessions and tokens          (and the order of that past)
    own writes     what its session wrote before                              (likewise)
    monotonic      those that its session read the same key from before       (likewise)

The premise mentions no order of commits, so the forced orders are found once, and the whole is polynomial.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cloudburst.judge.facts import (
    ABORTED,
    CHANGED,
    INITIAL,
    INTERMEDIATE,
    NOWHERE,
    OWN_EARLY,
    OWN_UNSEEN,
    REGISTER,
    UNWRITTEN,
    Facts,
    Fault,
    Seen,
)
from cloudburst.judge.history import OK, Value
from cloudburst.judge.order import FORCED, READING, SESSION, TOLD, Edge, Order, components, cycle_through
from cloudburst.judge.past import topological

REPEATABLE, READ_ATOMIC, CAUSAL = "repeatable", "read-atomic", "causal"
OWN_WRITES, MONOTONIC = "read-your-writes", "monotonic-reads"
LEVELS: Final = (REPEATABLE, READ_ATOMIC, CAUSAL)

FRACTURED = "fractured read"
STALE = "stale read"
FORGOTTEN = "own write of the session unseen"
BACK = "read that went back"
FUTURE = "read from its own future"
NO_ORDER = "reads that no order of commits explains"
UNCOVERED = "missing element"
RETURNED = "removed element that came back"

CYCLE_TRIES_MAX: Final = 64
"""From how many transactions of a knot a shortest cycle is looked for."""


@dataclass(frozen=True, slots=True)
class Forced:
    """A read by `reader` that forces `over` before the read's source."""

    reader: int
    seen: Seen
    over: int

    @property
    def source(self) -> int:
        return self.seen.sources[0]


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong, who read it, and what shows it: the read's source and the write that it should have seen, or a
    cycle."""

    level: str
    kind: str
    transaction: int
    key: int = -1
    value: Value = None
    line: int = 0
    source: int = NOWHERE
    over: int = -1
    fault: Fault | None = None
    cycle: tuple[Edge, ...] = ()
    reasons: tuple[Forced, ...] = ()
    """What forces the orders of the cycle; or, without one, all that show the same read to be wrong, if several do."""


class Knots:
    """Base edges and forced ones; what is still a cycle once the contradictions that one read shows by itself are
    taken out."""

    def __init__(self, count: int, tails: array[int], heads: array[int]) -> None:
        self.count = count
        self.tails = tails[:]
        self.heads = heads[:]
        self.reasons: dict[tuple[int, int], Forced] = {}

    def force(self, forced: Forced) -> None:
        self.tails.append(forced.over)
        self.heads.append(forced.source)
        self.reasons.setdefault((forced.over, forced.source), forced)

    def violations(self, level: str, base: Order | None) -> Iterator[Violation]:
        """Yield one violation for each set of transactions that all have to be before each other, with a short
        cycle."""
        done = topological(self.count, self.tails, self.heads)
        if len(done) == self.count:
            return
        knotted = set(range(self.count)) - set(done)
        into: dict[int, list[int]] = {one: [] for one in knotted}
        for tail, head in zip(self.tails, self.heads):
            if tail in knotted and head in knotted:
                into[head].append(tail)
        for component in components(sorted(knotted), into.__getitem__):
            inside = set(component)
            cycle = self._cycle(component, inside, into, base)
            reasons = tuple(self.reasons[tail, head] for tail, head, why in cycle if why == FORCED)
            reader = min((one.reader for one in reasons), default=component[0])
            yield Violation(level, NO_ORDER, reader, cycle=tuple(cycle), reasons=reasons)

    def _cycle(
        self, component: list[int], inside: set[int], into: dict[int, list[int]], base: Order | None
    ) -> list[Edge]:
        def edges(one: int) -> Iterator[Edge]:
            for tail in into[one]:
                why = READING if base is None or tail in base.facts.sources(one) else SESSION
                if (tail, one) in self.reasons:
                    why = FORCED
                elif why == SESSION and base is not None and tail != base.facts.before[one]:
                    why = TOLD
                yield tail, one, why

        best: list[Edge] = []
        starts = [source for over, source in self.reasons if over in inside and source in inside] or component
        for start in sorted(set(starts))[:CYCLE_TRIES_MAX]:
            found = cycle_through(start, inside, edges)
            if found and (not best or len(found) < len(best)):
                best = found
        return best


def of_faults(facts: Facts) -> list[Violation]:
    """Return what transactions show by themselves: repeatable and read-atomic ones, by their kinds."""
    level = {CHANGED: REPEATABLE, OWN_UNSEEN: REPEATABLE, OWN_EARLY: REPEATABLE}
    level |= dict.fromkeys((UNWRITTEN, ABORTED, INTERMEDIATE), READ_ATOMIC)
    return [
        Violation(level[one.kind], one.kind, one.transaction, one.key, one.value, one.line, fault=one)
        for one in facts.faults
    ]


def fractured(facts: Facts) -> tuple[list[Violation], list[Forced]]:
    """Return the fractured reads, and all orders that reads force by what their transactions read beside them."""
    tails, heads = array("i"), array("i")
    for one in range(len(facts.transactions)):
        for source in sorted(facts.sources(one)):
            tails.append(source)
            heads.append(one)
    knots = Knots(len(facts.transactions), tails, heads)
    found: list[Violation] = []
    everything: list[Forced] = []
    for one in range(len(facts.transactions)):
        mine = list(_forced_directly(facts, one))
        both = {(forced.over, forced.source) for forced in mine}
        shown: set[int] = set()
        for forced in mine:
            source, over = forced.source, forced.over
            if source == INITIAL or source in facts.sources(over) or (source, over) in both:
                if forced.seen.key not in shown:
                    shown.add(forced.seen.key)
                    found.append(_violation(READ_ATOMIC, FRACTURED, forced))
            else:
                knots.force(forced)
        everything += mine
    return [*found, *knots.violations(READ_ATOMIC, None)], everything


def _forced_directly(facts: Facts, one: int) -> Iterator[Forced]:
    registers = list(_registers(facts, one))
    if not registers or (len(registers) == 1 and len(facts.reads[one]) == 1):
        return
    for over in sorted(facts.sources(one)):
        wrote = facts.finals[over]
        for seen in registers:
            if seen.key in wrote and over != seen.sources[0]:
                yield Forced(one, seen, over)


def stale(facts: Facts, order: Order) -> list[Violation]:
    """Return the reads that miss something of their past, and the knots that remain without them."""
    direct, indirect = stale_directly(facts, order)
    knots = Knots(order.count, order.tails, order.heads)
    for forced in indirect:
        knots.force(forced)
    found = [_violation(CAUSAL, STALE, *direct[place]) for place in sorted(direct)]
    return [*found, *of_broken(order), *knots.violations(CAUSAL, order)]


def stale_directly(facts: Facts, order: Order) -> tuple[dict[tuple[int, int], list[Forced]], list[Forced]]:
    """Return the reads, by (reader, key), whose source is in the past of what they miss, and the orders that the
    others force."""
    reads = [(one, seen) for one in range(order.count) for seen in _registers(facts, one)]
    columns = _read_columns(reads)
    arrays = Writers(facts, order, REGISTER).arrays
    direct: dict[tuple[int, int], list[Forced]] = {}
    indirect: list[Forced] = []
    undecided: list[Forced] = []
    for past in order.blocks():
        for read, over, directness in zip(*past.forced(*columns, *arrays)):
            reader, seen = reads[read]
            forced = Forced(reader, seen, over)
            if directness == 1:
                direct.setdefault((reader, seen.key), []).append(forced)
            else:
                (indirect if directness == 0 else undecided).append(forced)
    known = order.preceding({(forced.source, forced.over) for forced in undecided})
    for forced in undecided:
        if (forced.source, forced.over) in known:
            direct.setdefault((forced.reader, forced.seen.key), []).append(forced)
        else:
            indirect.append(forced)
    return direct, indirect


def of_broken(order: Order) -> Iterator[Violation]:
    """Yield a violation for each cycle of reads and sessions alone: somebody read what depends on what they did
    later."""
    for component in order.broken:
        inside = set(component)

        def edges(one: int) -> Iterator[Edge]:
            yield from order.predecessors(one)
            facts = order.facts
            for teller in facts.told[one]:
                if (teller, one) in order.left_out:
                    yield teller, one, TOLD
            for source in sorted(facts.sources(one)):
                if (source, one) in order.left_out:
                    yield source, one, READING

        cycles = [cycle_through(start, inside, edges) for start in component[:CYCLE_TRIES_MAX]]
        cycle = min((one for one in cycles if one), key=len)
        reader = next((head for _, head, why in cycle if why == READING), component[0])
        yield Violation(CAUSAL, FUTURE, reader, cycle=tuple(cycle))


def own_writes(facts: Facts, order: Order) -> list[Violation]:
    """Return the reads that miss what their session wrote to the same key before."""
    last: dict[tuple[str, int], int] = {}
    found = []
    for one in range(order.count):
        session = facts.session(one)
        for seen in _registers(facts, one):
            over = last.get((session, seen.key))
            if over is not None and over != seen.sources[0]:
                found.append(Forced(one, seen, over))
        if facts.outcomes[one] == OK:
            last.update(dict.fromkeys(((session, key) for key in facts.finals[one]), one))
    return _of_session(OWN_WRITES, FORGOTTEN, found, order)


def monotonic(facts: Facts, order: Order) -> list[Violation]:
    """Return the reads of what is older than what their session read of the same key before."""
    last: dict[tuple[str, int], int] = {}
    found = []
    for one in range(order.count):
        session = facts.session(one)
        for seen in _registers(facts, one):
            over = last.get((session, seen.key), INITIAL)
            if over != INITIAL and over != seen.sources[0]:
                found.append(Forced(one, seen, over))
            if facts.outcomes[one] == OK:
                last[session, seen.key] = seen.sources[0]
    return _of_session(MONOTONIC, BACK, found, order)


def _of_session(level: str, kind: str, found: Sequence[Forced], order: Order) -> list[Violation]:
    known = order.preceding({(forced.source, forced.over) for forced in found if forced.source != INITIAL})
    knots = Knots(order.count, order.tails, order.heads)
    violations = []
    for forced in found:
        if forced.source == INITIAL or (forced.source, forced.over) in known:
            violations.append(_violation(level, kind, forced))
        else:
            knots.force(forced)
    return [*violations, *knots.violations(level, order)]


class Writers:
    """Who wrote each key, by chains: `arrays` as the kernel wants them, `groups` for each key as (chain, positions,
    writers)."""

    def __init__(self, facts: Facts, order: Order, *kinds: str) -> None:
        by_key: list[dict[int, tuple[list[int], list[int]]]] = [{} for _ in facts.keys]
        places: Iterable[int] = order.order
        for one in places:
            if not facts.counts[one]:
                continue
            for key in facts.finals[one]:
                if facts.kinds[key] in kinds:
                    positions, writers = by_key[key].setdefault(order.column[one], ([], []))
                    positions.append(order.position[one])
                    writers.append(one)
        self.groups = by_key

    @property
    def arrays(self) -> tuple[array[int], array[int], array[int], array[int], array[int]]:
        key_groups, chains, starts = array("i", [0]), array("i"), array("i", [0])
        positions, writers = array("i"), array("i")
        for groups in self.groups:
            for chain in sorted(groups):
                chains.append(chain)
                positions.extend(groups[chain][0])
                writers.extend(groups[chain][1])
                starts.append(len(writers))
            key_groups.append(len(chains))
        return key_groups, chains, starts, positions, writers


def _registers(facts: Facts, one: int) -> Iterator[Seen]:
    for seen in facts.reads[one]:
        if facts.kinds[seen.key] == REGISTER and seen.sources[0] != NOWHERE:
            yield seen


def _read_columns(reads: Sequence[tuple[int, Seen]]) -> tuple[array[int], array[int], array[int]]:
    return (
        array("i", [reader for reader, _ in reads]),
        array("i", [seen.key for _, seen in reads]),
        array("i", [seen.sources[0] for _, seen in reads]),
    )


def _violation(level: str, kind: str, *shown_by: Forced) -> Violation:
    forced = shown_by[0]
    seen = forced.seen
    others = shown_by if len(shown_by) > 1 else ()
    return Violation(
        level, kind, forced.reader, seen.key, seen.value, seen.line, forced.source, forced.over, reasons=others
    )
