"""numpy arrays and scalars as bytes: dtype, shape, items in C order.

The one rule: no pickle, and nothing is allocated that the bytes do not pay for. The layout, little-endian:

    u8 dimensions (255: a scalar) | u8 zero | u16 length of the dtype's text | u64 × dimensions: the shape
    | the dtype's text, then zeros up to a multiple of 16 bytes after the value's tag | the items

The dtype's text is `dtype.str` (`<f8`, `>i2`, `<U5`, `<M8[ns]`), or for a structured dtype the literal of
`dtype.descr` as numpy's own `.npy` format has it. Dtypes that hold Python objects or long doubles, subclasses of
ndarray, and dtypes that numpy cannot name this way are left to pickle. An array comes back C-ordered, writable, with
the same byte order.
"""

from __future__ import annotations

import ast
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from anna.errors import NotSupported, ProtocolError

if TYPE_CHECKING:
    import numpy as np

SCALAR: Final = 255
DIMENSIONS_MAX: Final = 64
DTYPE_BYTES_MAX: Final = 8192
ALIGNMENT: Final = 16
DTYPES_KEPT_MAX: Final = 256


def encode_array(value: Any) -> bytes | None:
    """Return the encoding of an ndarray or numpy scalar, or None when it is neither or not plain."""
    import numpy as np

    scalar = isinstance(value, np.generic)
    if not scalar and type(value) is not np.ndarray:
        return None
    dtype = value.dtype
    name = _dtype_text(dtype)
    if name is None or (scalar and type(value) is not dtype.type):
        return None
    array = np.ascontiguousarray(value)
    shape = () if scalar else value.shape
    head = struct.pack(f"<BBH{len(shape)}Q", SCALAR if scalar else len(shape), 0, len(name), *shape) + name
    padding = bytes(-(len(head) + 1) % ALIGNMENT)
    return b"".join((head, padding, array.reshape(-1).view(np.uint8).data if array.size else b""))


def decode_array(data: bytes | memoryview) -> Any:
    """Return a copy of the array or scalar of `data`.

    Raises ProtocolError on other bytes, and NotSupported where numpy is not installed.
    """
    return _decoded(data, copy=True)


def view_array(data: memoryview) -> Any:
    """Return the array or scalar of `data` as `decode_array`, but in place: as long as it lives, so does `data`."""
    return _decoded(data, copy=False)


def _decoded(data: bytes | memoryview, copy: bool) -> Any:
    try:
        import numpy as np
    except ImportError:
        raise NotSupported(f"an array of {len(data):,} bytes needs numpy, which is not installed") from None
    try:
        return _decode(np, data, copy)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, struct.error) as error:
        raise ProtocolError(f"{len(data):,} bytes are not an array: {error}") from error


def _decode(np: Any, data: bytes | memoryview, copy: bool) -> Any:
    dimensions, zero, name_bytes = struct.unpack_from("<BBH", data)
    scalar = dimensions == SCALAR
    shape = struct.unpack_from(f"<{0 if scalar else dimensions}Q", data, 4)
    start = 4 + 8 * len(shape)
    name = bytes(data[start : start + name_bytes])
    start += name_bytes
    items = start + (-(start + 1) % ALIGNMENT)
    if zero or len(shape) > DIMENSIONS_MAX or len(name) != name_bytes or any(data[start:items]):
        raise ProtocolError(f"{len(data):,} bytes are not an array: its head is malformed")
    # One that has fields is the array's own: its names can be changed.
    dtype = _dtype_of(name) if name.startswith(b"[") else _plain_dtype_of(name)
    count = 1
    for extent in shape:
        count *= extent
    if len(data) - items != count * dtype.itemsize:
        raise ProtocolError(
            f"an array of shape {shape} and dtype {dtype} has {count * dtype.itemsize:,} bytes of items, "
            f"got {len(data) - items:,}"
        )
    if count == 0:
        return np.empty(shape, dtype)
    rest = memoryview(data)[items:]
    array = np.frombuffer(bytearray(rest) if copy else rest, np.uint8).view(dtype)
    return array[0] if scalar else array.reshape(shape)


def _dtype_text(dtype: np.dtype[Any]) -> bytes | None:
    """Return the text from which `_dtype_of` makes the same dtype, or None."""
    if dtype.hasobject or dtype.itemsize == 0 or dtype.char in "gG":
        return None
    try:
        text = repr(dtype.descr) if dtype.names is not None else dtype.str
        name = text.encode("ascii")
        same = len(name) <= DTYPE_BYTES_MAX and _dtype_of(name) == dtype
    except (ValueError, TypeError, SyntaxError, ProtocolError):
        return None
    return name if same and not dtype.metadata else None


@lru_cache(DTYPES_KEPT_MAX)
def _plain_dtype_of(name: bytes) -> Any:
    return _dtype_of(name)


def _dtype_of(name: bytes) -> Any:
    import numpy as np

    if len(name) > DTYPE_BYTES_MAX:
        raise ProtocolError(f"the text of a dtype has {len(name):,} bytes; the most is {DTYPE_BYTES_MAX:,}")
    text = name.decode("ascii")
    dtype = np.lib.format.descr_to_dtype(ast.literal_eval(text)) if text.startswith("[") else np.dtype(text)
    if dtype.hasobject or dtype.itemsize == 0 or dtype.subdtype is not None:
        raise ProtocolError(f"{text!r} is not the dtype of plain items")
    if dtype.names is None and dtype.str != text:
        raise ProtocolError(f"dtype {text!r} is written {dtype.str!r}")
    return dtype
