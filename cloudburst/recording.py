"""What a recorded session notes where it runs: each read and write, in parts that know what they came after.

The one rule: each part of a session knows which parts it came after. Parts are what its program did up to a call, what
the function did, what the program did after that; functions send theirs back with their answers. A function that raised
in somebody's session has written nothing: what it read is a part of that session all the same. What a call commits by
itself is kept in the store before, for who does not hear its answer. Source: docs/histories.md; decision record 0030.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgpack

from anna.errors import UnavailableError as Unavailable
from cloudburst import context as surroundings
from cloudburst import frames
from cloudburst.consistency import naming, travel
from cloudburst.consistency.session import Session
from cloudburst.errors import ProtocolError, UnavailableError
from cloudburst.judge.history import READ
from cloudburst.records import PREFIX
from cloudburst.results import Kept, Results
from cloudburst.transactions import Key, Transaction

_RAISE: Final = object()
WORDS: Final = PREFIX + b"told/"
"""Where a recorded call keeps what it is about to commit, by the id of the commit."""

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

    def failed(self, context: bytes, tries: int) -> None:
        """Take in what a call in this session has read that raised, or, at level eventual, has done."""
        _, parts = unpack_told(context)
        with self._lock:
            self._parts[:0] = parts
            self._parts.append(new_part([self._parts[-1][0], *(one[0] for one in parts)], self._node))

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

    def gave_up(self) -> bytes:
        """Return what goes back to the caller of a function that has raised: of somebody's session, what it has read.

        What it read of its own writes is left out: nobody has written that.
        """
        if self.state.closes or not self.state.level.at_epoch:
            return self.told(b"")
        written = {one[1] for part in self._parts for one in part[3] if one[0] != READ}
        for part in self._parts:
            part[3][:] = [one for one in part[3] if one[1] not in written]
        return self.told(b"")

    def commit(self) -> int:
        """Commit; of a call that is a session by itself, its client can find what it did though no answer comes."""
        if self.state.closes and self.state.buffered:
            try:
                kept = Kept(frames.OK, 0, self.told(self.ending()))
                Results(surroundings.executing.system_store()).keep(WORDS + self.identity, kept)  # type: ignore[union-attr]
            except Unavailable as fault:
                words = f"a recorded session cannot be kept: {type(fault).__name__}: {fault}"
                raise UnavailableError(words) from fault  # nothing has been committed
        return super().commit()

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


def chain_of(parts: list[Part], last: Iterable[int], whole: bool = True) -> list[Part] | None:
    """Return what led to the parts `last`, each after those that it came after; None while something is missing.

    Without `whole` what is missing is left out.
    """
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
                if whole:
                    return None
                continue
            look.append((one, True))
            look += [(before, False) for before in known[one][1]]
    return order
