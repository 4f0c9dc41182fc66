"""A violation in words: which line read what, what it should have seen, and each step of why, with line numbers.

The one rule: every step can be looked up on the line that it names, and there are as few as there can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from cloudburst.judge.facts import (
    ABORTED,
    CHANGED,
    INITIAL,
    INTERMEDIATE,
    OWN_EARLY,
    OWN_UNSEEN,
    UNWRITTEN,
    Facts,
    Fault,
)
from cloudburst.judge.history import Value
from cloudburst.judge.levels import FRACTURED, FUTURE, NO_ORDER, RETURNED, UNCOVERED, Forced, Violation
from cloudburst.judge.order import FORCED, READING, SESSION, TOLD, Edge, Order

NEAREST_TRIES_MAX: Final = 16
"""Of so many writes that a read missed the one with the shortest explanation is taken."""


def explain(violation: Violation, facts: Facts, order: Order) -> list[str]:
    """Return the lines that explain a violation: first what is wrong, then, indented, why."""
    if violation.fault is not None:
        return [_own(violation.fault, facts)]
    if violation.kind in (FUTURE, NO_ORDER):
        return _cycle(violation, facts, order)
    if violation.reasons:
        violation = _nearest(violation, order)
    one, source, over = violation.transaction, violation.source, violation.over
    said = [f"line {violation.line:,} (session {facts.session(one)}) {_missed(violation, facts)}"]
    if violation.kind == FRACTURED:
        return [*said, *(f"  {step}" for step in _torn(violation, facts))]
    if source >= 0:
        said += _why(facts, order, source, over)
    return said + _why(facts, order, over, one)


def _nearest(violation: Violation, order: Order) -> Violation:
    """Return the same violation with that missed write, of some, which is explained in the fewest steps."""

    def steps(forced: Forced) -> int:
        older = len(order.path(forced.source, forced.over)) if forced.source >= 0 else 0
        return older + len(order.path(forced.over, forced.reader))

    return replace(violation, over=min(violation.reasons[:NEAREST_TRIES_MAX], key=steps).over)


def _missed(violation: Violation, facts: Facts) -> str:
    """Return what was read, and what should have been."""
    key, value = facts.keys[violation.key], _shown(violation.value)
    over = _line(facts, violation.over)
    if violation.kind == UNCOVERED:
        return f"reads {key!r} without {value}, which {over} left there and nothing that it can have seen took away"
    if violation.kind == RETURNED:
        return f"reads {value} in {key!r}, which {_line(facts, violation.source)} added and {over} removed"
    wrote = _values(facts, violation.over, violation.key)
    if violation.source == INITIAL:
        return f"reads {key!r} as absent, though {over} wrote {wrote}"
    return f"reads {key!r} = {value} of {_line(facts, violation.source)}, though {over} wrote {wrote}"


def _torn(violation: Violation, facts: Facts) -> Iterator[str]:
    """Yield why a read is fractured: the writer had read the source, or each of both should show the other's."""
    if violation.source in facts.sources(violation.over):
        yield _reading(facts, violation.source, violation.over)
    elif violation.source != INITIAL:
        yield _other_way(facts, violation)
    yield _reading(facts, violation.over, violation.transaction)


def _own(fault: Fault, facts: Facts) -> str:
    where = f"line {fault.line:,} (session {facts.session(fault.transaction)})"
    read = f"{where} reads {facts.keys[fault.key]!r} = {_shown(fault.value)}"
    beside = _shown(fault.beside)
    return {
        CHANGED: f"{read}, and the same transaction read {beside} on line {fault.beside_line:,}",
        OWN_UNSEEN: f"{read}, though the same transaction had written {beside} on line {fault.beside_line:,}",
        OWN_EARLY: f"{read}, which the same transaction writes on line {fault.beside_line:,}, and not before it",
        UNWRITTEN: f"{read}, which nobody wrote",
        ABORTED: f"{read} of line {fault.beside_line:,}, which failed",
        INTERMEDIATE: f"{read} of line {fault.beside_line:,}, which wrote another value after that",
    }[fault.kind]


