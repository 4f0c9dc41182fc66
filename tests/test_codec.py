"""The codec: values come back with their types, equal ones encode equally, no bytes can crash the reader."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import os
import subprocess
import sys
import threading
import uuid
from collections import OrderedDict, namedtuple
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anna.arrays import view_array
from anna.codec import decode_value, encode_element, encode_value, open_elsewhere_with
from anna.errors import NeedsPickle, NotSerializable, ProtocolError
from anna.messages import View
from anna.requester import Requester

PICKLE = 9
Point = namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = 1


def same(left: Any, right: Any) -> bool:
    """Equal, and of equal types all the way down; NaN is itself and -0.0 is not 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, set | frozenset):
        return sorted(map(encode_value, left)) == sorted(map(encode_value, right))
    if isinstance(left, float):
        if math.isnan(left) or math.isnan(right):
            return math.isnan(left) and math.isnan(right)
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    if isinstance(left, complex):
        return same((left.real, left.imag), (right.real, right.imag))
    if isinstance(left, datetime.datetime | datetime.time):
        return str(left) == str(right) and left.fold == right.fold and repr(left.tzinfo) == repr(right.tzinfo)
    return str(left) == str(right) if isinstance(left, decimal.Decimal) else left == right


text = st.text() | st.text(st.characters())
zones = st.none() | st.sampled_from([datetime.UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")])
offsets = st.one_of(
    st.timedeltas(datetime.timedelta(hours=-23), datetime.timedelta(hours=23)),
    st.timedeltas(datetime.timedelta(microseconds=-999_999), datetime.timedelta(microseconds=999_999)),
).map(datetime.timezone)
hashable_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.complex_numbers(),
    text,
    st.binary(),
    st.datetimes(timezones=zones | offsets, allow_imaginary=True),
    st.dates(),
    st.times(timezones=zones | offsets),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
)


@st.composite
def hashables(draw: st.DrawFn, depth: int = 2) -> Any:
    inner = hashables(depth - 1) if depth else st.none()
    containers = st.lists(inner, max_size=4)
    return draw(hashable_scalars | containers.map(tuple) | containers.map(frozenset))


@st.composite
def values(draw: st.DrawFn, depth: int = 3) -> Any:
    inner = values(depth - 1) if depth else st.none()
    keys = hashables(1)
    return draw(
        st.one_of(
            hashables(),
            st.binary().map(bytearray),
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(keys, inner, max_size=4),
            st.sets(keys, max_size=4),
        )
    )


@given(values())
@example("")
@example(b"")
@example("\ud800 lone")
@example("žluťoučký 🐎")
@example([])
@example({})
@example(())
@example(set())
@example(-(2**63))
@example(2**63)
@example(2**64)
@example(-(2**63) - 1)
@example(10**400)
@example(5e-324)
@example(datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")))
@example(datetime.datetime(2024, 10, 27, 2, 30, fold=0, tzinfo=ZoneInfo("Europe/Berlin")))
@example(decimal.Decimal("-0E-7"))
@example(decimal.Decimal("sNaN12"))
@example([["a" * 31, "a" * 32, "a" * 255, "a" * 256, "a" * 65535, "a" * 65536], list(range(70000))])
@example({i: {i: (i, [i])} for i in range(20)})
def test_what_goes_in_comes_out_with_its_type_and_without_pickle(value: Any) -> None:
    encoded = encode_value(value)
    assert encoded[0] != PICKLE
    assert same(decode_value(encoded, allow_pickle=False), value)
    assert encode_value(decode_value(encoded)) == encoded


@given(hashables())
def test_an_element_is_encoded_as_the_value_is(value: Any) -> None:
    assert encode_element(value) == encode_value(value)


def test_values_that_python_calls_equal_are_told_apart_by_type_and_sign() -> None:
    encoded = {encode_value(value) for value in (1, 1.0, True, np.int64(1), decimal.Decimal(1), 0.0, -0.0)}
    assert len(encoded) == 7


def test_sets_encode_equally_whatever_order_they_were_built_in() -> None:
    names = [f"name {i}" for i in range(1000)]
    assert encode_value(frozenset(names)) == encode_value(frozenset(reversed(names)))
    assert encode_value((frozenset([(1, "a"), (2, "b")]),)) == encode_value((frozenset([(2, "b"), (1, "a")]),))


def test_encodings_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "from anna.codec import encode_value\nprint(encode_value({'a', 'b', ('c', 1), frozenset({b'd', 'e'})}).hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def plain(float_bits: Any) -> st.SearchStrategy[Any]:
    floats = st.floats(width=float_bits, allow_nan=False)
    return st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | floats | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-9, 9), inner),
    )


@given(plain(64).filter(lambda value: isinstance(value, list | dict)))
def test_plain_containers_are_the_bytes_that_msgpack_writes(value: Any) -> None:
    assert encode_value(value) == b"\x07" + msgpack.packb(value)


