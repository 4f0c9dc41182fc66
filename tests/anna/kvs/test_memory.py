"""States that leave memory and come back: nobody who asks the store can tell, but for the time that it takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anna import LWW, Causal, Counter, LatticeTypeMismatch, Map, Max, ORSet, Priority, Set, VectorClock
from anna.config import COLD_STATE_BYTES_MIN
from anna.kvs.clock import Clock
from anna.kvs.store import Store
from anna.lattices import REGISTRY, Bool, Lattice, Min, OrderedSet
from tests.anna.kvs.shelf import Shelf, cell, cell_in

LONG = "x" * 200
LONG_STATES: list[Any] = [
    LWW(LONG, 7, 1),
    Set([LONG]),
    ORSet([LONG]).assign(ORSet(), 7, 1),
    OrderedSet([LONG]),
    Map({LONG: Max(1)}),
    Priority(1, LONG),
    Causal(LONG).assign(None, 7, 1),
    Counter(1).assign(None, 7, 1).join(Counter(2).assign(None, 8, 2)).join(Counter(3).assign(None, 9, 3)),
    VectorClock({writer: writer for writer in range(1, 20)}),
]
SHORT_STATES: list[Any] = [Max(1), Min(1), Bool(True)]


def cold_store(*states: Lattice, limit_bytes: int = 1) -> tuple[Store, Shelf]:
    """Return a store with a state each under k0, k1, …, all on the shelf, as many of them cold as may be."""
    store = Store()
    shelf = Shelf(store, limit_bytes)
    for number, state in enumerate(states):
        store.write(b"k%d" % number, state)
    shelf.checkpoint()
    shelf.memory.cool(1 << 20)
    return store, shelf


def test_every_lattice_type_is_tried_here() -> None:
    assert {type(state) for state in LONG_STATES + SHORT_STATES} == {kind for n, kind in REGISTRY.items() if n < 128}


@pytest.mark.parametrize("state", LONG_STATES, ids=lambda state: type(state).__name__)
def test_what_left_memory_is_read_back_equal(state: Any) -> None:
    store, shelf = cold_store(state)
    expected = state.encode()
    if len(expected) < COLD_STATE_BYTES_MIN:
        pytest.skip(f"{len(expected)} bytes stay in memory")
    assert (shelf.memory.cold_count, shelf.reads) == (1, 0)
    assert (store.size_bytes, store.kind_of(b"k0")) == (2 + len(expected), type(state))
    found = store.look(b"k0")
    assert found is not None
    assert (found.encode(), shelf.memory.cold_count) == (expected, 1)
    found = store.read(b"k0")
    assert found is not None
    assert (found.encode(), shelf.memory.cold_count) == (expected, 0)
    store.check()


@pytest.mark.parametrize("state", SHORT_STATES, ids=lambda state: type(state).__name__)
def test_a_state_that_is_shorter_than_what_would_stand_for_it_stays(state: Any) -> None:
    _, shelf = cold_store(state)
    assert shelf.memory.cold_count == 0


def test_a_state_leaves_only_when_the_disk_has_it_as_it_is() -> None:
    store, shelf = cold_store()
    store.write(b"k", Set([LONG]))
    shelf.memory.cool(1 << 20)
    assert shelf.memory.cold_count == 0, "it left before any checkpoint"
    shelf.gather()
    store.write(b"k", Set(["later"]))
    shelf.end()
    assert shelf.memory.cold_count == 0, "it left though the checkpoint has an older state"
    shelf.checkpoint()
    assert shelf.memory.cold_count == 1
    assert store.read(b"k") == Set([LONG, "later"])


def test_a_later_write_takes_a_cold_registers_place_without_the_disk_and_an_earlier_one_does_nothing() -> None:
    store, shelf = cold_store(LWW(LONG, 7, 1), LWW(LONG, 7, 1))
    store.join_register(b"k0", LWW("later", 8, 1))
    store.join_register(b"k1", LWW("earlier", 6, 9))
    assert (shelf.reads, shelf.memory.cold_count) == (0, 1)
    assert store.read(b"k0") == LWW("later", 8, 1)
    assert store.read(b"k1") == LWW(LONG, 7, 1)
    store.check()


def test_of_two_registers_with_one_stamp_the_greater_stays() -> None:
    store, _ = cold_store(LWW(LONG, 7, 1), LWW(LONG, 7, 1))
    store.join_register(b"k0", LWW(LONG + "z", 7, 1))
    store.join_register(b"k1", LWW("a", 7, 1))
    assert store.read(b"k0") == LWW(LONG + "z", 7, 1)
    assert store.read(b"k1") == LWW(LONG, 7, 1)
    store.check()


def test_a_cold_key_keeps_its_type() -> None:
    store, _ = cold_store(Set([LONG]), LWW(LONG, 7, 1))
    with pytest.raises(LatticeTypeMismatch, match="'k0' holds a Set, got a LWW"):
        store.join_register(b"k0", LWW("a", 8, 1))
    with pytest.raises(LatticeTypeMismatch, match="'k1' holds a LWW, got a Set"):
        store.write(b"k1", Set([1]))


def test_a_delete_asks_no_disk() -> None:
    store, shelf = cold_store(LWW(LONG, 7, 1), LWW(LONG, 7, 1), Set([LONG]))
    store.reset(b"k0", 6)
    store.reset(b"k1", 8)
    store.reset(b"k2", 8)
    assert shelf.reads == 0
    assert store.states.keys() == {b"k0"}
    store.check()


def test_what_is_in_use_stays_and_what_is_not_leaves() -> None:
    store, shelf = cold_store(*(LWW(LONG, 7, 1) for _ in range(60)), limit_bytes=20_000)
    store.read(b"k0")
    for number in range(1, 300):
        before = shelf.reads
        store.read(b"k0")
        assert shelf.reads == before, f"what is read all the time had left after {number} steps"
        store.read(b"k%d" % (number % 60))
    assert 0 < shelf.memory.cold_count < 60
    assert shelf.memory.resident_bytes <= 20_000


def test_more_than_memory_that_cannot_leave_yet_is_said_to_be_full() -> None:
    store, shelf = cold_store(limit_bytes=4_000)
    written = 0
    while not shelf.memory.is_full:
        store.write(b"k%d" % written, LWW(LONG, written + 1, 1))
        written += 1
    assert 4_000 // 600 < written < 4_000 // 200
    shelf.checkpoint()
    assert not shelf.memory.is_full


@pytest.mark.parametrize("how", ["damaged", "gone", "another"])
def test_a_state_that_is_not_what_left_is_lost_and_not_served(how: str) -> None:
    store, shelf = cold_store(Set([LONG]), Set(["y" * 200]))
    if how == "damaged":
        shelf.damage([b"k0"])
    elif how == "gone":
        del shelf.cells[b"k0"]
    else:
        shelf.cells[b"k0"] = cell(b"k0", Set.NUMBER, Set(["z" * 200]).encode())
    assert store.read(b"k0") is None
    assert (b"k0" in store.states, b"k0" in store.lost) == (False, True)
    assert store.read(b"k1") == Set(["y" * 200])
    store.check()


def test_a_lost_register_is_void_by_a_write_or_delete_that_is_not_older() -> None:
    store, shelf = cold_store(*(LWW(LONG, 7, 1) for _ in range(4)))
    shelf.damage([b"k0", b"k1", b"k2", b"k3"])
    assert [store.read(b"k%d" % n) for n in range(4)] == [None] * 4
    store.join_register(b"k0", LWW("old", 6, 1))
    store.join_register(b"k1", LWW("new", 7, 1))
    store.reset(b"k2", 6)
    store.reset(b"k3", 7)
    assert store.lost.keys() == {b"k0", b"k2"}
    store.join_register(b"k0", LWW("new", 8, 1))
    assert store.lost.keys() == {b"k2"}


def test_a_start_takes_up_the_keys_and_leaves_the_states() -> None:
    before, shelf = cold_store(LWW(LONG, 7, 1), Set([LONG]), Max(3), LWW(LONG, 9, 2))
    before.reset(b"k0", 3)
    before.reset(b"gone", 5)
    before.expire_at(b"k3", 1_000, 9)
    shelf.checkpoint()
    after = Store()
    again = Shelf(after, 1 << 20)
    again.cells = shelf.cells
    for key, cells in shelf.cells.items():
        assert after.restore(key, cells, Clock(0, 0))
    assert (again.reads, again.memory.cold_count, again.memory.unkept) == (0, 3, {})
    assert (after.size_bytes, after.resets, after.expiries) == (before.size_bytes, before.resets, before.expiries)
    assert {key: after.read(key) for key in after.states} == {key: before.read(key) for key in before.states}
    after.check()


def test_a_start_moves_the_clock_past_what_it_took_up() -> None:
    store, clock = Store(), Clock(0, 0)
    Shelf(store, 1 << 20)
    stamp = 5_000 << 10
    assert store.restore(b"k", cell(b"k", LWW.NUMBER, LWW(LONG, stamp, 1).encode()), clock)
    assert clock.now(0) > stamp


def test_a_key_of_several_cells_is_left_to_be_joined() -> None:
    store = Store()
    Shelf(store, 1 << 20)
    one = cell(b"k", Set.NUMBER, Set([LONG]).encode())
    assert not store.restore(b"k", one + one, Clock(0, 0))
    assert len(store) == 0


Step = tuple[str, bytes, int, int]
KEYS = st.integers(0, 5).map(lambda n: b"k%d" % n)
STEPS = st.one_of(
    st.tuples(st.just("register"), KEYS, st.integers(1, 30), st.integers(0, 200)),
    st.tuples(st.just("set"), KEYS, st.integers(0, 9), st.integers(0, 200)),
    st.tuples(st.just("reset"), KEYS, st.integers(1, 30), st.just(0)),
    st.tuples(st.just("expire"), KEYS, st.integers(1, 30), st.just(0)),
    st.tuples(st.just("remove"), KEYS, st.just(0), st.just(0)),
    st.tuples(st.just("read"), KEYS, st.just(0), st.just(0)),
    st.tuples(st.sampled_from(["gather", "end", "cool", "grow"]), KEYS, st.integers(0, 99), st.just(0)),
)


@settings(max_examples=600, deadline=None)
@given(st.lists(STEPS, max_size=60), st.sampled_from([1, 1_500, 1 << 20]))
def test_any_history_equals_a_store_that_has_all_in_memory(history: list[Step], limit: int) -> None:
    store, twin = Store(), Store()
    shelf = Shelf(store, limit)
    for step, key, number, size in history:
        for each in (store, twin):
            change(each, step, key, number, size)
        if step == "gather" and not shelf.under_way:
            shelf.gather()
        elif step == "end":
            shelf.end()
        elif step == "cool":
            shelf.memory.cool(number)
        store.check()
    assert (store.size_bytes, store.resets, store.expiries) == (twin.size_bytes, twin.resets, twin.expiries)
    assert {key: store.look(key) for key in store.states} == {key: twin.look(key) for key in twin.states}
    shelf.end()
    shelf.checkpoint()
    assert shelf.cells == {key: cell_in(twin, key) for key in twin.states.keys() | twin.resets.keys()}


def change(store: Store, step: str, key: bytes, number: int, size: int) -> None:
    """Do one step of a history that changes keys."""
    try:
        if step == "register" and number > store.reset_of(key):
            store.join_register(key, LWW("x" * size, number, 1))
        elif step == "set":
            store.write(key, Set([number, "x" * size]))
        elif step == "reset":
            store.reset(key, number)
        elif step == "expire" and key in store.states:
            store.expire_at(key, number, number)
        elif step == "remove":
            store.drop(key)
        elif step == "read":
            store.read(key)
        elif step == "grow":
            for each in range(50):
                store.write(b"more%d" % each, Max(number))
    except LatticeTypeMismatch:
        pass
