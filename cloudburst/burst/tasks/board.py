"""Where those who share a queue read what the others have written: pages of facts in the store, and one head.

The one rule: a page is written once, by one writer, and the head (a map of maxima, by writer) says how many pages each
has written and how often it has beaten. All participants watch the head, which is pushed to them, and fetch what is new
in one flight. A page that is not there yet, because another owner was asked, is fetched again: nothing is ever missed
and nothing depends on its order. For the same reason all that is written may be written again: where a host is cut off,
frozen or gone, the store is asked until it answers. Source: decision records 0034, 0038.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import msgpack

from anna.errors import AnnaError, UnavailableError
from anna.lattices import Map, Max
from cloudburst import config
from cloudburst.burst.tasks.facts import Fact, fact_of, plain

PAGES_SHIFT = 40
MISSING_RETRY_S = 0.02
ASK_AGAIN_S = 0.1
Answer = TypeVar("Answer")


class Board:
    """One participant's access to a queue: `name` is its own, "" for one that only reads.

    `wake` is an eventfd that becomes readable when there is news of others.
    """

    def __init__(self, kvs: Any, prefix: str, name: str, wake: int) -> None:
        self.prefix = prefix
        self.name = name
        self._kvs = kvs
        self._wake = wake
        self._pages = self._beats = 0
        self._head: dict[str, int] = {}
        self._read: dict[str, int] = {}
        self._missing: dict[tuple[str, int], None] = {}
        self._heard: dict[str, int] = {}
        self._again_s = 0.0
        self._watch = kvs.watch(prefix)
        self._thread = threading.Thread(target=self._listen, name="cloudburst-board", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with suppress(AnnaError):
            for head in self._watch:
                before, self._head = self._head, head
                if any(writer != self.name and before.get(writer) != count for writer, count in head.items()):
                    with suppress(OSError):
                        os.eventfd_write(self._wake, 1)

    # -- writing

    def publish(self, facts: Iterable[Fact], blobs: Mapping[bytes, bytes] | None = None) -> None:
        """Write facts, and content that they speak of, by its key; then say so. Raises AnnaError."""
        written: dict[str, bytes] = {}
        for key, data in (blobs or {}).items():
            written |= pieces(self.place(key), data)
        for page in _pages_of(facts):
            written[self._page(self.name, self._pages)] = page
            self._pages += 1
        if written:
            _answer_of(lambda: self._kvs.mput(written, ttl=config.QUEUE_KEEP_S))
        _answer_of(self.beat)

    def beat(self) -> None:
        """Say that this participant lives."""
        self._beats += 1
        self._kvs.put(self.prefix, Map({self.name: Max(self._pages << PAGES_SHIFT | self._beats)}))

    def keep(self, key: bytes, data: bytes) -> str:
        """Keep content that facts to come will speak of; return where."""
        place = self.place(key)
        _answer_of(lambda: self._kvs.mput(pieces(place, data), ttl=config.QUEUE_KEEP_S))
        return place

    # -- reading

    def news(self) -> list[tuple[str, list[Fact]]]:
        """Return what others have written since the last call, and ([]) who else has beaten."""
        head = self._head
        wanted: dict[tuple[str, int], None] = {}
        if self._missing and time.monotonic() >= self._again_s:
            wanted, self._missing = self._missing, {}
        beaten = []
        for writer, count in head.items():
            if writer == self.name:
                continue
            if self._heard.get(writer, -1) < count:
                self._heard[writer] = count
                beaten.append(writer)
            pages = count >> PAGES_SHIFT
            for number in range(self._read.get(writer, 0), pages):
                wanted[writer, number] = None
            self._read[writer] = max(pages, self._read.get(writer, 0))
        found = self._fetch(list(wanted))
        return [*found, *((writer, []) for writer in beaten)]

    def _fetch(self, wanted: list[tuple[str, int]]) -> list[tuple[str, list[Fact]]]:
        if not wanted:
            return []
        try:
            pages = self._kvs.mget([self._page(*one) for one in wanted])
        except AnnaError:
            pages = [None] * len(wanted)
        found = []
        for (writer, number), page in zip(wanted, pages):
            if page is None:
                self._missing[writer, number] = None
                self._again_s = time.monotonic() + MISSING_RETRY_S
            else:
                found.append((writer, [fact_of(one) for one in msgpack.unpackb(bytes(page))]))
        return found

    @property
    def waits(self) -> bool:
        """Whether pages are missing that are known to be written: call `news` again soon."""
        return bool(self._missing)

    def content(self, place: str, size: int) -> bytes | None:
        """Return the content that is kept at `place`; None when it is not there, or not all of it. Raises AnnaError."""
        if not size:
            return b""
        found = _answer_of(lambda: self._kvs.mget(names_of(place, size)))
        return None if any(piece is None for piece in found) else b"".join(map(bytes, found))

    def place(self, key: bytes) -> str:
        """Return where content is kept that has this key."""
        return f"{self.prefix}/content/{key.hex()}"

    @property
    def seen(self) -> int:
        """What is known to be seen of what this participant has said: grows with each beat that has come back."""
        return self._head.get(self.name, 0)

    # -- the end

    def forget(self, contents: Iterable[tuple[str, int]]) -> None:
        """Have the store forget content, by its places and sizes."""
        self._forget([name for place, size in contents for name in names_of(place, size)])

    def _forget(self, names: list[str]) -> None:
        if names:
            with suppress(AnnaError), self._kvs.pipeline() as pipeline:
                for name in names:
                    pipeline.delete(name)

    def clear(self) -> None:
        """Have the store forget all pages, and the head."""
        pages = {writer: count >> PAGES_SHIFT for writer, count in self._head.items()}
        pages[self.name] = self._pages
        self._forget([self._page(writer, at) for writer, count in pages.items() for at in range(count)])
        self._forget([self.prefix])

    def close(self) -> None:
        """Stop listening. Closing twice is harmless."""
        self._watch.close()
        self._thread.join(1.0)

    def _page(self, writer: str, number: int) -> str:
        return f"{self.prefix}/page/{writer}/{number}"


def _answer_of(ask: Callable[[], Answer]) -> Answer:
    """Ask the store until it answers. Raises UnavailableError when it has not for QUEUE_PATIENCE_S, else AnnaError."""
    until = time.monotonic() + config.QUEUE_PATIENCE_S
    while True:
        try:
            return ask()
        except UnavailableError:
            if time.monotonic() >= until:
                raise
        time.sleep(ASK_AGAIN_S)


def pieces(place: str, data: bytes) -> dict[str, bytes]:
    """Return under which keys of the store content is kept, cut into pieces."""
    length = config.QUEUE_BLOB_BYTES
    return {name: data[at * length : (at + 1) * length] for at, name in enumerate(names_of(place, len(data)))}


def names_of(place: str, size: int) -> list[str]:
    """Return the store's keys of `size` bytes of content."""
    return [f"{place}/{at}" for at in range(-(-size // config.QUEUE_BLOB_BYTES))]


def _pages_of(facts: Iterable[Fact]) -> Iterable[bytes]:
    """Yield facts in pages of bounded length."""
    page: list[bytes] = []
    size = 0
    for fact in facts:
        packed = msgpack.packb(plain(fact))
        if page and size + len(packed) > config.QUEUE_PAGE_BYTES:
            yield _page_of(page)
            page, size = [], 0
        page.append(packed)
        size += len(packed)
    if page:
        yield _page_of(page)


def _page_of(packed: list[bytes]) -> bytes:
    packer = msgpack.Packer()
    return bytes(packer.pack_array_header(len(packed))) + b"".join(packed)
