"""A history as it is written: one line for each transaction, appended whole.

The one rule: a line is one write to a file that is open for appending, so several threads and processes may record
into one file, and who is killed leaves at most its last line cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cloudburst.judge.history import OK, VERSION, HistoryError, line_from

Given = tuple[str, str, Any]


class Writer:
    """Appends transactions to a history; begins the file if it is not there, or goes on with it.

    The lines of one session must be written in the order in which its transactions ended.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._lines = 0
        if os.fstat(self._file).st_size == 0:
            self._append({"history": VERSION})

    def write(
        self,
        session: str,
        operations: Iterable[Given],
        outcome: str = OK,
        *,
        invocation: str | None = None,
        function: int = 0,
        after: Sequence[int] | None = None,
        node: str | None = None,
        commit: int | None = None,
        told: Sequence[str] = (),
        note: str | None = None,
    ) -> None:
        """Append one line: what one transaction, or one function of it, read and wrote, in order.

        An operation is (kind, key, value); a read's value may be a set. Raises HistoryError, having written nothing,
        whose line is that of this writer's calls, from 1.
        """
        given = [list(one) for one in operations]
        said: dict[str, Any] = {"session": session, "operations": given, "outcome": outcome}
        optional = {
            "invocation": invocation,
            "function": function or None,
            "after": None if after is None else list(after),
            "node": node,
            "commit": commit,
            "told": list(told) or None,
            "note": note,
        }
        said |= {name: value for name, value in optional.items() if value is not None}
        self._lines += 1
        line_from(self._lines, said)
        for one in given:
            if isinstance(one[2], (set, frozenset)):
                one[2] = sorted(one[2], key=lambda atom: (isinstance(atom, str), atom))
        self._append(said)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, said: dict[str, Any]) -> None:
        if self._file < 0:
            raise HistoryError(0, "", "is closed")
        data = json.dumps(said, separators=(",", ":")).encode() + b"\n"
        written = os.write(self._file, data)
        while written < len(data):  # a full disk, or a signal: what is left follows, or the reader sees a torn line
            written += os.write(self._file, data[written:])
