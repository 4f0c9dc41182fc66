"""How stages of a shell's pipeline find each other, and take each other's results.

The one rule: nobody guesses from a terminal. Both ends of a pipe see the same inode; a stage that reads announces
itself under it, and one that writes looks there: if its reader is one of ours it gets a token, anybody else gets
results. What is read says itself what it is. Source: decision record 0038.
"""

from __future__ import annotations

import os
import secrets
import select
import stat
import time
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from anna.errors import AnnaError
from cloudburst import config
from cloudburst.build.manifest import PACKED
from cloudburst.burst.tasks.board import Board
from cloudburst.burst.tasks.facts import Closed, Settled, Taken
from cloudburst.burst.tasks.items import Item, Keys
from cloudburst.burst.tasks.queue import Ledger, Rules
from cloudburst.burst.tasks.sources import LINE_BYTES_MAX, Send
from cloudburst.burst.tasks.tokens import MARK, Token, pipes_directory
from cloudburst.burst.tasks.told import Told
from cloudburst.errors import NodeLost
from cloudburst.page import monotonic_us

READER_S: Final = 0.3
"""How long a stage waits for its reader to announce itself, when that runs another program."""
STARTING_S: Final = 5.0
"""And when it is still the shell, which has not become a program yet, or one of ours that is starting."""
UNPACKING_S: Final = 90.0
"""And when it is a stage that was built: when it runs for the first time, it is unpacked before."""
LOOK_S: Final = 0.01
SHELLS: Final = ("sh", "bash", "dash", "zsh", "ksh", "fish")
WORD_S: Final = 3.0
"""How long the end of a pipe may come before the word of the stage that has ended it."""
TELL_S: Final = 0.5
TELL_TASKS: Final = config.QUEUE_AHEAD_TASKS // 8
"""The stage before is told how much has been taken when it is so much more than it knows, or every half second."""


def pipe_of(fd: int) -> tuple[int, int] | None:
    """Return the device and inode of the pipe that a descriptor is; None when it is none."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISFIFO(found.st_mode) else None


def is_a_stream(fd: int) -> bool:
    """Whether a descriptor is a pipe or a file, from which a token can come."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


@contextmanager
def announced(fd: int) -> Iterator[None]:
    """While this lasts, whoever writes into the pipe at `fd` can see that its reader is a stage."""
    pipe = pipe_of(fd)
    if pipe is None:
        yield
        return
    path = _place(pipe)
    path.write_text(str(os.getpid()))
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def reader_is_a_stage(fd: int) -> bool:
    """Whether what reads the pipe at `fd` is a stage; waits for it to say so, as long as it may be about to."""
    pipe = pipe_of(fd)
    if pipe is None:
        return False
    began_s = time.monotonic()
    while not _has_announced(pipe):
        waits_s = max((_starts_within_s(pid) for pid in _readers(pipe)), default=READER_S)
        if time.monotonic() - began_s >= waits_s:
            return False
        time.sleep(LOOK_S)
    return True


def first_bytes(fd: int) -> tuple[bytes, bytes]:
    """Wait for what comes first; return (a token's line, b""), or (b"", what was read of plain lines)."""
    data = b""
    while len(data) < LINE_BYTES_MAX:
        read = os.read(fd, LINE_BYTES_MAX)
        data += read
        begins = data[: len(MARK)]
        if not MARK.startswith(begins) or not read:
            return b"", data
        if begins == MARK and b"\n" in data:
            return data, b""
    return b"", data


def gone(fd: int) -> bool:
    """Whether nobody reads the pipe at `fd` any more."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _place(pipe: tuple[int, int]) -> Path:
    return pipes_directory() / f"reader-{pipe[0]}-{pipe[1]}"


def _has_announced(pipe: tuple[int, int]) -> bool:
    """Whether a process that is there, and reads just this pipe, has left word; the word of a dead one is nothing."""
    try:
        pid = int(_place(pipe).read_text())
    except (OSError, ValueError):
        return False
    return _reads(pid, pipe)


def _reads(pid: int, pipe: tuple[int, int]) -> bool:
    try:
        found = os.stat(f"/proc/{pid}/fd/0")
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == pipe


def _readers(pipe: tuple[int, int]) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _reads(int(name), pipe):
            yield int(name)


def _starts_within_s(pid: int) -> float:
    """Return how long a process may take to say that it is a stage: a built one, a shell that becomes one, `cb map`."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        own = Path("/proc/self/cmdline").read_bytes().split(b"\0")
        before = words[1 : words.index(b"up", 1)] if b"up" in words[1:] else []
        if any(_is_built(pid, word) for word in before):
            return UNPACKING_S
    except OSError:
        return READER_S
    program = os.path.basename(words[0]).decode(errors="replace").lstrip("-")
    return STARTING_S if program in SHELLS or words[:2] == own[:2] else READER_S


