"""Histories of sessions, written where their client is: what each read and wrote, also in functions on other nodes.

The one rule: each part of a session knows which parts it came after. Parts are what its program did up to a call, what
the function did, what the program did after that; functions send theirs back with their answers, and the client numbers
them. A function that raised, and so has written nothing, is not in the history.
Sessions of a client that are open beside each other are different sessions of the history, and one that begins knows of
those that have ended. Source: docs/histories.md; decision record 0030.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from cloudburst.consistency import naming, travel
from cloudburst.consistency.levels import Level
from cloudburst.consistency.session import Session
from cloudburst.errors import CloudburstError, ProtocolError
from cloudburst.judge.history import FAILED, OK, UNKNOWN
from cloudburst.judge.writing import Writer
from cloudburst.transactions import Key, Transaction

_RAISE: Final = object()
PARTS_WAIT_S: Final = 1.0
PARTS_PAUSE_S: Final = 0.001

Part = tuple[int, list[int], str, list[naming.Operation]]
"""Its id, those that it came after, the node it ran on, and its operations."""


def new_part(after: list[int], node: str) -> Part:
    """Return a part in which nothing has happened."""
    return int.from_bytes(os.urandom(7), "little"), after, node, []


class Recorded(Transaction):
    """An open session whose operations are kept."""

    def __init__(self, state: Session, store: Callable[[], Any], identity: bytes, node: str = "") -> None:
        super().__init__(state, store, identity)
        self._node = node or os.environ.get("CLOUDBURST_DIR", "client")
        self._parts = [new_part(list(state.parts), self._node)]

    def _note(self, operations: list[naming.Operation]) -> None:
        with self._lock:
            self._parts[-1][3].extend(operations)

    # -- what is read and written

    def get_lattice(self, key: Key, default: Any = _RAISE, *, timeout: float | None = None) -> Any:
        """Return the lattice under `key` in this session, and note it."""
        found = self._lattice(key, timeout)
        self._note(naming.read(key, found))
        if found is None and default is _RAISE:
            from anna.errors import KeyNotFound

            raise KeyNotFound(f"no value is stored under {key!r}, in this session")
        return default if found is None else found

    def _lattice(self, key: Key, timeout: float | None = None) -> Any:
        if self.state.level.at_epoch:
            return self._own(key if isinstance(key, bytes) else key.encode(), timeout)
        return self._store().get_lattice(key, None, timeout=timeout)

    def get(self, key: Key, default: Any = _RAISE, *, timeout: float | None = None) -> Any:
        """Return the value under `key` in this session, and note it."""
        if default is _RAISE:
            return self.get_lattice(key, timeout=timeout).value
        found = self.get_lattice(key, None, timeout=timeout)
        return default if found is None else found.value

    def mget(self, keys: Iterable[Key], default: Any = None, *, timeout: float | None = None) -> list[Any]:
        """Return the values of `keys`, in their order, and note them."""
        return [self.get(key, default, timeout=timeout) for key in keys]

    def put(self, key: Key, value: Any, **options: Any) -> Any:
        """Write, and note it."""
        from anna.lattices import LWW, Lattice, ORSet

        lattice = value if isinstance(value, Lattice) else LWW.of(value)
        seen = self._lattice(key) if isinstance(lattice, ORSet) else None
        operations = naming.written(key, lattice, seen)
        if not self.state.level.at_epoch:
            self._note(operations)  # it may have happened, however it ends
            return super().put(key, value, **options)
        found = super().put(key, value, **options)
        self._note(operations)
        return found

    def mput(self, items: Any, **options: Any) -> Any:
        """Write each value, and note it."""
        found = None
        for key, value in list(items.items() if hasattr(items, "items") else items):
            found = self.put(key, value, **options)
        return found

    def delete(self, key: Key, **options: Any) -> bool:
        """Forget a key, and note it."""
        there = super().delete(key, **options)
        self._note([("write", naming.key_of(key), None)])
        return there

    # -- parts

    def packed(self, closes: bool) -> bytes:
        """Return the session as it goes on elsewhere, with the part that it goes on from."""
        with self._lock:
            last = self._parts[-1][0]
            self.state.parts = (last,)
            self._parts.append(new_part([last], self._node))
        return super().packed(closes)

    def returned(self, context: bytes) -> None:
        """Take in what a call in this session has done, and what it noted."""
        ended, parts = unpack_told(context)
        with self._lock:
            self._parts[:0] = parts
            if ended:
                super().returned(ended)
                last = travel.unpack(ended, self.state.writer).parts
                self._parts.append(new_part([self._parts[-1][0], *last], self._node))

    def continued(self, context: bytes) -> bytes:
        """Take in what a function has noted that ends with a call of another; return what goes along with that."""
        ended, parts = unpack_told(context)
        with self._lock:
            self._parts[:0] = parts
        return ended

    def told(self, context: bytes) -> bytes:
        """Return what goes back to the caller."""
        return bytes(msgpack.packb([context, self._parts]))

    def ending(self) -> bytes:
        """Return the session as it goes back to the caller."""
        self.state.parts = (self._parts[-1][0],)
        return super().ending()

    @property
    def parts(self) -> list[Part]:
        """All that was done."""
        with self._lock:
            return list(self._parts)


def unpack_told(data: bytes) -> tuple[bytes, list[Part]]:
    """Return (context, parts) that a function has sent back. Raises ProtocolError."""
    try:
        context, parts = msgpack.unpackb(data)
        return context, [(one, list(after), node, list(map(tuple, done))) for one, after, node, done in parts]
    except (TypeError, ValueError) as fault:
        raise ProtocolError(f"{len(data)} bytes are not what a recorded session sends back: {fault}") from None


def chain_of(parts: list[Part], last: Iterable[int]) -> list[Part] | None:
    """Return what led to the parts `last`, each after those that it came after; None while something is missing."""
    known = {one[0]: one for one in parts}
    order: list[Part] = []
    seen: set[int] = set()
    look = [(one, False) for one in last]
    while look:
        one, done = look.pop()
        if done:
            order.append(known[one])
        elif one not in seen:
            seen.add(one)
            if one not in known:
                return None
            look.append((one, True))
            look += [(before, False) for before in known[one][1]]
    return order


class Begun(NamedTuple):
    """A transaction that has begun: of which of the client's sessions it is, and whose end it knows of beside."""

    lane: int
    told: list[str]


