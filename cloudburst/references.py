"""Arguments that name a key instead of carrying a value.

A `Ref` that is pickled as part of a call's arguments, at whatever depth, leaves its key with the frame; the executor
fetches all keys of the call in one flight and unpickling puts the values in their places. Pickled anywhere else (in a
result, a stored value) a Ref stays a Ref. Keys outside the payload are also what placement looks at.
Source: DESIGN §6; D51 (resolved references were cached without invalidation: here every call reads anew).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class _Scope(threading.local):
    keys: list[str | bytes] | None = None
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
        keys = _scope.keys
        if keys is None:
            return Ref, (self.key,)
        keys.append(self.key)
        return _resolved, (len(keys) - 1,)


def _resolved(index: int) -> object:
    return _scope.values[index]


@contextmanager
def collecting() -> Iterator[list[str | bytes]]:
    """Within this block, pickling a Ref in this thread appends its key to the list instead."""
    before, _scope.keys = _scope.keys, []
    try:
        yield _scope.keys
    finally:
        _scope.keys = before


@contextmanager
def resolving(values: Sequence[object]) -> Iterator[None]:
    """Within this block, unpickling puts `values` in the places of the collected Refs, in the order collected."""
    before, _scope.values = _scope.values, values
    try:
        yield
    finally:
        _scope.values = before
