"""From a file to a history: lines to transactions, and what only several lines together can have wrong.

The one rule: a history that is read is one that can be judged. Each value is written once, keys keep their kinds, and
who was told of an invocation names one that is there; whatever is not so is said with its line and field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from cloudburst.judge.history import (
    FUNCTIONS_MAX,
    LINE_BYTES_MAX,
    VERSION,
    History,
    HistoryError,
    Line,
    Transaction,
    line_from,
)

PROGRESS_LINES = 10_000
"""After how many lines progress is told."""


def read(path: str | Path, progress: Callable[[int], None] | None = None) -> History:
    """Return the history in a file; `progress` is told the number of lines now and then. Raises HistoryError."""
    with open(path, "rb") as file:
        return read_lines(file, progress)


def read_lines(lines: Iterable[bytes], progress: Callable[[int], None] | None = None) -> History:
    """Return the history in these lines, which end as those of a file do, but for the last.

    A last line that has no end and is no JSON was cut off when its writer died: it is left out, and `torn` set.
    """
    history = History()
    open_ones: dict[str, Transaction] = {}
    known = False
    for number, raw in enumerate(lines, 1):
        given = _decoded(number, raw)
        if given is None:
            history.torn = True
            break
        if isinstance(given, dict) and "history" in given:
            _check_version(number, given)
            known = True
            continue
        if not known:
            raise HistoryError(number, "history", f'a history begins with {{"history": {VERSION}}}')
        _place(history, open_ones, line_from(number, given))
        if progress is not None and number % PROGRESS_LINES == 0:
            progress(number)
    if not known:
        raise HistoryError(0, "", "is empty")
    for one in history.transactions:
        if len(one.lines) > 1:
            one.lines.sort(key=lambda line: line.function)
            _check_functions(one)
    return history


def _decoded(number: int, raw: bytes) -> object:
    """Return what a line says, None for one that was cut off."""
    if len(raw) > LINE_BYTES_MAX:
        raise HistoryError(number, "", f"has {len(raw):,} bytes; LINE_BYTES_MAX is {LINE_BYTES_MAX:,}")
    try:
        given: object = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        if not raw.endswith(b"\n"):
            return None
        raise HistoryError(number, "", f"is no JSON: {fault}") from None
    if given is None:
        raise HistoryError(number, "", "is nothing, and should be an object")
    return given


def _check_version(number: int, given: dict[str, object]) -> None:
    """Several processes may have begun the same file, so that its first line may be there more than once."""
    if given["history"] != VERSION:
        raise HistoryError(number, "history", f"is version {given['history']!r}; this judge reads {VERSION}")


def _place(history: History, open_ones: dict[str, Transaction], line: Line) -> None:
    """Add a line to its transaction, or begin one."""
    if line.invocation is None:
        history.transactions.append(Transaction([line]))
        return
    same = open_ones.get(line.invocation)
    if same is None:
        open_ones[line.invocation] = same = Transaction([line])
        history.transactions.append(same)
        return
    first = same.lines[0]
    if first.session != line.session:
        raise HistoryError(
            line.number,
            "session",
            f"is {line.session!r}; line {first.number:,} has {line.invocation!r} in {first.session!r}",
        )
    if any(other.function == line.function for other in same.lines):
        raise HistoryError(line.number, "function", f"{line.function} of {line.invocation!r} is there already")
    if len(same.lines) >= FUNCTIONS_MAX:
        raise HistoryError(line.number, "function", f"{line.invocation!r} has more than {FUNCTIONS_MAX:,} functions")
    same.lines.append(line)


def _check_functions(one: Transaction) -> None:
    present = {line.function for line in one.lines}
    for line in one.lines:
        for before in line.after or ():
            if before not in present:
                raise HistoryError(line.number, "after", f"{line.invocation!r} has no function {before}")