class Recorder:
    """The history that one client writes."""

    def __init__(self, path: str | Path) -> None:
        self._writer = Writer(path)
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self._last: dict[int, str] = {}
        self._told: dict[int, dict[int, str]] = {}
        self._name = os.urandom(4).hex()
        self._ended = 0
        self._closed = False
        self._unfinished: set[CallRecord] = set()

    def begin(self, level: Level) -> Begun:
        """Begin a transaction."""
        with self._lock:
            lane = next(number for number in range(len(self._open) + 1) if number not in self._open)
            self._open.add(lane)
            told = self._told.setdefault(lane, {})
            news = {other: name for other, name in self._last.items() if other != lane and told.get(other) != name}
            if not level.carried:
                return Begun(lane, [])
            told.update(news)
            return Begun(lane, list(news.values()))

    def end(self, begun: Begun, parts: list[Part], outcome: str, commit: int | None) -> None:
        """Write a transaction that has ended; `parts` are in an order in which each is after those it came after."""
        behind: dict[int, set[int]] = {}
        lines: list[tuple[list[int], str, list[naming.Operation]]] = []
        for one, after, node, operations in parts:
            behind[one] = {number for before in after for number in behind[before]}
            if operations:
                lines.append((sorted(behind[one]), node, operations))
                behind[one] = {len(lines) - 1}
        with self._lock:
            if self._closed:
                return
            self._ended += 1
            invocation = f"{self._name}-{self._ended}"
            for number, (before, node, operations) in enumerate(lines):
                self._writer.write(
                    f"{self._name}.{begun.lane}", operations, outcome, invocation=invocation, function=number,
                    after=before, node=node, commit=commit, told=begun.told,
                )  # fmt: skip
            self._open.discard(begun.lane)
            if outcome == OK and lines:
                self._last[begun.lane] = invocation

    def give_up(self, begun: Begun) -> None:
        """Forget a transaction that came to nothing."""
        with self._lock:
            self._open.discard(begun.lane)

    def await_parts(self, record: CallRecord, no_more: bool = False) -> None:
        """Take in that a call has ended of which parts have not come back yet, or that they have."""
        (self._unfinished.discard if no_more else self._unfinished.add)(record)

    def close(self) -> None:
        """End the history, once all parts have come back of calls that have ended."""
        end = time.monotonic() + PARTS_WAIT_S
        while any(record.open for record in list(self._unfinished)) and time.monotonic() < end:
            time.sleep(PARTS_PAUSE_S)
        with self._lock:
            self._closed = True
            self._writer.close()


class CallRecord:
    """What is recorded of a call that is a session by itself. It is written when all its parts have come back."""

    def __init__(self, recorder: Recorder, level: Level) -> None:
        self._recorder = recorder
        self._begun: Begun | None = recorder.begin(level)
        self._lock = threading.Lock()
        self._parts: list[Part] = []
        self._ended: Session | None = None

    def told(self, data: bytes) -> bytes:
        """Take in what one of its functions has noted; return the session that it has ended with, if it has."""
        context, parts = unpack_told(data)
        with self._lock:
            self._parts += parts
        self._write()
        return context

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

    def __del__(self) -> None:
        if self._begun is not None:
            self._recorder.give_up(self._begun)


class SessionRecord:
    """What is recorded of a session of a program."""

    def __init__(self, recorder: Recorder, level: Level) -> None:
        self._recorder = recorder
        self._begun = recorder.begin(level)

    def end(self, session: Transaction) -> None:
        """Write one that has committed."""
        self._write(session, OK)

    def give_up(self, session: Transaction, fault: BaseException | None) -> None:
        """Write one that has not, or of which nobody knows."""
        self._write(session, FAILED if fault is None else outcome_of(fault))

    def _write(self, session: Transaction, outcome: str) -> None:
        assert isinstance(session, Recorded)
        end = time.monotonic() + PARTS_WAIT_S
        while (parts := chain_of(session.parts, [session.parts[-1][0]])) is None and time.monotonic() < end:
            time.sleep(PARTS_PAUSE_S)  # steps' replies may come after that of the last one
        self._recorder.end(self._begun, parts or [], outcome, session.state.commit or None)


def outcome_of(fault: BaseException) -> str:
    """Return what a history calls a transaction that has ended with an error."""
    known = isinstance(fault, CloudburstError) and not fault.definite
    return UNKNOWN if known else FAILED
