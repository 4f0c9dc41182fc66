"""Arguments that name a key instead of carrying a value.

A `Ref` that is pickled as part of a call's arguments, at whatever depth, leaves its key with the frame; the executor
fetches all keys of the call in one flight and unpickling puts the values in their places. Pickled anywhere else (in a
result, a stored value) a Ref stays a Ref. A future among the arguments is such a Ref, to its result.
Keys outside the payload are also what placement looks at.
Source: DESIGN §6; D51 (resolved references were cached without invalidation: here every call reads anew).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final


class Collected:
    """What was referred to while a call's arguments were pickled: keys, and the futures whose results they name."""

    __slots__ = ("_places", "futures")

    def __init__(self) -> None:
        self._places: dict[str | bytes, int] = {}
        self.futures: dict[str, Any] = {}

    @property
    def keys(self) -> list[str | bytes]:
        """The keys, each once, in the order in which they were first met."""
        return list(self._places)

    def place(self, key: str | bytes) -> tuple[Any, ...]:
        """Return what a reference to `key` is pickled as."""
        return _resolved, (self._places.setdefault(key, len(self._places)),)


class _Scope(threading.local):
    collected: Collected | None = None
    values: Sequence[object] = ()


_scope = _Scope()


class Ref:
    """The value stored under `key`, read where and when the function runs.

    >>> Ref("weights")
    Ref('weights')
    """

    __slots__ = ("key",)

    def __init__(self, key: str | bytes) -> None:
        if not isinstance(key, (str, bytes)):
            raise TypeError(f"a Ref names a key, text or bytes; got a {type(key).__name__}")
        self.key = key

    def __repr__(self) -> str:
        return f"Ref({self.key!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and self.key == other.key

    def __hash__(self) -> int:
        return hash((Ref, self.key))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Ref, (self.key,)) if _scope.collected is None else _scope.collected.place(self.key)


def _resolved(index: int) -> object:
    return _scope.values[index]


def collected_now() -> Collected | None:
    """Return what is being collected in this thread, None when what is pickled is not a call's arguments."""
    return _scope.collected


class Collecting:
    """Within this block, pickling a Ref in this thread notes its key instead."""

    __slots__ = ("_before",)

    def __enter__(self) -> Collected:
        collected = Collected()
        self._before, _scope.collected = _scope.collected, collected
        return collected

    def __exit__(self, *_: object) -> None:
        _scope.collected = self._before


NOTHING: Final = Collected()
"""What arguments refer to that refer to nothing. Nobody adds to it."""


@contextmanager
def resolving(values: Sequence[object]) -> Iterator[None]:
    """Within this block, unpickling puts `values` in the places of the collected Refs, in the order collected."""
    before, _scope.values = _scope.values, values
    try:
        yield
    finally:
        _scope.values = before
