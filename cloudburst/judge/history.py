"""What one line of a history says, and what makes it a wrong one.

The one rule: a line is checked where it is made, by the same code at both ends, so whoever records a history cannot
write one that the judge refuses to read. docs/histories.md describes each field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

VERSION: Final = 1

LINE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Longest line of a history: no transaction reads a set of more than some hundred thousand elements."""

FUNCTIONS_MAX: Final = 4096
"""Most functions of one invocation that may be on lines of their own."""

READ, WRITE, ADD, REMOVE = "read", "write", "add", "remove"
OK, FAILED, UNKNOWN = "ok", "failed", "unknown"

Atom = str | int
Value = Atom | frozenset[Atom] | None
"""A register's value, what a set or a key with siblings holds, or None: absent."""


class HistoryError(ValueError):
    """A history is not one: the line (from 1; 0 where none is at fault), the field, and what is wrong with it."""

    def __init__(self, line: int, field: str, what: str) -> None:
        place = f"line {line:,}" if line else "history"
        super().__init__(f"{place}, {field}: {what}" if field else f"{place}: {what}")
        self.line = line
        self.field = field
        self.what = what


class Operation(NamedTuple):
    """One read, write, add or remove: what a read returned, what the others wrote."""

    kind: str
    key: str
    value: Value


@dataclass(frozen=True, slots=True)
class Line:
    """One function's part in a transaction; most transactions have one. `number` is its place in the file, from 1."""

    number: int
    session: str
    operations: tuple[Operation, ...]
    outcome: str
    invocation: str | None = None
    function: int = 0
    after: tuple[int, ...] | None = None
    node: str | None = None
    commit: int | None = None
    told: tuple[str, ...] = ()


@dataclass(slots=True)
class Transaction:
    """The lines of one invocation, by their functions."""

    lines: list[Line]

    @property
    def number(self) -> int:
        return self.lines[0].number

    @property
    def session(self) -> str:
        return self.lines[0].session

    @property
    def outcome(self) -> str:
        """Failed when a line is, else unknown when a line is, else ok."""
        outcomes = {line.outcome for line in self.lines}
        return FAILED if FAILED in outcomes else UNKNOWN if UNKNOWN in outcomes else OK

    @property
    def commit(self) -> int | None:
        return max((line.commit for line in self.lines if line.commit is not None), default=None)

    def operations(self) -> Iterator[tuple[Line, Operation]]:
        for line in self.lines:
            for operation in line.operations:
                yield line, operation


@dataclass(slots=True)
class History:
    """All transactions, in the order of their first lines; `torn` when the last line was cut off, and left out."""

    transactions: list[Transaction] = field(default_factory=list)
    torn: bool = False


FIELDS: Final = (
    "session", "invocation", "function", "after", "node", "operations", "outcome", "commit", "told", "note",
)  # fmt: skip


def line_from(number: int, given: object) -> Line:
    """Return the line that a decoded JSON object says. Raises HistoryError, which names the line and its field."""
    if not isinstance(given, dict):
        raise HistoryError(number, "", f"is {_named(given)}, and should be an object")
    for name in given:
        if name not in FIELDS:
            raise HistoryError(number, name, f"is no field; there are {', '.join(FIELDS)}")
    session = _text(number, given, "session")
    if session is None:
        raise HistoryError(number, "session", "is missing")
    outcome = given.get("outcome")
    if outcome not in (OK, FAILED, UNKNOWN):
        raise HistoryError(number, "outcome", f"is {outcome!r}, and should be {OK!r}, {FAILED!r} or {UNKNOWN!r}")
    function = _count(number, given, "function")
    return Line(
        number,
        session,
        _operations(number, given.get("operations")),
        str(outcome),
        _text(number, given, "invocation"),
        0 if function is None else function,
        _after(number, given, function or 0),
        _text(number, given, "node"),
        _count(number, given, "commit"),
        _told(number, given),
    )


def _operations(number: int, given: object) -> tuple[Operation, ...]:
    if not isinstance(given, (list, tuple)):
        raise HistoryError(number, "operations", f"is {_named(given)}, and should be a list")
    found = []
    for place, one in enumerate(given):
        if not isinstance(one, (list, tuple)) or len(one) != 3:
            raise HistoryError(number, f"operations[{place}]", "should be [kind, key, value]")
        kind, key, value = one
        if not isinstance(key, str):
            raise HistoryError(number, f"operations[{place}]", f"has {_named(key)} for a key, and should have text")
        fault = None
        if kind == READ:
            if isinstance(value, (list, tuple, set, frozenset)):
                fault = next((f"reads {_named(atom)} in a set" for atom in value if not _atom(atom)), None)
                value = None if fault else frozenset(value)
            elif value is not None and not _atom(value):
                fault = f"reads {_named(value)}"
        elif kind == WRITE:
            if value is not None and not _atom(value):
                fault = f"writes {_named(value)}"
        elif kind in (ADD, REMOVE):
            if not _atom(value):
                fault = f"{kind}s {_named(value)}"
        else:
            raise HistoryError(number, f"operations[{place}]", f"is a {kind!r}; there are read, write, add and remove")
        if fault:
            raise HistoryError(number, f"operations[{place}]", f"{fault}; values are text or whole numbers")
        found.append(Operation(kind, key, value))
    return tuple(found)


def _atom(value: object) -> bool:
    return isinstance(value, str) or type(value) is int


def _named(value: object) -> str:
    if value is None:
        return "nothing"
    return f"{type(value).__name__} {value!r:.40}"


def _text(number: int, given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not (isinstance(value, str) and value):
        raise HistoryError(number, name, f"is {_named(value)}, and should be text")
    return value


def _count(number: int, given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise HistoryError(number, name, f"is {_named(value)}, and should be a whole number")
    return value


def _after(number: int, given: Mapping[str, Any], function: int) -> tuple[int, ...] | None:
    value = given.get("after")
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or any(type(one) is not int or not 0 <= one < function for one in value):
        raise HistoryError(number, "after", f"is {value!r}, and should list functions below {function}")
    return tuple(value)


def _told(number: int, given: Mapping[str, Any]) -> tuple[str, ...]:
    value = given.get("told", ())
    if not isinstance(value, (list, tuple)) or any(not isinstance(one, str) for one in value):
        raise HistoryError(number, "told", f"is {value!r}, and should list invocations")
    return tuple(value)