@given(plain(32), st.booleans())
def test_what_msgpack_writes_can_be_read(value: Any, single: bool) -> None:
    packed = msgpack.packb(value, use_single_float=single)
    assert same(decode_value(b"\x07" + packed), msgpack.unpackb(packed, strict_map_key=False))


ARRAYS = [
    np.arange(12.0).reshape(3, 4),
    np.arange(12, dtype=">i2").reshape(3, 4).T,
    np.arange(100, dtype=np.uint8)[::7],
    np.zeros((0, 3), np.float32),
    np.array(5),
    np.array(["a", "žluť", ""]),
    np.array([b"x", b"yz"]),
    np.array(["2024-01-01", "NaT"], "M8[ns]"),
    np.array([1, 2], "m8[us]"),
    np.array([1 + 2j, 3]),
    np.array([True, False]),
    np.array([(1, 2.5, "ab")], dtype=[("a", "<i4"), ("b", "<f8"), ("c", "<U3")]),
    np.array([(1, (2.5, 3))], np.dtype([("a", "u1"), ("b", [("c", "<f8"), ("d", "<i8", (2,))])], align=True)),
    np.zeros((1,) * 64),
]


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    return ARRAYS[draw(st.integers(0, len(ARRAYS) - 1))]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}"[:40])
@pytest.mark.parametrize("nested", [False, True])
def test_arrays_need_no_pickle_and_keep_dtype_and_shape(array: Any, nested: bool) -> None:
    encoded = encode_value([array] if nested else array)
    decoded = decode_value(encoded, allow_pickle=False)
    decoded = decoded[0] if nested else decoded
    assert type(decoded) is np.ndarray
    assert (decoded.dtype, decoded.shape, decoded.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert decoded.flags.writeable
    assert decoded.flags.c_contiguous


@dataclasses.dataclass
class Frame:
    """Only pickle can carry it."""

    columns: list[Any]
    name: str


def frame_of(*sizes: int) -> Frame:
    return Frame([np.arange(size, dtype=np.int16) for size in sizes], "frame")


def test_large_arrays_of_what_is_pickled_lie_beside_the_pickle_and_can_be_changed() -> None:
    frame = frame_of(3, 100_000, 8_192, 8_191)
    encoded = encode_value(frame)
    assert encoded[:64] == b"\x09" + bytes(63)
    for column in frame.columns[1:3]:
        assert encoded.index(column.tobytes()) % 64 == 0
    decoded = decode_value(encoded)
    assert (type(decoded), decoded.name) == (Frame, "frame")
    for column, own in zip(decoded.columns, frame.columns, strict=True):
        np.testing.assert_array_equal(column, own)
        column[0] = 7
    np.testing.assert_array_equal(decode_value(encoded).columns[1], frame.columns[1])
    with pytest.raises(NeedsPickle):
        decode_value(encoded, allow_pickle=False)
    assert encode_value(frame_of(3))[:2] == b"\x09\x80"


@given(st.data())
def test_pickle_with_buffers_that_is_damaged_is_refused_or_another_value(data: st.DataObject) -> None:
    encoded = bytearray(encode_value(frame_of(9_000, 10)))
    at = data.draw(st.integers(64, 200))
    encoded[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(1, len(encoded)))
    try:
        decode_value(bytes(encoded[:cut]))
    except (ProtocolError, NotSerializable):
        pass


@pytest.mark.parametrize(
    "scalar",
    [
        np.float64(2.5),
        np.int8(-1),
        np.bool_(True),
        np.str_("é"),
        np.bytes_(b"x"),
        np.datetime64("2024-01-01"),
        np.complex64(1j),
    ],
    ids=repr,
)
def test_numpy_scalars_keep_their_type(scalar: Any) -> None:
    decoded = decode_value(encode_element(scalar), allow_pickle=False)
    assert type(decoded) is type(scalar)
    assert decoded == scalar
    assert decoded.dtype == scalar.dtype


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}, None], object),
        np.ma.array([1, 2], mask=[False, True]),
        np.array(["x"], np.dtypes.StringDType()),
        np.str_(""),
        np.longdouble(1),
    ],
    ids=lambda value: type(value).__name__ + str(value.dtype),
)
def test_arrays_without_a_plain_layout_are_pickled(value: Any) -> None:
    encoded = encode_value(value)
    assert encoded[0] == PICKLE
    assert repr(decode_value(encoded)) == repr(value)


def cyclic() -> list[Any]:
    items: list[Any] = [1]
    items.append(items)
    return items


@pytest.mark.parametrize(
    "value",
    [Colour.RED, Point(1, 2), OrderedDict(a=1), range(3), {"deep": [Point(1, 2)]}, (1, Colour.RED), int],
    ids=repr,
)
def test_anything_else_is_a_pickle_and_says_so_in_its_first_byte(value: Any) -> None:
    encoded = encode_value(value)
    assert encoded[0] == PICKLE
    decoded = decode_value(encoded)
    assert type(decoded) is type(value)
    assert decoded == value
    with pytest.raises(NeedsPickle, match="bytes"):
        decode_value(encoded, allow_pickle=False)


