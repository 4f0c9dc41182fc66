"""Segments as bytes: values of all shapes go in and come out, large buffers in place, and nothing is believed."""

from __future__ import annotations

import pickle
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna.beside import BUFFER_BYTES_MIN
from cloudburst import config, pickling
from cloudburst.errors import ProtocolError
from cloudburst.segments import layout
from cloudburst.segments.layout import Parts

LARGE = config.SEGMENT_BYTES_MIN


def laid(value: object) -> memoryview:
    """Return a value as a segment's bytes."""
    parts = layout.parts_of(value, pickling.dumps)
    assert isinstance(parts, Parts)
    data = b"".join(parts.pieces())
    assert len(data) == parts.size_bytes
    return memoryview(data)


def is_within(array: Any, data: memoryview) -> bool:
    return np.shares_memory(array, np.frombuffer(data, np.uint8))


def test_large_array_comes_back_as_a_read_only_view_of_the_segment() -> None:
    array = np.arange(100_000, dtype=float).reshape(100, 1000)
    data = laid(array)
    found = layout.loads(data)
    assert is_within(found, data)
    assert not found.flags.writeable
    np.testing.assert_array_equal(found, array)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1


def test_every_large_buffer_of_a_nested_value_is_in_place_and_aligned() -> None:
    columns = [np.ones(9_001, np.int16), np.full((300, 70), 2.5, order="F")]
    value = {"index": np.arange(20_000), "columns": columns, "n": 3}
    data = laid(value)
    found = layout.loads(data)
    for array in (found["index"], *found["columns"]):
        assert is_within(array, data)
        assert array.ctypes.data % 16 == np.frombuffer(data, np.uint8).ctypes.data % 16
    np.testing.assert_array_equal(found["columns"][1], columns[1])
    assert found["n"] == 3


@pytest.mark.parametrize(
    "value",
    [
        bytes(LARGE), bytearray(b"x" * LARGE), "é" * LARGE, [bytes(10)] * LARGE, np.arange(LARGE)[::2],
        np.array([{"a": 1}, None, "text"] * 30_000, dtype=object), [np.zeros(0), np.zeros(LARGE), np.zeros((0, 3))],
    ],
    ids=["bytes", "bytearray", "text", "list", "not contiguous", "objects", "with empty arrays"],
)  # fmt: skip
def test_large_value_of_any_kind_comes_back_as_it_was(value: object) -> None:
    found = layout.loads(laid(value))
    assert type(found) is type(value)
    np.testing.assert_equal(found, value)


def test_memoryview_comes_back_as_one_in_place() -> None:
    data = laid(memoryview(b"ab" * LARGE))
    found = layout.loads(data)
    assert type(found) is memoryview
    assert is_within(np.frombuffer(found, np.uint8), data)
    assert found == b"ab" * LARGE
    small = pickle.loads(pickling.dumps(memoryview(b"abc")))
    assert (type(small), small) == (memoryview, b"abc")


def test_value_below_the_threshold_is_one_ordinary_pickle() -> None:
    for array in (np.arange(3), np.zeros(BUFFER_BYTES_MIN), np.zeros(LARGE - 1000, np.uint8)):
        data = layout.parts_of(array, pickling.dumps)
        if array.nbytes < LARGE - 2000:
            assert isinstance(data, bytes)
            assert pickle.loads(data).flags.writeable


def test_value_that_only_cloudpickle_can_send_has_each_buffer_once() -> None:
    array = np.ones(LARGE)
    parts = layout.parts_of((array, lambda x: x + 1), pickling.dumps)
    assert isinstance(parts, Parts)
    assert len(parts.buffers) == 1
    found, function = layout.loads(memoryview(b"".join(parts.pieces())))
    assert function(found[0]) == 2


@given(st.lists(st.integers(0, 5).map(lambda n: n * 17)))
def test_pieces_and_split_agree_for_buffers_of_any_size(sizes: list[int]) -> None:
    buffers = [memoryview(bytes([number % 256]) * size) for number, size in enumerate(sizes)]
    parts = Parts(b"pickle", buffers)
    data = memoryview(b"".join(parts.pieces()))
    assert len(data) == parts.size_bytes
    assert layout.split(data) == (b"pickle", buffers)


@given(st.data())
def test_damaged_segment_is_a_protocol_error_or_stays_within_its_bytes(data: st.DataObject) -> None:
    whole = bytearray(b"".join(Parts(b"12345678", [memoryview(bytes(100)), memoryview(bytes(7))]).pieces()))
    at = data.draw(st.integers(0, len(whole) - 8))
    struct.pack_into("<Q", whole, at, data.draw(st.integers(0, 2**64 - 1)))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        pickled, buffers = layout.split(memoryview(whole)[:cut])
    except ProtocolError:
        return
    assert len(pickled) + sum(map(len, buffers)) <= cut