def _why(facts: Facts, order: Order, one: int, other: int) -> list[str]:
    """Return the steps from one transaction to another, in words; none when there is no way along the lines."""
    path = order.path(one, other)
    if not path:
        return []
    steps = list(_steps(facts, path))
    return [f"  {_line(facts, other)} comes after {_line(facts, one)}:", *(f"    {step}" for step in steps)]


def _steps(facts: Facts, path: Iterable[Edge]) -> Iterator[str]:
    """Yield one line for each edge; those along one session are one."""
    begin = -1
    end = -1
    for tail, head, why in path:
        if why == SESSION:
            begin, end = (begin if begin >= 0 else tail), head
            continue
        if begin >= 0:
            yield _later(facts, begin, end)
            begin = -1
        if why == TOLD:
            yield f"{_line(facts, head)} was told of {_line(facts, tail)}"
        elif why == READING:
            yield _reading(facts, tail, head)
    if begin >= 0:
        yield _later(facts, begin, end)


def _later(facts: Facts, begin: int, end: int) -> str:
    return f"{_line(facts, end)} is later in session {facts.session(begin)} than {_line(facts, begin)}"


def _reading(facts: Facts, source: int, reader: int) -> str:
    for seen in facts.reads[reader]:
        if source in seen.sources:
            atoms = seen.value if isinstance(seen.value, frozenset) else (seen.value,)
            atom = next(
                one for one in sorted(atoms, key=repr) if one is not None and facts.author[seen.key].get(one) == source
            )
            return f"{_line(facts, reader)} reads {facts.keys[seen.key]!r} = {_shown(atom)} of {_line(facts, source)}"
    raise AssertionError((source, reader))


def _other_way(facts: Facts, violation: Violation) -> str:
    """Return what makes each of two writers older than the other: one transaction read each beside a key of the
    other."""
    for seen in facts.reads[violation.transaction]:
        if violation.over in seen.sources and seen.key in facts.finals[violation.source]:
            mine = _values(facts, violation.source, seen.key)
            source, over = _line(facts, violation.source), _line(facts, violation.over)
            return (
                f"it also reads {facts.keys[seen.key]!r} = {_shown(seen.value)} of {over}, though {source} wrote {mine}"
            )
    raise AssertionError(violation)


def _cycle(violation: Violation, facts: Facts, order: Order) -> list[str]:
    if violation.kind == FUTURE:
        said = ["each of these comes before the next, and the last before the first:"]
    else:
        said = ["no order of commits is possible; each of these comes before the next, and the last before the first:"]
    reasons = {(one.over, one.source): one for one in violation.reasons}
    run: list[Edge] = []
    for edge in violation.cycle:
        if edge[2] != FORCED:
            run.append(edge)
            continue
        said += [f"  {step}" for step in _steps(facts, run)]
        run = []
        forced = reasons[edge[0], edge[1]]
        seen = forced.seen
        said.append(
            f"  {_line(facts, edge[0])} commits before {_line(facts, edge[1])}: {_line(facts, forced.reader)} reads "
            f"{facts.keys[seen.key]!r} = {_shown(seen.value)} of {_line(facts, edge[1])}, and must see "
            f"{_values(facts, forced.over, seen.key)} of {_line(facts, edge[0])}"
        )
        said += [f"  {line}" for line in _why(facts, order, forced.over, forced.reader)]
    return said + [f"  {step}" for step in _steps(facts, run)]


def _line(facts: Facts, one: int) -> str:
    return f"line {facts.line(one):,}"


def _values(facts: Facts, one: int, key: int) -> str:
    return " and ".join(_shown(value) for value in facts.finals[one][key]) or "nothing"


def _shown(value: Value) -> str:
    if value is None:
        return "absent"
    if isinstance(value, frozenset):
        atoms = sorted(value, key=repr)
        return "{" + ", ".join(map(repr, atoms[:8])) + (", …" if len(atoms) > 8 else "") + "}"
    return repr(value)
