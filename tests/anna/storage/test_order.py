"""Keys in order, against `sorted`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna.storage.order import in_order


@given(st.lists(st.one_of(st.binary(max_size=20), st.binary(max_size=3).map(lambda end: b"prefix 8" + end))))
def test_keys_are_in_the_order_of_their_bytes(keys: list[bytes]) -> None:
    before = keys[:]
    assert in_order(keys) == sorted(keys)
    assert keys == before


def test_keys_that_end_in_zeros_come_after_those_without() -> None:
    assert in_order([b"a\0\0", b"a\0", b"a", b""]) == [b"", b"a", b"a\0", b"a\0\0"]


def test_what_is_no_key_is_refused() -> None:
    with pytest.raises(TypeError):
        in_order([b"a", "b"])  # type: ignore[list-item]