def test_functions_and_cycles_and_deep_nesting_are_pickled() -> None:
    assert decode_value(encode_value(lambda x: x + 1))(2) == 3
    items = decode_value(encode_value(cyclic()))
    assert items[1] is items
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    assert encode_value(deep)[0] == PICKLE
    assert decode_value(encode_value(deep)) == deep


def test_what_even_pickle_cannot_carry_is_refused_by_the_name_of_its_type() -> None:
    with pytest.raises(NotSerializable, match=r"type _thread\.lock"):
        encode_value(threading.Lock())
    with pytest.raises(NotSerializable, match="dict"):
        encode_value({"lock": threading.Lock()})


def test_elements_are_hashable_and_canonical() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        encode_element(([],))
    with pytest.raises(NotSerializable, match="Point has only a pickle"):
        encode_element(Point(1, 2))


def test_a_pickle_whose_module_is_missing_here_says_which() -> None:
    with pytest.raises(NotSerializable, match="no_such_module"):
        decode_value(b"\x09cno_such_module\nthing\n.")
    with pytest.raises(ProtocolError, match="pickle"):
        decode_value(b"\x09")


def reads_or_refuses(data: bytes) -> None:
    try:
        value = decode_value(data, allow_pickle=False)
    except (ProtocolError, NeedsPickle):
        return
    encoded = encode_value(value)
    assert encode_value(decode_value(encoded, allow_pickle=False)) == encoded


@given(st.integers(0, 255), st.binary(max_size=64))
@example(7, b"\x91" * 1000)
@example(7, b"\xc7\x01\x01" * 1000)
@example(7, b"\xdd\xff\xff\xff\xff")
@example(7, b"\xdf\xff\xff\xff\xff\x01")
@example(7, b"\xc6\xff\xff\xff\xff")
@example(7, b"\x81\x90\x01")
@example(7, b"\xd4\x02\x91")
@example(7, b"\xc1")
@example(7, b"\xd4\x63\x00")
@example(8, b"\x02\0\3\0" + b"\xff" * 16 + b"<f8")
@example(8, b"\x01\0\2\0" + bytes(8) + b"|O")
def test_random_bytes_are_a_value_or_a_protocol_error(tag: int, body: bytes) -> None:
    reads_or_refuses(bytes([tag]) + body)


@given(values() | arrays(), st.data())
def test_damaged_encodings_are_a_value_or_a_protocol_error(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(encode_value(value))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    reads_or_refuses(bytes(encoded))
    reads_or_refuses(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))


def test_a_value_has_at_least_a_tag() -> None:
    with pytest.raises(ProtocolError, match="got 0 bytes"):
        decode_value(b"")


def test_importing_the_codec_imports_no_serializer() -> None:
    names = ["cloudpickle", "numpy", "pickle", "decimal", "uuid", "zoneinfo"]
    program = f"import sys, anna.codec; print([name for name in {names} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_uuid_and_decimal_have_their_documented_bytes() -> None:
    assert encode_value(uuid.UUID(int=1)) == b"\x07\xd8\x0c" + bytes(15) + b"\x01"
    assert encode_value(decimal.Decimal("1.50")) == b"\x07\xd6\x0b1.50"
    assert encode_value((1, 2)) == b"\x07\xc7\x03\x01\x92\x01\x02"
    assert encode_value(2**64) == b"\x07\xc7\x09\x04\x01" + bytes(8)


class _Drawer:
    """Where a test puts values that lie elsewhere."""

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded

    def value(self, where: bytes, allow_pickle: bool) -> object:
        assert (where, allow_pickle) == (b"drawer", True)
        return "opened"

    def encoded(self, where: bytes) -> bytes:
        assert where == b"drawer"
        return self._encoded


def test_value_elsewhere_is_for_whoever_was_told_how_to_open_it() -> None:
    register, requester = 1, Requester(View(0, ()))
    state = bytes(16) + b"\x0adrawer"
    before = open_elsewhere_with(None)
    try:
        with pytest.raises(ProtocolError, match="0x0a is no value tag"):
            decode_value(b"\x0adrawer")
        open_elsewhere_with(_Drawer(encode_value("whole")))
        assert decode_value(b"\x0adrawer") == "opened"
        assert requester.decode(register, state) == "opened"
        assert requester.decode_lattice(register, state).encode() == bytes(16) + encode_value("whole")
    finally:
        open_elsewhere_with(before)


def test_array_can_be_read_in_place() -> None:
    for array in (np.arange(1000).reshape(10, 100), np.zeros(5, [("a", "<i4")]), np.zeros((0, 3)), np.float32(2.5)):
        data = encode_value(array)
        found = view_array(memoryview(data)[1:])
        np.testing.assert_array_equal(found, array)
        if found.size > 1:
            assert np.shares_memory(found, np.frombuffer(data, np.uint8))
            assert not found.flags.writeable


def test_names_of_fields_of_one_array_are_not_anothers() -> None:
    data = encode_value(np.zeros(3, [("a", "<i4")]))
    decode_value(data).dtype.names = ("changed",)
    assert decode_value(data).dtype.names == ("a",)