@cache
def _is_built(pid: int, word: bytes) -> bool:
    """Whether a word of a process is a built file, or where one is being, or was, unpacked."""
    path = Path(f"/proc/{pid}/cwd", os.fsdecode(word))
    if (path / PACKED).is_dir() or any(path.glob(f"lib/python3*/site-packages/{PACKED}")):
        return True
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.startswith(f"{PACKED}/") for name in file.namelist())


class Upstream:
    """The results of the stage before, as items. It ends with `code` and `why` of that stage."""

    def __init__(self, kvs: Any, token: Token, keys: Keys, fd: int | None) -> None:
        self.ended = False
        self.code, self.why = 0, ""
        self._keys = keys
        self._fd = fd
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._board = Board(kvs, token.prefix, f"reader-{secrets.token_hex(4)}", self._wake)
        self._owner = token.owner
        self._ledger = Ledger(Rules())
        self._data = Told(self._ledger)
        self._ledger.hear(self._owner, monotonic_us())
        self._settled: deque[Settled] = deque()
        self._taken = self._told = 0
        self._done: list[tuple[str, int]] = []
        self._tell_s = 0.0
        self._broken_s: float | None = None

    def fds(self) -> list[int]:
        """Return which descriptors become readable when there is more: news of the stage, and its end."""
        return [self._wake, *([self._fd] if self._fd is not None and self._broken_s is None else [])]

    def take(self, room: int, send: Send | None) -> list[Item]:
        """Return up to `room` items. Raises NodeLost when the stage before has ended without a word."""
        self._hear()
        items: list[Item] = []
        for _ in range(len(self._settled)):
            if len(items) >= room:
                break
            settled = self._settled.popleft()
            item = self._item(settled)
            if item is None:
                self._settled.append(settled)
            else:
                items.append(item)
        closed = self._ledger.closed
        if closed is not None and not self._board.waits and not self._settled:
            self.ended, self.code, self.why = True, closed.code, closed.why
        elif closed is None and self._is_lost():
            raise NodeLost("the stage before has ended without a word: it was killed, or has lost its node")
        self._tell()
        return items

    def _is_lost(self) -> bool:
        """Whether the stage before is gone: its pipe has ended, or, with a token in a file, it is silent."""
        if self._fd is None:
            return not self._ledger.alive_within(self._owner, config.QUEUE_OWNER_US, monotonic_us())
        return self._broken_s is not None and time.monotonic() - self._broken_s > WORD_S

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        fd = self._fd
        if fd is not None and self._broken_s is None and select.select([fd], [], [], 0)[0] and not os.read(fd, 4096):
            self._broken_s = time.monotonic()
        for writer, facts in self._board.news():
            self._data.absorb(writer, facts)
            self._ledger.hear(writer, monotonic_us())
            for fact in facts:
                self._ledger.absorb(writer, fact, monotonic_us())
                if isinstance(fact, Settled) and fact.attempt:  # a page is read once, and has each task once
                    self._settled.append(fact)

    def _item(self, settled: Settled) -> Item | None:
        """Return the item that a settled task's result is; None while the facts that it takes have not come."""
        entry = self._ledger.entries[settled.key]
        result = entry.ends.get((settled.attempt, settled.worker))
        if result is None or entry.body is None:
            return None
        item = Item.unpack(settled.key, entry.body)
        key = self._keys.key(item.text, result.output)
        data = self._data.take(settled)
        place = "" if data else self._board.place(result.output)
        return replace(item, key=key, identity=None, content=place, size=result.size, data=data)

    def done(self, item: Item) -> None:
        """Take in that an item is settled: its content is needed no more."""
        self._taken += 1
        if not item.data:
            self._done.append((item.content, item.size))

    def _tell(self) -> None:
        """Tell the stage before how much has been taken, now and then."""
        now_s = time.monotonic()
        if self._taken - self._told >= TELL_TASKS or (self._taken > self._told and now_s >= self._tell_s):
            self._told, self._tell_s = self._taken, now_s + TELL_S
            done, self._done = self._done, []
            self._board.forget(done)
            self._board.publish((Taken(self._taken),))

    def close(self, code: int, why: str) -> None:
        """Tell the stage before that nothing more is wanted, and why."""
        with suppress(AnnaError):
            self._board.forget(self._done)
            self._board.publish((Taken(self._taken), Closed(code, why)))
        self._board.close()
        os.close(self._wake)
