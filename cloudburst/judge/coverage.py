"""Sets, and keys with siblings: a read must contain what its past has added, and nothing that its past has removed.

The one rule: only what is surely wrong is counted. What the past of a read has added may be missing when the
transaction, or any other that is not after the read and not before the addition, has removed it or deleted the key. A
sibling of the past may be missing when one that was read has it in its past, since that may have replaced it. Whether
all that was left out had to be is not decided: that a replaced sibling still shows, and that two reads which miss
each other's elements cannot both be of one order, go unnoticed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator

from cloudburst.judge.facts import SET, SIBLINGS, Facts, Seen
from cloudburst.judge.history import Atom, Value
from cloudburst.judge.levels import CAUSAL, READ_ATOMIC, RETURNED, UNCOVERED, Violation, Writers
from cloudburst.judge.order import Order

Missing = tuple[int, Seen, int, Atom]
"""Who read, what, and which transaction's element was not there."""


def of_direct_reads(facts: Facts, order: Order) -> list[Violation]:
    """Return what reads miss of those transactions that theirs read from directly (read-atomic)."""
    found: list[Missing] = []
    for one, seen in _many(facts):
        for writer in sorted(facts.sources(one)):
            for atom in facts.finals[writer].get(seen.key, ()):
                if atom is not None and not _contains(seen, atom):
                    assert not isinstance(atom, frozenset)
                    found.append((one, seen, writer, atom))

    def beneath(remover: int, author: int, reader: int) -> bool:
        return remover in facts.sources(reader) and author in facts.sources(remover)

    return [*_missing(facts, order, READ_ATOMIC, found), *_returned(facts, READ_ATOMIC, beneath)]


def of_the_past(facts: Facts, order: Order) -> list[Violation]:
    """Return what reads miss of all their past (causal)."""
    many = list(_many(facts))
    if not many:
        return []
    writers = Writers(facts, order, SET, SIBLINGS)
    found: list[Missing] = []
    for past in order.blocks():
        for one, seen in many:
            last_only = facts.kinds[seen.key] == SIBLINGS
            for chain, (positions, authors) in writers.groups[seen.key].items():
                if past.first <= chain < past.first + past.width:
                    upto = bisect_right(positions, past.reaches(one, chain))
                    found += _absent(facts, one, seen, authors[max(0, upto - 1) if last_only else 0 : upto])

    def beneath(remover: int, author: int, reader: int) -> bool:
        return order.precedes(remover, reader) and order.precedes(author, remover)

    return [*_missing(facts, order, CAUSAL, found), *_returned(facts, CAUSAL, beneath)]


def _many(facts: Facts) -> Iterator[tuple[int, Seen]]:
    for one, reads in enumerate(facts.reads):
        for seen in reads:
            if facts.kinds[seen.key] in (SET, SIBLINGS):
                yield one, seen


def _contains(seen: Seen, atom: Value) -> bool:
    return isinstance(seen.value, frozenset) and atom in seen.value


def _absent(facts: Facts, one: int, seen: Seen, authors: Iterable[int]) -> Iterator[Missing]:
    for author in authors:
        for atom in facts.finals[author][seen.key]:
            if atom is not None and not _contains(seen, atom) and author != one:
                assert not isinstance(atom, frozenset)
                yield one, seen, author, atom


def _missing(facts: Facts, order: Order, level: str, found: Iterable[Missing]) -> Iterator[Violation]:
    shown: set[tuple[int, int]] = set()
    for one, seen, author, atom in found:
        if (one, seen.key) not in shown and not _excused(facts, order, one, seen, author, atom):
            shown.add((one, seen.key))
            yield Violation(level, UNCOVERED, one, seen.key, atom, seen.line, over=author)


def _excused(facts: Facts, order: Order, one: int, seen: Seen, author: int, atom: Atom) -> bool:
    removers = facts.removers[seen.key]
    for remover in (*removers.get(atom, ()), *removers.get(None, ())):
        if remover in (one, author):
            return True
        if not order.precedes(one, remover) and not order.precedes(remover, author):
            return True
    if facts.kinds[seen.key] == SIBLINGS and isinstance(seen.value, frozenset):
        known = facts.author[seen.key]
        return any(order.precedes(author, known[other]) for other in seen.value if other in known)
    return False


def _returned(facts: Facts, level: str, beneath: Callable[[int, int, int], bool]) -> Iterator[Violation]:
    """Yield what is read although its removal is among what the reader must have seen, and saw it added."""
    for one, seen in _many(facts):
        removers = facts.removers[seen.key]
        if not removers or facts.kinds[seen.key] != SET or not isinstance(seen.value, frozenset):
            continue
        for atom in sorted(seen.value, key=repr):
            author = facts.author[seen.key].get(atom)
            if author is None:
                continue
            for remover in (*removers.get(atom, ()), *removers.get(None, ())):
                if remover not in (one, author) and facts.counts[remover] and beneath(remover, author, one):
                    yield Violation(level, RETURNED, one, seen.key, atom, seen.line, author, remover)
                    break
