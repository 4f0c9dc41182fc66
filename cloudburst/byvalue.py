"""Pickling of what plain pickle cannot take, or would only refer to: cloudpickle, but for memoryviews and open files.

cloudpickle makes bytes of a memoryview; here it comes back as a memoryview, of the segment when it is large. And it
would copy a file's contents without a word. In a module of its own because importing cloudpickle takes long, and most
programs never need it.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable
from typing import Any, ClassVar

import cloudpickle


def _reduce_memoryview(view: memoryview) -> tuple[Any, ...]:
    if view.c_contiguous and view.format == "B" and view.ndim == 1:
        return memoryview, (pickle.PickleBuffer(view),)
    return bytes, (view.tobytes(),)


def _refuse_file(file: io.TextIOWrapper) -> Any:
    """Pickle the standard streams as what they are there, and refuse every other file."""
    for name in ("stdout", "stderr"):
        if file is getattr(sys, name):
            return getattr, (sys, name)
    raise TypeError(f"{file.name!r} is an open file")


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc,unused-ignore]
    dispatch_table: ClassVar[Any] = ChainMap(
        {memoryview: _reduce_memoryview, io.TextIOWrapper: _refuse_file}, cloudpickle.Pickler.dispatch_table
    )


def dumps_by_value(value: object, keep: Callable[[pickle.PickleBuffer], object] | None = None) -> bytes:
    """Return `value` pickled; `keep` is asked about each buffer, as by `pickle.dumps`. Raises what pickling raises."""
    with io.BytesIO() as file:
        _Pickler(file, 5, keep).dump(value)
        return file.getvalue()
