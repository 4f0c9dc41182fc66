"""The lines that a node's executors print: who printed each, and when; kept up to a limit, and handed out as they come.

An executor writes what its calls print as records, each in one piece and with its author before it; what comes between
records was written past it, by a subprocess or by C code, and counts as the running call's. The node keeps the last
lines, numbered, and a reader asks for those after a number: if there are none, the answer waits until there are, so
nobody asks in vain and nothing is kept for anyone. A pure core: bytes, requests and `now` in, answers out.
Source: reliability C (output floods); SURFACE (`cb logs -f`).
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cloudburst import config

MAGIC: Final = b"\0\x1ecblog\x1e"
RECORD: Final = struct.Struct("<8sdQQHH")
"""Magic, seconds since 1970, the invocation's two halves, length of the function's name, length of the text."""
RECORD_BYTES_MAX: Final = 4096
"""Longest record: what a pipe takes in one piece, whoever else writes to it."""
TEXT_BYTES_MAX: Final = RECORD_BYTES_MAX - RECORD.size - config.NAME_BYTES_MAX
SAME_MOMENT_S: Final = 0.001
READERS_MAX: Final = 256
"""Most readers that wait at once; the next gets an empty answer."""


class Author(NamedTuple):
    """Whose output it is: an invocation and its function; (0, 0, b"") is nobody's."""

    high: int
    low: int
    function: bytes


NOBODY: Final = Author(0, 0, b"")


def record(time_s: float, author: Author, text: bytes) -> bytes:
    """Return `text`, at most `text_bytes_max` of it, as one record."""
    function = author.function[: config.NAME_BYTES_MAX]
    return RECORD.pack(MAGIC, time_s, author.high, author.low, len(function), len(text)) + function + text


class Printed(NamedTuple):
    """One piece of output; `author` and `time_s` are None when it was written past the records."""

    author: Author | None
    time_s: float
    text: bytes


class Unpacker:
    """Cuts what comes from one executor's pipe into pieces. Holds at most one unfinished record, or line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Printed]:
        """Return the pieces that `data` completes; what one author printed within a millisecond is one piece.

        A line that was written past the records waits for its end, up to the length of a record.
        """
        data, self._rest = self._rest + data, b""
        found: list[tuple[Author | None, float, list[bytes]]] = []
        start, size = 0, len(data)
        while start < size:
            at = data.find(MAGIC, start)
            if at == start:
                end = self._end_of_record(data, start)
                if end < 0:
                    self._rest = data[start:]
                    break
                self._take(found, data, start, end)
            else:
                end = at if at > 0 else self._end_of_lines(data, start)
                if end == start:
                    self._rest = data[start:]
                    break
                found.append((None, 0.0, [data[start:end]]))
            start = end
        return [Printed(author, time_s, b"".join(texts)) for author, time_s, texts in found]

    def finish(self) -> list[Printed]:
        """Return what is left, when nothing comes any more."""
        rest, self._rest = self._rest, b""
        return [Printed(None, 0.0, rest)] if rest and not rest.startswith(MAGIC) else []

    @staticmethod
    def _end_of_record(data: bytes, start: int) -> int:
        """Return where the record at `start` ends, -1 while it is not all there."""
        if len(data) - start < RECORD.size:
            return -1
        *_, name_bytes, text_bytes = RECORD.unpack_from(data, start)
        end = int(start + RECORD.size + name_bytes + text_bytes)
        return end if end <= len(data) else -1

    @staticmethod
    def _take(found: list[tuple[Author | None, float, list[bytes]]], data: bytes, start: int, end: int) -> None:
        _, time_s, high, low, name_bytes, _ = RECORD.unpack_from(data, start)
        text = start + RECORD.size + name_bytes
        author = Author(high, low, data[start + RECORD.size : text])
        if found and found[-1][0] == author and time_s - found[-1][1] < SAME_MOMENT_S:
            found[-1][2].append(data[text:end])
        else:
            found.append((author, time_s, [data[text:end]]))

    @staticmethod
    def _end_of_lines(data: bytes, start: int) -> int:
        """Return where whole lines end; what follows them may be the beginning of a record."""
        end = data.rfind(b"\n", start) + 1
        if end == 0 and len(data) - start >= RECORD_BYTES_MAX:
            return len(data) - len(MAGIC)
        return max(end, start)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of output. `invocation` and `function` are "" when nothing ran that could have printed it.

    `dropped` is how many lines before it nobody can have any more: they came faster than they were read. `node` is the
    name of the node whose executor it is, and `number` counts the lines there.
    """

    number: int
    time: float
    executor: int
    invocation: str
    function: str
    text: str
    dropped: int = 0
    node: str = ""


class _Chunk(NamedTuple):
    """Lines that one author printed at one moment, from number `first` to `last`."""

    first: int
    last: int
    time_s: float
    executor: int
    author: Author
    text: bytes


@dataclass(slots=True)
class _Reader:
    """A request whose answer waits for lines after number `after`."""

    request: bytes
    body: dict[str, Any]
    until_us: int
    after: int


