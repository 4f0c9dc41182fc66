"""What becomes of results: files in a directory, lines, or JSON; in the order of the input if that is wanted.

The one rule: a file of the directory is whole. It is written beside its name and renamed, and only then the journal
says that its task is done; so whoever resumes does again what the journal does not have, and nothing else.
"""

from __future__ import annotations

import heapq
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from cloudburst.burst.tasks.desk import Outcome
from cloudburst.burst.tasks.facts import Result
from cloudburst.burst.tasks.items import Item
from cloudburst.burst.tasks.mapping import Finished
from cloudburst.burst.tasks.sources import Send, Source
from cloudburst.errors import RequestError

JOURNAL: Final = ".cb-map.jsonl"
SHOWN_MAX: Final = 10
LINE_CHARS_MAX: Final = 100


class Directory:
    """The directory that outputs are written to, and the journal in it."""

    def __init__(self, path: str | os.PathLike[str], resume: bool) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._done: dict[str, tuple[str, int]] = {}
        self._names: dict[str, str] = {}
        journal = self.path / JOURNAL
        if resume and journal.exists():
            for line in journal.read_text().splitlines():
                try:
                    noted = json.loads(line)
                except ValueError:
                    continue  # the last line of a command that was killed
                self._done[noted["key"]] = (noted["name"], noted["size"])
        self._journal = open(journal, "a" if resume else "w")  # noqa: SIM115  # closed by close

    def admit(self, item: Item) -> bool:
        """Whether a task has still to be done. Raises RequestError when another item's output has the same name."""
        other = self._names.setdefault(item.name, item.text)
        if other is not item.text:
            raise RequestError(
                f"the outputs of {other!r} and {item.text!r} would both be {self.path / item.name}:"
                " give them different names, or map them into different directories"
            )
        name, size = self._done.get(item.key.hex(), ("", -1))
        try:
            return name != item.name or os.stat(self.path / name).st_size != size
        except OSError:
            return True

    def write(self, finished: Finished) -> Path:
        """Write a result; return where it is."""
        item = finished.item
        path, beside = self.path / item.name, self.path / f".{item.name}.part"
        beside.write_bytes(finished.data)
        os.replace(beside, path)
        noted = {"key": item.key.hex(), "name": item.name, "size": len(finished.data)}
        self._journal.write(json.dumps(noted) + "\n")
        self._journal.flush()
        return path

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()


class Remaining:
    """A source without what an earlier command has done, which is kept in `skipped` until it is shown."""

    def __init__(self, source: Source, directory: Directory) -> None:
        self._source = source
        self._directory = directory
        self.skipped: list[Item] = []
        self.ended = source.ended

    def fds(self) -> list[int]:
        """Return which descriptors become readable when there is more."""
        return self._source.fds()

    def take(self, room: int, send: Send | None) -> list[Item]:
        """Return up to `room` items that are still to be done."""
        items = []
        for item in self._source.take(room, send):
            if self._directory.admit(item):
                items.append(item)
            else:
                self.skipped.append(item)
                self._source.done(item)
        self.ended = self._source.ended
        return items

    def done(self, item: Item) -> None:
        """Take in that an item is settled."""
        self._source.done(item)


class Order:
    """Lets results through as they come, or in the order of their items."""

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self._next = 0
        self._waiting: list[tuple[int, Finished]] = []

    def through(self, finished: Finished) -> Iterator[Finished]:
        """Yield what may be shown once this one is there."""
        if not self._keep:
            yield finished
            return
        heapq.heappush(self._waiting, (finished.item.number, finished))
        while self._waiting and self._waiting[0][0] == self._next:
            self._next += 1
            yield heapq.heappop(self._waiting)[1]

    def rest(self) -> Iterator[Finished]:
        """Yield what has waited for others that do not come."""
        while self._waiting:
            yield heapq.heappop(self._waiting)[1]


class Printer:
    """Shows results on a file, as bytes: what was written, or where it is, or JSON lines."""

    def __init__(self, file: IO[bytes], directory: Directory | None, as_json: bool) -> None:
        self._file = file
        self._directory = directory
        self._json = as_json

    def show(self, finished: Finished) -> None:
        """Show one. Raises BrokenPipeError when nobody reads."""
        where = None
        if self._directory is not None and finished.ok:
            where = self._directory.path / finished.item.name
            if not finished.earlier:
                self._directory.write(finished)
        if self._json:
            self._file.write(json.dumps(self._described(finished, where)).encode() + b"\n")
        elif where is not None:
            self._file.write(os.fsencode(where) + b"\n")
        elif finished.ok:
            self._file.write(finished.data)
        self._file.flush()

    def _described(self, finished: Finished, where: Path | None) -> dict[str, Any]:
        outcome = finished.outcome
        row: dict[str, Any] = {"item": _shown(finished.item.text), "ok": finished.ok}
        if finished.earlier:
            return row | {"skipped": True, "path": str(where)}
        row |= {"attempts": outcome.attempts}
        if outcome.result is not None:
            row |= {"code": outcome.result.code, "run_s": outcome.result.run_us / 1e6}
        if not finished.ok:
            return row | {"why": why_of(outcome), "stderr": outcome.result.said if outcome.result else ""}
        return row | ({"path": str(where)} if where else {"output": finished.data.decode(errors="replace")})


def skipped(item: Item) -> Finished:
    """Return an item that an earlier command has done, as one that is settled."""
    from cloudburst.burst.tasks.facts import Settled

    result = Result(0, b"", 0, "", 0)
    return Finished(item, Outcome(item.key, 0, result, "", Settled(item.key, 1, "")), earlier=True)


def why_of(outcome: Outcome) -> str:
    """Return in a few words why a task has failed."""
    result = outcome.result
    if result is None:
        return outcome.why
    if result.why:
        return result.why
    return f"exit code {result.code}" if result.code >= 0 else f"signal {-result.code}"


class Failures:
    """Counts failures by what they look like."""

    def __init__(self) -> None:
        self.count = 0
        self._alike: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], str] = {}

    def add(self, finished: Finished) -> None:
        """Count one."""
        result = finished.outcome.result
        lines = (result.said if result is not None else "").strip().splitlines()
        said = lines[-1] if lines else ""
        look = (why_of(finished.outcome), said.replace(finished.item.text, "{}")[:LINE_CHARS_MAX])
        self.count += 1
        self._alike[look] += 1
        self._first.setdefault(look, _shown(finished.item.text))

    def table(self) -> list[str]:
        """Return the first distinct failures as lines: how many, why, what was said last, the first item."""
        rows = [("tasks", "why", "said last", "first item")]
        for (why, said), count in self._alike.most_common(SHOWN_MAX):
            rows.append((f"{count:,}", why, said, self._first[why, said][:LINE_CHARS_MAX]))
        widths = [max(len(row[at]) for row in rows) for at in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        hidden = len(self._alike) - SHOWN_MAX
        return [*lines, f"and {hidden} other kinds"] if hidden > 0 else lines


def _shown(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")
