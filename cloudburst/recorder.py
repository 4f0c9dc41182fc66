"""The history that one client writes of its sessions: when each has ended, with what it and its functions have done.

The one rule: a line says what its client knows. What surely had no effect is `failed`; of what nobody knows whether it
was committed, the last thing that is known is what was about to be, which is `unknown`.
Sessions of a client that are open beside each other are different sessions of the history, and one that begins knows of
those that have ended, and of those whose token it was given. Source: docs/histories.md; decision record 0030.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from anna.errors import AnnaError
from cloudburst.consistency import naming, travel
from cloudburst.consistency.levels import Level
from cloudburst.consistency.own import WRITERS_MIN
from cloudburst.consistency.session import Session
from cloudburst.consistency.token import Token
from cloudburst.errors import CloudburstError
from cloudburst.judge.history import FAILED, OK, UNKNOWN
from cloudburst.judge.writing import Writer
from cloudburst.recording import WORDS, Part, Recorded, chain_of, unpack_told
from cloudburst.results import Results
from cloudburst.transactions import Transaction

PARTS_WAIT_S: Final = 1.0
PARTS_PAUSE_S: Final = 0.001
TOKENS_MAX: Final = 10_000
_holders: Final[OrderedDict[str, list[str]]] = OrderedDict()
"""The sessions of this process that have ended with a token, by that."""


class Begun(NamedTuple):
    """A transaction that has begun: of which of the client's sessions it is, and whose end it knows of beside.

    `before` is that session's last one.
    """

    lane: int
    told: list[str]
    before: str | None = None


class Left(NamedTuple):
    """A call whose end nobody has told, or that has raised: what is known of it, and the id of its commit.

    `raised` is the part in which its last try raised, if one has; `surely`: so that none can have had an effect.
    """

    begun: Begun
    parts: list[Part]
    raised: list[int]
    surely: bool
    identity: bytes


class Recorder:
    """The history that one client writes. `words` finds what a call was about to commit, by the id of the commit."""

    def __init__(self, path: str | Path) -> None:
        self.words: Callable[[bytes], bytes | None] = lambda identity: None
        self._writer = Writer(path)
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self._last: dict[int, str] = {}
        self._told: dict[int, dict[int, str]] = {}
        self._name = os.urandom(4).hex()
        self._ended = 0
        self._closed = False
        self._unfinished: set[CallRecord] = set()
        self._calls: weakref.WeakSet[CallRecord] = weakref.WeakSet()
        self.left: deque[Left] = deque()
        """Calls that came to nothing, or to nobody knows what: any thread may add one, whatever locks it holds."""
        self._doubtful: list[Left] = []

    def begin(self, level: Level, told: Iterable[str] = (), call: CallRecord | None = None) -> Begun:
        """Begin a transaction, of one that was `told` of these."""
        self._take_in_left()
        with self._lock:
            if call is not None:
                self._calls.add(call)
            lane = next(number for number in range(len(self._open) + 1) if number not in self._open)
            self._open.add(lane)
            known, before = self._told.setdefault(lane, {}), self._last.get(lane)
            news = {other: name for other, name in self._last.items() if other != lane and known.get(other) != name}
            if not level.carried:
                return Begun(lane, [], before)
            known.update(news)
            return Begun(lane, [*news.values(), *told], before)

    def end(self, begun: Begun, parts: list[Part], outcome: str, commit: int | None) -> str:
        """Write a transaction that has ended; `parts` are in an order in which each is after those it came after.

        Returns its name.
        """
        behind: dict[int, set[int]] = {}
        lines: list[tuple[list[int], str, list[naming.Operation]]] = []
        for one, after, node, operations in parts:
            behind[one] = {number for before in after for number in behind.get(before, ())}
            if operations:
                lines.append((sorted(behind[one]), node, operations))
                behind[one] = {len(lines) - 1}
        with self._lock:
            self._ended += 1
            invocation = f"{self._name}-{self._ended}"
            if self._closed:
                return invocation
            session, told = f"{self._name}.{begun.lane}", begun.told
            if outcome == UNKNOWN and begun.lane not in self._open:  # what came after it did not wait for it
                session, told = f"{session}.{self._ended}", [*told, *filter(None, [begun.before])]
            for number, (before, node, operations) in enumerate(lines):
                self._writer.write(
                    session, operations, outcome, invocation=invocation, function=number, after=before, node=node,
                    commit=commit, told=told,
                )  # fmt: skip
            self._open.discard(begun.lane)
            if outcome == OK and lines:
                self._last[begun.lane] = invocation
        return invocation

    def await_parts(self, record: CallRecord, no_more: bool = False) -> None:
        """Take in that a call has ended of which parts have not come back yet, or that they have."""
        (self._unfinished.discard if no_more else self._unfinished.add)(record)

    def _take_in_left(self) -> None:
        """Write what has failed; what is in doubt waits for the end, when it is either committed or never will be."""
        while self.left:
            try:
                one = self.left.popleft()
            except IndexError:
                return  # another thread took it
            if one.raised and one.surely:
                self.end(one.begun, chain_of(one.parts, one.raised, whole=False) or [], FAILED, None)
                continue
            with self._lock:
                self._open.discard(one.begun.lane)
                self._doubtful.append(one)

    def close(self) -> None:
        """End the history, once all parts have come back of calls that have ended."""
        end = time.monotonic() + PARTS_WAIT_S
        while any(record.open for record in list(self._unfinished)) and time.monotonic() < end:
            time.sleep(PARTS_PAUSE_S)
        for record in list(self._calls):
            record.leave()
        self._take_in_left()
        for one in self._doubtful:
            self._resolve(one)
        with self._lock:
            self._closed = True
            self._writer.close()

    def _resolve(self, left: Left) -> None:
        """Write what a call was about to commit of which nobody knows whether it was, if it came so far."""
        try:
            word = self.words(left.identity)
        except (AnnaError, CloudburstError):
            return  # the store is gone, and with it all that could be asked
        last: Iterable[int] = left.raised
        parts = left.parts
        if word is not None:
            context, more = unpack_told(word)
            last, parts = travel.unpack(context, WRITERS_MIN).parts, parts + more
        self.end(left.begun, chain_of(parts, last, whole=False) or [], UNKNOWN, None)


def words_of(store: Callable[[], Results]) -> Callable[[bytes], bytes | None]:
    """Return what finds the words that recorded calls have kept."""

    def find(identity: bytes) -> bytes | None:
        kept = store().find(WORDS + identity)
        return None if kept is None else kept.payload

    return find


class CallRecord:
    """What is recorded of a call that is a session by itself. It is written when all its parts have come back."""

    def __init__(self, recorder: Recorder, level: Level) -> None:
        self.identity = b""
        """The id of its commit."""
        self._recorder = recorder
        self._begun: Begun | None = recorder.begin(level, call=self)
        self._eventual = not level.at_epoch
        self._lock = threading.Lock()
        self._parts: list[Part] = []
        self._ended: Session | None = None
        self._raised: list[int] = []
        self._surely_failed = True

    def told(self, data: bytes) -> bytes:
        """Take in what one of its functions has noted; return the session that it has ended with, if it has."""
        context, parts = unpack_told(data)
        with self._lock:
            self._parts += parts
        self._write()
        return context

    def raised(self, data: bytes, tries: int) -> None:
        """Take in that it has raised, after so many tries that had ended before, and what it had done by then."""
        _, parts = unpack_told(data)
        with self._lock:
            self._parts += parts
            self._surely_failed = self._surely_failed and len(self._raised) == tries and not self._eventual
            self._raised += [one[0] for one in parts[-1:]]

    def end(self, state: Session) -> None:
        """Take in that it has committed."""
        self._ended = state
        self._write()
        if self.open:
            self._recorder.await_parts(self)

    @property
    def open(self) -> bool:
        """Whether it has not been written."""
        return self._begun is not None

    def _write(self) -> None:
        with self._lock:
            if self._begun is None or self._ended is None:
                return
            parts = chain_of(self._parts, self._ended.parts)
            if parts is None:
                return  # a step's reply is still on its way
            begun, self._begun = self._begun, None
        self._recorder.end(begun, parts, OK, self._ended.commit or None)
        self._recorder.await_parts(self, no_more=True)

    def leave(self) -> None:
        """Take in that nobody tells any more how it ended, unless it is known."""
        begun, self._begun = self._begun, None
        if begun is not None:
            left = Left(begun, self._parts, self._raised[-1:], self._surely_failed, self.identity)
            self._recorder.left.append(left)

    def __del__(self) -> None:
        self.leave()


class SessionRecord:
    """What is recorded of a session of a program."""

    def __init__(self, recorder: Recorder, level: Level, token: str | None) -> None:
        self._recorder = recorder
        self._begun = recorder.begin(level, () if token is None else _holders.get(token, ()))

    def end(self, session: Transaction) -> None:
        """Write one that has committed."""
        name, state = self._write(session, OK), session.state
        if state.level.carried:
            _holders.setdefault(Token(state.snapshot, state.last).text(), []).append(name)
            if len(_holders) > TOKENS_MAX:
                _holders.popitem(last=False)

    def give_up(self, session: Transaction, fault: BaseException | None) -> None:
        """Write one that has not, or of which nobody knows."""
        self._write(session, FAILED if fault is None else outcome_of(fault))

    def _write(self, session: Transaction, outcome: str) -> str:
        assert isinstance(session, Recorded)
        end = time.monotonic() + PARTS_WAIT_S
        while (parts := chain_of(session.parts, [session.parts[-1][0]])) is None and time.monotonic() < end:
            time.sleep(PARTS_PAUSE_S)  # steps' replies may come after that of the last one
        return self._recorder.end(self._begun, parts or [], outcome, session.state.commit or None)


def outcome_of(fault: BaseException) -> str:
    """Return what a history calls a transaction that has ended with an error."""
    known = isinstance(fault, CloudburstError) and not fault.definite
    return UNKNOWN if known else FAILED
