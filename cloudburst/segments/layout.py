"""What is in a segment: one pickled value with its large buffers beside it, laid out so that readers use them in place.

Pure. The pickle is protocol 5 with its buffers out of band: a reader that has mapped the bytes unpickles with slices of
them, so an array of any size is read without a copy. Little-endian:

    8 bytes magic | u64 bytes of the pickle | u64 buffers | u64 × buffers: their bytes
    | the pickle | each buffer, at the next multiple of 64

The one rule: nothing is believed that the bytes do not bear out; what is too short, or points outside of itself, is a
ProtocolError. Source: PEP 574; DESIGN §6 (values above a threshold live in shared memory).
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from cloudburst import config
from cloudburst.errors import ProtocolError

MAGIC: Final = b"cb seg 1"
HEAD: Final = struct.Struct("<8sQQ")
ALIGNMENT: Final = 64
BUFFERS_MAX: Final = 1 << 20


class Parts(NamedTuple):
    """A pickled value that is to be a segment: the pickle, and the buffers that it leaves out."""

    pickled: bytes | memoryview
    buffers: Sequence[memoryview]

    @property
    def size_bytes(self) -> int:
        """What its segment has."""
        size = HEAD.size + 8 * len(self.buffers) + len(self.pickled)
        for buffer in self.buffers:
            size = _aligned(size) + buffer.nbytes
        return size

    def pieces(self) -> list[bytes | memoryview]:
        """Return what its segment is made of, in order; the buffers are not copied."""
        sizes = struct.pack(f"<{len(self.buffers)}Q", *(buffer.nbytes for buffer in self.buffers))
        pieces: list[bytes | memoryview] = [HEAD.pack(MAGIC, len(self.pickled), len(self.buffers)), sizes, self.pickled]
        size = HEAD.size + len(sizes) + len(self.pickled)
        for buffer in self.buffers:
            pieces += (bytes(_aligned(size) - size), buffer)
            size = _aligned(size) + buffer.nbytes
        return pieces


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


def keeper(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], object]:
    """Return what `pickle.dumps` asks about each buffer: large ones are left out and put into `buffers`."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Leave a large buffer out of the pickle; true says that it stays in."""
        try:
            raw = buffer.raw()
        except BufferError:
            return True
        if raw.nbytes < config.BUFFER_BYTES_MIN:
            return True
        buffers.append(raw)
        return False

    return keep


def is_segment(data: bytes | memoryview) -> bool:
    """Whether these are the bytes of a segment, and not the descriptor of one."""
    return bytes(data[: len(MAGIC)]) == MAGIC


def loads(data: memoryview) -> Any:
    """Return the value of a segment; its buffers are slices of `data`.

    Raises ProtocolError, and what unpickling raises.
    """
    pickled, buffers = split(data)
    return pickle.loads(pickled, buffers=buffers)


def split(data: memoryview) -> tuple[memoryview, list[memoryview]]:
    """Return the pickle of a segment and its buffers, as slices of `data`. Raises ProtocolError."""
    if len(data) < HEAD.size:
        raise ProtocolError(f"a segment of {len(data)} bytes; its head alone has {HEAD.size}")
    magic, pickled_bytes, count = HEAD.unpack_from(data)
    at = HEAD.size + 8 * count
    if magic != MAGIC or count > BUFFERS_MAX or at + pickled_bytes > len(data):
        head = f"{count:,} buffers and a pickle of {pickled_bytes:,} bytes"
        raise ProtocolError(f"{len(data):,} bytes are no segment, though they begin like one with {head}")
    sizes = struct.unpack_from(f"<{count}Q", data, HEAD.size)
    pickled = data[at : at + pickled_bytes]
    at += pickled_bytes
    buffers = []
    for size in sizes:
        at = _aligned(at)
        if at + size > len(data):
            raise ProtocolError(f"a segment of {len(data):,} bytes has a buffer of {size:,} at {at:,}")
        buffers.append(data[at : at + size])
        at += size
    return pickled, buffers


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
