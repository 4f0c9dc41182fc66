"""Values of keys that a node's cache has put into shared memory, opened in place.

An answer of the cache says where the value is; what this process has opened before it keeps, so that a value which has
not changed costs the answer and nothing else: no bytes move, and no page is entered twice. The one rule: an answer is
what decides. A value that was replaced has another place, so no mapping that is kept can hide it, and the last one of
the same key is let go of then. Source: DESIGN §6; D51 (resolved references were cached without invalidation).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, TypeVar

from anna.beside import split
from anna.codec import decode_value, open_elsewhere_with
from anna.errors import NeedsPickle, ProtocolError, UnavailableError
from cloudburst import config, errors
from cloudburst.segments.descriptors import SegmentGone, key_number
from cloudburst.segments.held import open_segment

T = TypeVar("T")

TAG_BYTES: Final = 6
TAG_ARRAY: Final = 8
TAG_PICKLE: Final = 9
BESIDE_AT: Final = 64
"""Where a pickle with its buffers begins in an encoding."""


class Replaced(UnavailableError):
    """The value was replaced, or its cache ended, between the answer and the look: ask again."""


class Opened:
    """The values that this process has opened, by where they are, the last used last."""

    def __init__(self, bytes_max: int = config.MAPPED_BYTES_MAX, count_max: int = config.OPENED_MAX) -> None:
        self.bytes_max = bytes_max
        self.count_max = count_max
        self.bytes = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[memoryview, Any]] = OrderedDict()
        self._by_key: dict[int, bytes] = {}

    def value(self, where: bytes, allow_pickle: bool) -> Any:
        """Return the value at `where`; an array, or what a pickle has beside it, in place. Raises Replaced."""
        found = self._kept.get(where)
        if found is None:
            found = self._open(where)
        elif len(self._kept) > 1:
            self._touch(where)
        data, array = found
        if array is not None:
            return array.view() if array.ndim else array[()]
        if data[0] == TAG_PICKLE:
            return self._unpickled(data, allow_pickle)
        return bytes(data[1:]) if data[0] == TAG_BYTES else decode_value(bytes(data), allow_pickle)

    def encoded(self, where: bytes) -> bytes:
        """Return the value's encoding. Raises Replaced."""
        return bytes((self._kept.get(where) or self._open(where))[0])

    @staticmethod
    def _unpickled(data: memoryview, allow_pickle: bool) -> Any:
        import pickle

        if not allow_pickle:
            raise NeedsPickle(f"the value is a pickle of {len(data) - 1:,} bytes; this client was told not to load any")
        if data[1]:
            return pickle.loads(data[1:])
        pickled, buffers = split(data[BESIDE_AT:])
        return pickle.loads(pickled, buffers=buffers)

    def _touch(self, where: bytes) -> None:
        try:
            self._kept.move_to_end(where)
        except KeyError:
            pass  # another thread has let go of it

    def _open(self, where: bytes) -> tuple[memoryview, Any]:
        try:
            key = key_number(where)
        except errors.ProtocolError as fault:
            raise ProtocolError(f"a value that is said to lie elsewhere: {fault}") from None
        try:
            data = open_segment(where)
        except SegmentGone:
            raise Replaced("the value was replaced while it was being read, or its cache ended") from None
        array = None
        if data[0] == TAG_ARRAY:
            from anna.arrays import view_array

            array = view_array(data[1:])
        with self._lock:
            former = self._by_key.get(key)
            if former is not None:
                self._let_go(former)
            if where not in self._kept:
                self._by_key[key] = where
                self._kept[where] = data, array
                self.bytes += len(data)
            while len(self._kept) > 1 and (self.bytes > self.bytes_max or len(self._kept) > self.count_max):
                self._let_go(next(iter(self._kept)))
        return data, array

    def _let_go(self, where: bytes) -> None:
        found = self._kept.pop(where, None)
        if found is not None:
            self.bytes -= len(found[0])
            self._by_key.pop(key_number(where), None)


opened: Final = Opened()


def read(ask: Callable[[], T]) -> T:
    """Return what `ask` reads, asking again when a value was replaced meanwhile. Raises what `ask` raises."""
    for _ in range(config.ATTEMPTS_MAX):
        try:
            return ask()
        except Replaced:
            continue
    return ask()


def install() -> None:
    """Have this process's clients of the store open what caches have put into shared memory."""
    open_elsewhere_with(opened)