class LogBook:
    """The last lines of a node, up to `limit_bytes`, and the readers that wait for more."""

    def __init__(self, limit_bytes: int = config.LOG_BYTES_MAX) -> None:
        self._limit_bytes = limit_bytes
        self._chunks: deque[_Chunk] = deque()
        self._bytes = 0
        self._last = 0
        self._readers: list[_Reader] = []
        self._tell_us: int | None = None

    def add(self, executor: int, author: Author, time_s: float, text: bytes, now_us: int) -> None:
        """Take in what an executor has printed."""
        first = self._last + 1
        self._last += text.count(b"\n") + (not text.endswith(b"\n"))
        self._chunks.append(_Chunk(first, self._last, time_s, executor, author, text))
        self._bytes += _cost(self._chunks[-1])
        while self._bytes > self._limit_bytes:
            self._bytes -= _cost(self._chunks.popleft())
        if self._readers and self._tell_us is None:
            self._tell_us = now_us + config.LOG_GATHER_US

    def ask(self, request: bytes, body: dict[str, Any], now_us: int) -> dict[str, Any] | None:
        """Return the lines after number `after`, or None: then `due` has the answer, at most `wait_s` later.

        `invocation` and `function` choose among them. An answer has about `log_answer_bytes_max` bytes of `lines`,
        the number up to which they have been looked through (`last`), that of the `newest`, and how many after `after`
        had been `dropped` by then.
        """
        after = int(body.get("after", 0))
        answer = self._answer(body, after)
        wait_us = int(float(body.get("wait_s", 0)) * 1e6)
        if answer["lines"] or wait_us <= 0 or len(self._readers) >= READERS_MAX:
            return answer
        self._readers.append(_Reader(request, body, now_us + wait_us, answer["last"]))
        return None

    @property
    def next_due_us(self) -> int | None:
        """When `due` next has something to do."""
        if not self._readers:
            return None
        times = [reader.until_us for reader in self._readers]
        return min(times if self._tell_us is None else [*times, self._tell_us])

    def due(self, now_us: int) -> list[tuple[bytes, dict[str, Any]]]:
        """Return (request, answer) of the readers for whom lines have come, or whose time is over."""
        told = self._tell_us is not None and self._tell_us <= now_us
        if told:
            self._tell_us = None
        done = []
        for reader in [reader for reader in self._readers if told or reader.until_us <= now_us]:
            answer = self._answer(reader.body, reader.after)
            reader.after = answer["last"]
            if answer["lines"] or reader.until_us <= now_us:
                self._readers.remove(reader)
                done.append((reader.request, answer))
        return done

    def said_by(self, high: int, low: int, limit_bytes: int) -> bytes:
        """Return the last that an invocation has printed, up to a limit."""
        found: list[bytes] = []
        for chunk in reversed(self._chunks):
            if (chunk.author.high, chunk.author.low) == (high, low):
                found.append(chunk.text)
                limit_bytes -= len(chunk.text)
                if limit_bytes <= 0:
                    break
        return b"".join(reversed(found))

    def _answer(self, body: dict[str, Any], after: int) -> dict[str, Any]:
        invocation, function = body.get("invocation"), body.get("function")
        first = self._chunks[0].first if self._chunks else self._last + 1
        lines: list[list[Any]] = []
        size, last = 0, self._last
        for chunk in self._since(after):
            if function and chunk.author.function.decode(errors="replace") != function:
                continue
            if invocation and _id(chunk.author) != invocation:
                continue
            size += _cost(chunk)
            if size > config.LOG_ANSWER_BYTES_MAX and lines:
                last = lines[-1][0]
                break
            lines += _lines(chunk, after)
        dropped = max(0, first - after - 1) if after else 0
        return {"lines": lines, "last": last, "newest": self._last, "dropped": dropped}

    def _since(self, after: int) -> list[_Chunk]:
        """Return the chunks with lines after a number; a reader that keeps up wants the last few of many."""
        found = []
        for chunk in reversed(self._chunks):
            if chunk.last <= after:
                break
            found.append(chunk)
        return found[::-1]

    def check(self) -> None:
        """Assert the invariants: no more bytes than there may be, and numbers without gaps."""
        assert self._bytes == sum(map(_cost, self._chunks)) <= self._limit_bytes
        expected = self._chunks[0].first if self._chunks else self._last + 1
        for chunk in self._chunks:
            assert chunk.first == expected
            expected = chunk.last + 1
        assert expected == self._last + 1
        assert len(self._readers) <= READERS_MAX


def _lines(chunk: _Chunk, after: int) -> list[list[Any]]:
    """Return the fields of the lines of a chunk after a number."""
    author = chunk.author
    function = author.function.decode(errors="replace")
    texts = chunk.text.decode(errors="replace").removesuffix("\n").split("\n")
    return [
        [number, chunk.time_s, chunk.executor, _id(author), function, text]
        for number, text in enumerate(texts, chunk.first)
        if number > after
    ]


def _id(author: Author) -> str:
    return f"{author.high:016x}{author.low:016x}" if author != NOBODY else ""


def _cost(chunk: _Chunk) -> int:
    """Return about how much memory a chunk takes."""
    return 200 + len(chunk.text)
