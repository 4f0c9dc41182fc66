"""The store and its table of keys, against a dict."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anna import LWW, LatticeTypeMismatch, Max, Set
from anna.kvs.store import Store

keys = st.binary(min_size=1, max_size=2)
steps = st.lists(st.tuples(st.sampled_from(["write", "write", "remove"]), keys, st.integers(0, 99)), max_size=300)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_any_history_equals_a_dict(history: list[tuple[str, bytes, int]]) -> None:
    store, twin = Store(), {}
    for step, key, number in history:
        if step == "write":
            store.write(key, Max(number))
            twin[key] = max(twin.get(key, number), number)
        else:
            assert store.remove(key) == (twin.pop(key, None) is not None)
        assert len(store) == len(twin)
    store.check()
    assert {key: state.value for key, state in store.states.items()} == twin
    assert all(key in store.states and store.read(key).value == twin[key] for key in twin)


def test_emptying_a_full_table_in_any_order_loses_no_key() -> None:
    """Runs of slots close up behind a removed key: a look-up must not end at the hole."""
    names = [b"%d" % n for n in range(2000)]
    for stride in (1, 7, 1999):
        store = Store()
        for name in names:
            store.write(name, Max(1))
        for count in range(len(names)):
            assert store.remove(names[count * stride % len(names)])
            if count % 100 == 0:
                store.check()
        assert (len(store), store.size_bytes) == (0, 0)


def test_a_key_keeps_its_type_until_it_is_removed() -> None:
    store = Store()
    store.write(b"k", Max(1))
    with pytest.raises(LatticeTypeMismatch, match="'k' holds a Max, got a Set"):
        store.write(b"k", Set({1}))
    assert store.read(b"k") == Max(1)
    store.remove(b"k")
    store.write(b"k", Set({1}))
    store.check()


def test_what_is_written_is_not_shared_with_its_writer() -> None:
    store, written = Store(), Set({1})
    store.write(b"k", written)
    store.write(b"k", Set({2}))
    assert written == Set({1})
    assert store.read(b"k") == Set({1, 2})


def test_bytes_are_accounted_for_keys_and_states() -> None:
    """D06: the sizes of sets were counted in elements."""
    store = Store()
    store.write(b"key", LWW("x" * 100, stamp=1, writer=1))
    first = store.size_bytes
    assert first >= 3 + 100 + 16
    store.write(b"set", Set({"y" * 1000}))
    assert store.size_bytes >= first + 3 + 1000
    store.write(b"key", LWW("z", stamp=2, writer=1))
    store.remove(b"set")
    assert store.size_bytes == first - 99
    store.check()


def test_an_expiry_that_arrives_late_ends_no_later_write() -> None:
    """Neither of a register, nor of a set whose later write is folded by the time that the earlier one ends."""
    store = Store()
    store.write(b"r", LWW("later", 30, 1))
    store.expire_at(b"r", 1000, 20)
    store.write(b"s", Set(["later"]))
    store.keep_piece(b"s", 0, 30, Set(["later"]))
    store.expire_at(b"s", 1000, 20)
    store.fold(1, 1)
    assert (store.expired(b"r", 2000), store.expired(b"s", 2000)) == (False, False)
    assert store.over(2000, 10) == []
    assert store.read(b"s") is not None
    store.check()


def test_an_expiry_ends_what_was_written_up_to_it() -> None:
    store = Store()
    store.write(b"s", Set(["earlier"]))
    store.keep_piece(b"s", 0, 10, Set(["earlier"]))
    store.expire_at(b"s", 1000, 20)
    assert store.over(999, 10) == []
    assert store.over(2000, 10) == [b"s"]
    assert store.end_life(b"s") == 20
    assert store.over(2000, 10) == []
    assert store.read(b"s") is None
    store.check()


def test_of_ends_and_lives_the_latest_counts_in_whatever_order_they_come() -> None:
    store = Store()
    store.write(b"s", Set(["earlier"]))
    store.expire_at(b"s", 1000, 20)
    store.live_on(b"s", 20)
    assert store.over(2000, 10) == [], "that time was taken away"
    store.expire_at(b"s", 1000, 20)
    assert store.over(2000, 10) == [], "and does not come back"
    store.expire_at(b"s", 1000, 30)
    assert store.end_life(b"s") == 30
    store.live_on(b"s", 20)
    assert store.ended == {b"s": 30}
    store.live_on(b"s", 30)
    assert (store.ended, store.survived) == ({}, {b"s": 30})
    store.check()
