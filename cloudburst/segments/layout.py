"""What is in a segment: one pickled value with its large buffers beside it, laid out so that readers use them in place.

Pure. The layout is that of a stored value of the same kind (`anna.beside`): a reader that has mapped the bytes
unpickles with slices of them, so an array of any size is read without a copy. Source: DESIGN §6 (values above a
threshold live in shared memory).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from anna import beside
from anna.beside import MAGIC, Parts, keeper
from anna.errors import ProtocolError as Unreadable
from cloudburst import config
from cloudburst.errors import ProtocolError

__all__ = ["Parts", "is_segment", "keeper", "loads", "parts_of", "size_of", "split"]


def parts_of(value: object, dumps: Callable[[object, list[memoryview] | None], bytes]) -> Parts | bytes:
    """Return `value` as Parts when it is large enough for a segment, else pickled as one. Raises what `dumps` raises.

    `dumps` pickles, and puts large buffers into the list that it is given.
    """
    buffers: list[memoryview] = []
    pickled = dumps(value, buffers)
    if len(pickled) + sum(buffer.nbytes for buffer in buffers) >= config.SEGMENT_BYTES_MIN:
        return Parts(pickled, buffers)
    return dumps(value, None) if buffers else pickled


def size_of(data: Parts | bytes) -> int:
    """Return how many bytes either has."""
    return data.size_bytes if isinstance(data, Parts) else len(data)


def is_segment(data: bytes | memoryview) -> bool:
    """Whether these are the bytes of a segment, and not the descriptor of one."""
    return bytes(data[: len(MAGIC)]) == MAGIC


def loads(data: memoryview) -> Any:
    """Return the value of a segment; its buffers are slices of `data`.

    Raises ProtocolError, and what unpickling raises.
    """
    pickled, buffers = split(data)
    return pickle.loads(pickled, buffers=buffers)


def split(data: memoryview) -> Parts:
    """Return the pickle of a segment and its buffers, as slices of `data`. Raises ProtocolError."""
    try:
        return beside.split(data)
    except Unreadable as fault:
        raise ProtocolError(f"a segment is not what it should be: {fault}") from None
