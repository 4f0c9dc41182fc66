"""The order of the bytes is the order of the values, and the values come back."""

from __future__ import annotations

import functools
import math
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anna.errors import NotSerializable, ProtocolError, ValueTooLarge
from anna.lattices import OrderedSet
from anna.lattices.ordering import from_order_key, order_key
from tests.lattices.oracles import order_key as naive_order_key

numbers = st.one_of(
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.integers(-(2**1100), 2**1100),
    st.floats(allow_nan=False),
    st.floats(allow_nan=False, allow_infinity=False, width=16).map(lambda real: int(real)),
    st.integers(0, 1023).map(lambda exponent: 2**exponent),
    st.integers(0, 1023).map(lambda exponent: 2.0**exponent),
)
scalars = st.none() | numbers | st.text() | st.text(st.characters()) | st.binary() | st.text("\0a", max_size=4)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=6)


def kind(value: Any) -> int:
    order: tuple[Any, ...] = (type(None), (bool, int, float), str, bytes, tuple)
    return next(i for i, types in enumerate(order) if isinstance(value, types))


def compare(left: Any, right: Any) -> int:
    """The documented order, by Python's own exact comparisons."""
    if kind(left) != kind(right):
        return kind(left) - kind(right)
    if isinstance(left, tuple):
        differing = (found for found in map(compare, left, right) if found)
        return next(differing, len(left) - len(right))
    if left != right:
        return -1 if left < right else 1
    rank = (bool, int, float).index
    return rank(type(left)) - rank(type(right)) if kind(left) == 1 else 0


def normal(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(normal, value))
    return value + 0.0 if isinstance(value, float) else value


@settings(max_examples=400)
@given(values, values)
@example(2**53, float(2**53))
@example(2**53 + 1, float(2**53 + 2))
@example(-(2**53) - 1, -float(2**53))
@example(2**63 - 1, float(2**63))
@example(2**1023, float(2**1023))
@example(2**1024, math.inf)
@example(5e-324, 0)
@example(-5e-324, 0.0)
@example(1, True)
@example("a", "a\0")
@example("a\0", "a\0\0")
@example("a\0b", "a\x01")
@example(("a",), ("a\0",))
@example((1, 5), (1.0, 3))
@example(("a", b""), ("a",))
@example("\ud800", "\uffff")
@example("\uffff", "\U00010000")
def test_bytes_are_ordered_as_the_values_are(left: Any, right: Any) -> None:
    keys = order_key(left), order_key(right)
    assert (keys[0] > keys[1]) - (keys[0] < keys[1]) == (compare(left, right) > 0) - (compare(left, right) < 0)
    for value, key in zip((left, right), keys):
        decoded = from_order_key(key)
        assert repr(decoded) == repr(normal(value))
        assert key == naive_order_key(value)


@given(st.lists(values))
def test_an_ordered_set_is_a_sorted_list(items: list[Any]) -> None:
    expected = sorted({order_key(item): item for item in items}.values(), key=functools.cmp_to_key(compare))
    assert repr(OrderedSet(items).value) == repr([normal(item) for item in expected])


@pytest.mark.parametrize("value", [float("nan"), (1, float("nan")), np.float64("nan")])
def test_nan_has_no_place(value: Any) -> None:
    with pytest.raises(ValueError, match="NaN has no place"):
        order_key(value)


@pytest.mark.parametrize("value", [[1], {}, {1}, object(), 1j, np.arange(3), np.datetime64("2024-01-01")], ids=repr)
def test_what_has_no_place_is_refused_by_the_name_of_its_type(value: Any) -> None:
    with pytest.raises(NotSerializable, match=type(value).__qualname__):
        order_key(value)


class Level(IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(3), 3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (Level.LOW, 1),
    ],
)
def test_relatives_of_numbers_count_as_plain_numbers(value: Any, plain: Any) -> None:
    assert order_key(value) == order_key(plain)


def test_minus_zero_is_zero() -> None:
    assert order_key(-0.0) == order_key(0.0)


def test_numbers_and_nesting_have_limits() -> None:
    order_key(2**4095), order_key(-(2**4096) + 1)
    with pytest.raises(ValueTooLarge, match=r"4,097 bits; INT_BITS_MAX is 4,096"):
        order_key(2**4096)
    deep: Any = ()
    for _ in range(31):
        deep = (deep,)
    assert from_order_key(order_key(deep)) == deep
    with pytest.raises(ValueTooLarge, match="more than 32 deep"):
        order_key((deep,))
    with pytest.raises(ProtocolError, match="more than 32 deep"):
        from_order_key(b"\x30" * 100_000)


@given(st.binary(max_size=40) | values.map(order_key), st.data())
@example(b"\x13\x08\x00\x00\x02", None)
@example(b"\x13\x08\x01\x80\x02", None)
@example(b"\x13\x08\x00\x03\x00\x03", None)
@example(b"\x12\x04", None)
@example(b"\x20a", None)
@example(b"\x30\x08", None)
@example(b"\x20\xff\x00", None)
@example(b"", None)
def test_other_bytes_are_refused(key: bytes, data: st.DataObject | None) -> None:
    damaged = bytearray(key)
    if data is not None and damaged:
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for raw in (key, bytes(damaged), bytes(damaged[:-1])):
        try:
            value = from_order_key(raw)
        except ProtocolError:
            continue
        assert order_key(value) == raw
