"""Who wrote what and who read it from whom, and what a transaction shows to be wrong by itself.

The one rule: the first read of a key in a transaction, before it wrote the key, is what it read of others (theory
calls it external); every later read is decided here, by what the transaction itself read and wrote. A read that was
answered is judged whatever became of its transaction. Writes count when the outcome is ok, or unknown and somebody
has seen one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cloudburst.judge.history import (
    ADD,
    FAILED,
    OK,
    READ,
    REMOVE,
    UNKNOWN,
    WRITE,
    Atom,
    History,
    HistoryError,
    Line,
    Operation,
    Transaction,
    Value,
)

REGISTER, SET, SIBLINGS = "register", "set", "siblings"

INITIAL: Final = -1
"""The source of a read of an absent key: what was there before all transactions."""

NOWHERE: Final = -2
"""The source of a read that nothing follows from: of a value that nobody wrote, or of an absence that a delete may
have made."""

CHANGED = "read that changed"
OWN_UNSEEN = "own write unseen"
OWN_EARLY = "own write read before it"
UNWRITTEN = "read of what was never written"
ABORTED = "aborted read"
INTERMEDIATE = "intermediate read"


class Seen(NamedTuple):
    """The first read of a key from others: which key, what was read, on which line, and who wrote it, for each
    value."""

    key: int
    value: Value
    line: int
    sources: tuple[int, ...]


class Fault(NamedTuple):
    """One transaction's own contradiction: its kind, the key, the value that was read, on which line, and beside
    what."""

    kind: str
    transaction: int
    key: int
    value: Value
    line: int
    beside: Value
    beside_line: int


class Own(NamedTuple):
    """One operation of a transaction that writes: in which of its lines, at which place."""

    part: int
    place: int
    kind: str
    value: Value


@dataclass(slots=True)
class Facts:
    """What follows from a history's operations one by one. Transactions and keys are numbers, from 0, in the order of
    the history."""

    history: History
    keys: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    author: list[dict[Atom, int]] = field(default_factory=list)
    """For each key: value to the transaction that wrote or added it."""
    removers: list[dict[Value, list[int]]] = field(default_factory=list)
    """For each key: element to the transactions that removed it and did not fail; under None, those that deleted the
    key."""
    outcomes: list[str] = field(default_factory=list)
    counts: list[bool] = field(default_factory=list)
    """For each transaction: whether its writes count."""
    finals: list[dict[int, tuple[Value, ...]]] = field(default_factory=list)
    """For each transaction: what it left of its writes and adds to each key, whether they count or not."""
    taken: list[dict[int, set[Atom]]] = field(default_factory=list)
    """For each transaction: what it removed from each key."""
    reads: list[list[Seen]] = field(default_factory=list)
    read_from: list[frozenset[int]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    """For each transaction: the last one of its session before it that was ok, or -1."""
    told: list[list[int]] = field(default_factory=list)
    told_of: dict[str, int] = field(default_factory=dict)

    @property
    def transactions(self) -> list[Transaction]:
        return self.history.transactions

    def line(self, transaction: int) -> int:
        return self.history.transactions[transaction].number

    def session(self, transaction: int) -> str:
        return self.history.transactions[transaction].session

    def sources(self, transaction: int) -> frozenset[int]:
        """Return the transactions that this one read from directly."""
        return self.read_from[transaction]


def gather(history: History) -> Facts:
    """Return the facts of a history. Raises HistoryError where lines contradict each other."""
    facts = Facts(history)
    numbers: dict[str, int] = {}
    _note_writes(facts, numbers)
    unresolved = [_walk(facts, number, one, numbers) for number, one in enumerate(history.transactions)]
    _order_sessions(facts)
    _resolve(facts, unresolved)
    facts.counts = [
        outcome == OK or (outcome == UNKNOWN and counts) for outcome, counts in zip(facts.outcomes, facts.counts)
    ]
    return facts


# -- first pass: keys, their kinds, who wrote what

_WRITTEN, _ELEMENTS, _SCALAR, _MANY = 1, 2, 4, 8


def _note_writes(facts: Facts, numbers: dict[str, int]) -> None:
    marks: list[int] = []
    for number, one in enumerate(facts.transactions):
        facts.outcomes.append(outcome := one.outcome)
        for line in one.lines:
            for place, (kind, key, value) in enumerate(line.operations):
                k = numbers.get(key)
                if k is None:
                    k = numbers[key] = len(facts.keys)
                    facts.keys.append(key)
                    facts.author.append({})
                    facts.removers.append({})
                    marks.append(0)
                marks[k] |= _mark(kind, value)
                if (marks[k] & _ELEMENTS and marks[k] & (_SCALAR | _WRITTEN)) or (
                    marks[k] & _SCALAR and marks[k] & _MANY
                ):
                    raise HistoryError(
                        line.number,
                        f"operations[{place}]",
                        f"{key!r} is a register or siblings on one line and a set on another",
                    )
                if kind == REMOVE or (kind == WRITE and value is None):
                    if outcome != FAILED:
                        facts.removers[k].setdefault(value, []).append(number)
                elif kind != READ:
                    _note_author(facts, k, value, number, line, place)
    for mark in marks:
        facts.kinds.append(
            SIBLINGS if mark & _MANY and mark & _WRITTEN else SET if mark & (_ELEMENTS | _MANY) else REGISTER
        )


def _mark(kind: str, value: Value) -> int:
    if kind == READ:
        return _MANY if isinstance(value, frozenset) else _SCALAR if value is not None else 0
    if kind == WRITE:
        return _WRITTEN if value is not None else 0
    return _ELEMENTS


def _note_author(facts: Facts, key: int, value: Value, number: int, line: Line, place: int) -> None:
    assert isinstance(value, (str, int))
    known = facts.author[key]
    if value in known:
        earlier = facts.line(known[value])
        raise HistoryError(
            line.number,
            f"operations[{place}]",
            f"writes {value!r} to {facts.keys[key]!r}, as line {earlier:,} does; each value is written once",
        )
    known[value] = number


# -- second pass: each transaction by itself


class _Walk:
    """One transaction, operation by operation, its functions in order; `reads` are what it read of others."""

    def __init__(self, facts: Facts, number: int, one: Transaction, numbers: dict[str, int]) -> None:
        self.facts = facts
        self.number = number
        self.lines = one.lines
        self.numbers = numbers
        self.own: dict[int, list[Own]] = {}
        self.first: dict[int, tuple[Value, int]] = {}
        self.again: list[tuple[int, Value, int]] = []
        self.ancestors = _ancestors(one.lines) if len(one.lines) > 1 else [0]

    def run(self) -> None:
        for part, line in enumerate(self.lines):
            for place, operation in enumerate(line.operations):
                key = self.numbers[operation.key]
                if operation.kind != READ:
                    self.own.setdefault(key, []).append(Own(part, place, operation.kind, operation.value))
                    continue
                seen = [own for own in self.own[key] if self.precedes(own, part, place)] if key in self.own else ()
                if self.facts.kinds[key] == REGISTER:
                    self.register(key, operation, line, self.last(seen))
                else:
                    self.many(key, operation, line, list(seen))

    def precedes(self, own: Own, part: int, place: int) -> bool:
        return own.place < place if own.part == part else bool(self.ancestors[part] >> own.part & 1)

    def last(self, seen: list[Own] | tuple[()]) -> list[Own]:
        """Return those that no other of them comes after: one, except after branches."""
        if len(seen) < 2:
            return list(seen)
        return [one for one in seen if not any(self.precedes(one, other.part, other.place) for other in seen)]

    def fault(self, kind: str, key: int, value: Value, line: Line, beside: Value, beside_line: int) -> None:
        self.facts.faults.append(Fault(kind, self.number, key, value, line.number, beside, beside_line))

    def register(self, key: int, operation: Operation, line: Line, last: list[Own]) -> None:
        value = operation.value
        if last:
            if all(own.value != value for own in last):
                self.fault(OWN_UNSEEN, key, value, line, last[-1].value, self.lines[last[-1].part].number)
                self.again.append((key, value, line.number))
            return
        first = self.first.setdefault(key, (value, line.number))
        if first[0] != value:
            self.fault(CHANGED, key, value, line, *first)
            self.again.append((key, value, line.number))

    def many(self, key: int, operation: Operation, line: Line, seen: list[Own]) -> None:
        """A set, or siblings: what the transaction added must be there, what it removed must not, the rest stays."""
        value = operation.value if isinstance(operation.value, frozenset) else frozenset()
        if any(own.kind == WRITE and own.value is None for own in seen):
            return
        last = seen if self.facts.kinds[key] == SET else self.last(seen)
        removed = {own.value for own in seen if own.kind == REMOVE}
        added = {own.value for own in last if own.kind != REMOVE} - removed
        for own in last:
            if (own.value in added and own.value not in value) or (own.kind == REMOVE and own.value in value):
                self.fault(OWN_UNSEEN, key, value, line, own.value, self.lines[own.part].number)
                break
        rest = frozenset(atom for atom in value if atom not in added)
        if self.facts.kinds[key] == SIBLINGS and seen:
            self.again.append((key, rest, line.number))
            return
        first, first_line = self.first.setdefault(key, (rest, line.number))
        assert isinstance(first, frozenset)
        all_removed = {own.value for own in self.own.get(key, ()) if own.kind == REMOVE}
        if first - all_removed != rest - all_removed:
            self.fault(CHANGED, key, rest, line, first, first_line)
            self.again.append((key, rest, line.number))

    def finals(self) -> dict[int, tuple[Value, ...]]:
        left: dict[int, tuple[Value, ...]] = {}
        for key, own in self.own.items():
            if self.facts.kinds[key] == SET:
                gone = {one.value for one in own if one.kind == REMOVE}
                left[key] = tuple(one.value for one in own if one.kind == ADD and one.value not in gone)
            else:
                left[key] = tuple(one.value for one in self.last(own))
        return left


def _ancestors(lines: list[Line]) -> list[int]:
    """Return for each line, as bits, the lines that were before it: all with lower functions unless it says after
    which."""
    place = {line.function: index for index, line in enumerate(lines)}
    found: list[int] = []
    for index, line in enumerate(lines):
        bits = (1 << index) - 1 if line.after is None else 0
        for function in line.after or ():
            bits |= 1 << place[function] | found[place[function]]
        found.append(bits)
    return found


def _walk(facts: Facts, number: int, one: Transaction, numbers: dict[str, int]) -> _Walk:
    walk = _Walk(facts, number, one, numbers)
    walk.run()
    facts.finals.append(walk.finals())
    removed = ((key, {own.value for own in own if own.kind == REMOVE}) for key, own in walk.own.items())
    facts.taken.append(
        {key: {atom for atom in atoms if isinstance(atom, (str, int))} for key, atoms in removed if atoms}
    )
    return walk


def _order_sessions(facts: Facts) -> None:
    """Note who came before whom in a session. Nothing follows from what failed or has no known end."""
    last: dict[str, int] = {}
    for number, one in enumerate(facts.transactions):
        if one.lines[0].invocation is not None:
            facts.told_of[one.lines[0].invocation] = number
        facts.before.append(last.get(one.session, -1))
        if facts.outcomes[number] == OK:
            last[one.session] = number
    for one in facts.transactions:
        told = []
        for line in one.lines:
            for name in line.told:
                teller = facts.told_of.get(name)
                if teller is None:
                    raise HistoryError(line.number, "told", f"there is no invocation {name!r}")
                if facts.outcomes[teller] == OK and facts.transactions[teller] is not one:
                    told.append(teller)
        facts.told.append(told)


# -- third pass: who read from whom


def _resolve(facts: Facts, walks: list[_Walk]) -> None:
    facts.counts = [False] * len(walks)
    for number, walk in enumerate(walks):
        found = []
        for key, (value, line) in walk.first.items():
            sources = tuple(_sources(facts, number, key, value, line))
            if value is None:
                sources = (NOWHERE if facts.removers[key].get(None) else INITIAL,)
            found.append(Seen(key, value, line, sources))
        facts.reads.append(found)
        facts.read_from.append(frozenset(source for seen in found for source in seen.sources if source >= 0))
        for key, value, line in walk.again:
            for _ in _sources(facts, number, key, value, line):
                pass


def _sources(facts: Facts, number: int, key: int, value: Value, line: int) -> Iterator[int]:
    """Yield the author of each atom that was read, NOWHERE for what nothing follows from, and note what is wrong with
    it."""
    for atom in sorted(value, key=repr) if isinstance(value, frozenset) else () if value is None else (value,):
        author = facts.author[key].get(atom)
        kind = None
        if author is None:
            kind = UNWRITTEN
        elif author == number:
            kind = OWN_EARLY
        elif facts.outcomes[author] == FAILED:
            kind = ABORTED
        else:
            facts.counts[author] = True
            if atom not in facts.finals[author][key]:
                kind = INTERMEDIATE
        if kind is not None:
            beside = -1 if author is None else facts.line(author)
            facts.faults.append(Fault(kind, number, key, atom, line, None, beside))
        yield NOWHERE if author is None or kind in (OWN_EARLY, ABORTED) else author
