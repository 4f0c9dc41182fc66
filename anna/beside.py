"""A pickle with its large buffers beside it, laid out so that whoever has the bytes can use the buffers in place.

Pickle's protocol 5 leaves buffers (the items of an array, the columns of a table) out of the pickle. Little-endian:

    8 bytes magic | u64 bytes of the pickle | u64 buffers | u64 × buffers: their bytes
    | the pickle | each buffer, at the next multiple of 64

The one rule: nothing is believed that the bytes do not bear out; what is too short, or points outside of itself, is a
ProtocolError. Source: PEP 574.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from anna.errors import ProtocolError

if TYPE_CHECKING:
    import pickle

MAGIC: Final = b"pickle+1"
HEAD: Final = struct.Struct("<8sQQ")
ALIGNMENT: Final = 64
BUFFERS_MAX: Final = 1 << 20
BUFFER_BYTES_MIN: Final = 16 * 1024
"""A buffer with this many bytes or more lies beside the pickle."""


class Parts(NamedTuple):
    """A pickled value that is to be laid out: the pickle, and the buffers that it leaves out."""

    pickled: bytes | memoryview
    buffers: Sequence[memoryview]

    @property
    def size_bytes(self) -> int:
        """What it has, laid out."""
        size = HEAD.size + 8 * len(self.buffers) + len(self.pickled)
        for buffer in self.buffers:
            size = _aligned(size) + buffer.nbytes
        return size

    def pieces(self) -> list[bytes | memoryview]:
        """Return what it is made of, in order; the buffers are not copied."""
        sizes = struct.pack(f"<{len(self.buffers)}Q", *(buffer.nbytes for buffer in self.buffers))
        pieces: list[bytes | memoryview] = [HEAD.pack(MAGIC, len(self.pickled), len(self.buffers)), sizes, self.pickled]
        size = HEAD.size + len(sizes) + len(self.pickled)
        for buffer in self.buffers:
            pieces += (bytes(_aligned(size) - size), buffer)
            size = _aligned(size) + buffer.nbytes
        return pieces


def keeper(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], object]:
    """Return what `pickle.dumps` asks about each buffer: large ones are left out and put into `buffers`."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Leave a large buffer out of the pickle; true says that it stays in."""
        try:
            raw = buffer.raw()
        except BufferError:
            return True
        if raw.nbytes < BUFFER_BYTES_MIN:
            return True
        buffers.append(raw)
        return False

    return keep


def split(data: memoryview) -> Parts:
    """Return the pickle and its buffers, as slices of `data`. Raises ProtocolError."""
    if len(data) < HEAD.size:
        raise ProtocolError(f"a pickle with buffers, of {len(data)} bytes; its head alone has {HEAD.size}")
    magic, pickled_bytes, count = HEAD.unpack_from(data)
    at = HEAD.size + 8 * count
    if magic != MAGIC or count > BUFFERS_MAX or at + pickled_bytes > len(data):
        head = f"{count:,} buffers and a pickle of {pickled_bytes:,} bytes"
        raise ProtocolError(f"{len(data):,} bytes are no pickle with buffers, though they begin like one with {head}")
    sizes = struct.unpack_from(f"<{count}Q", data, HEAD.size)
    pickled = data[at : at + pickled_bytes]
    at += pickled_bytes
    buffers = []
    for size in sizes:
        at = _aligned(at)
        if at + size > len(data):
            raise ProtocolError(f"a pickle with buffers, of {len(data):,} bytes, has one of {size:,} at {at:,}")
        buffers.append(data[at : at + size])
        at += size
    return Parts(pickled, buffers)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
