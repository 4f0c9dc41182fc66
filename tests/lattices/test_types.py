"""What each type means to its user, beyond the laws: constructors, reads, limits, refusals, and what merging costs."""

from __future__ import annotations

import doctest
import importlib
import pickle
import pkgutil
import subprocess
import sys
import tracemalloc
from collections import namedtuple
from typing import Any

import pytest

import anna.lattices
from anna.config import CLOCK_ENTRIES_MAX, ELEMENT_BYTES_MAX, MAP_DEPTH_MAX, SIBLINGS_MAX
from anna.errors import LatticeTypeMismatch, NeedsPickle, NotSerializable, ProtocolError, ValueTooLarge
from anna.lattices import (
    LWW,
    REGISTRY,
    Bool,
    Causal,
    Counter,
    Dots,
    Lattice,
    Map,
    Max,
    Min,
    OrderedSet,
    ORSet,
    Priority,
    Set,
    VectorClock,
    register,
)

Point = namedtuple("Point", "x y")


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.iter_modules(anna.lattices.__path__)))
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(f"anna.lattices.{name}")
    names = {public: getattr(anna.lattices, public) for public in anna.lattices.__all__}
    runner = doctest.DocTestRunner(verbose=False)
    described = {module.__name__: module} | {
        member: found
        for member, found in vars(module).items()
        if isinstance(found, type) and found.__module__ == module.__name__
    }
    for member, found in described.items():
        runner.run(doctest.DocTestParser().get_doctest(found.__doc__ or "", dict(names), member, None, 0))
    assert runner.failures == 0
    if isinstance(vars(module).get("__doc__"), str) and any(
        kind.__module__ == module.__name__ for kind in REGISTRY.values()
    ):
        assert runner.tries > 0, "a lattice has an example"


def test_what_the_surface_promises_can_be_written() -> None:
    assert Set({"a"}).join(Set({"b"})).value == {"a", "b"}
    assert Counter(+3).value == 3
    assert Priority(17.2, ["a", "path"]).value == ["a", "path"]
    assert ORSet(add={"milk"}, remove={"eggs"}).value == {"milk"}
    assert OrderedSet([3, 1, 2], limit=2).value == [2, 3]
    assert Map({"k": Max(3)}).value == {"k": 3}
    assert Causal("v", after=Causal()).value == ("v",)
    assert (Max(3).value, Min(3).value, Bool(True).value, VectorClock({1: 2}).value) == (3, 3, True, {1: 2})


ABOVE_BOTTOM: list[Any] = [
    LWW.of("a"),
    Max(1),
    Min(1),
    Bool(True),
    Counter(1),
    Set(["a"]),
    ORSet(["a"]),
    OrderedSet(["a"]),
    Map({"a": Max(1)}),
    Priority(1, "a"),
    VectorClock({1: 1}),
    Causal("a"),
]


@pytest.mark.parametrize("high", ABOVE_BOTTOM, ids=lambda state: type(state).__name__)
def test_operators_follow_the_order(high: Any) -> None:
    kind = type(high)
    low = kind.bottom()
    assert low < high
    assert high > low
    assert low <= high
    assert high >= low
    assert not high <= low
    assert low | high == high
    assert low != high
    assert len({low, high, kind.decode(high.encode())}) == 2
    assert pickle.loads(pickle.dumps(high)) == high
    with pytest.raises(TypeError):
        low < 3  # noqa: B015
    assert low != 3


def test_existence_is_explicit_so_none_and_empty_are_values() -> None:
    assert LWW.of(None) != LWW.bottom()
    assert LWW.of(b"").value == b""
    assert Map({"k": Set()}).value == {"k": set()}
    assert Map({"k": Set()}) != Map()
    assert Causal(None).value == (None,)
    assert Priority(1, None).value is None


# Elements.


def test_elements_must_be_hashable_and_have_a_canonical_encoding() -> None:
    for make in (lambda x: Set([x]), lambda x: ORSet([x]), Set().add, lambda x: Map({x: Max(1)})):
        with pytest.raises(NotSerializable, match="Point has only a pickle"):
            make(Point(1, 2))
    with pytest.raises(TypeError, match="unhashable"):
        Set().add([1])
    for kind in (Set, ORSet, OrderedSet):
        with pytest.raises(TypeError, match="expected several elements, got one str"):
            kind("abc")


def test_equal_numbers_of_different_types_are_different_elements() -> None:
    assert len(Set([1]).join(Set([1.0])).join(Set([True]))) == 3
    assert 1 in Set([1])
    assert 1.0 not in Set([1])


def test_elements_have_a_length_limit() -> None:
    fits, too_long = "x" * (ELEMENT_BYTES_MAX - 1), "x" * ELEMENT_BYTES_MAX
    assert Set.decode(Set([fits]).encode()).value == {fits}
    for make in (
        lambda: Set([too_long]),
        lambda: ORSet([too_long]),
        lambda: Max(too_long),
        lambda: OrderedSet([too_long]),
    ):
        with pytest.raises(ValueTooLarge, match="element_bytes_max is 1,048,576"):
            make()


def test_pickles_in_values_are_loaded_only_when_allowed() -> None:
    for state in (LWW.of(Point(1, 2)), Priority(1, Point(1, 2)), Causal(Point(1, 2)), Map({"k": LWW.of(Point(1, 2))})):
        with pytest.raises(NeedsPickle):
            state.read(False)
        assert "Point" in repr(state.read(True)) or state.read(True) == Point(1, 2)


# Counter.


def test_a_worker_adds_requests_to_its_own_row() -> None:
    held = Counter()
    for stamp, amount in enumerate((+3, -1, +10), start=1):
        held.merge(Counter(amount).assign(held, stamp, writer=7))
    assert held.value == 12
    assert held.size_bytes == 32, "one row, however many increments"
    assert held.encode() == b"".join(number.to_bytes(8, "little") for number in (7, 1, 13, 1))


def test_a_counter_loses_nothing_when_a_stale_copy_comes_back() -> None:
    held = Counter()
    held.merge(Counter(1).assign(held, 10, writer=7))
    stale = held.encode()
    held.merge(Counter(100).assign(held, 20, writer=7))
    elsewhere = Counter.decode(held.encode())
    back = Counter.decode(stale)
    back.merge(Counter(5).assign(back, 30, writer=7))
    assert elsewhere.join(back).value == 106


def test_counters_count_whole_numbers_up_to_their_limit() -> None:
    with pytest.raises(TypeError, match="whole numbers, got a float"):
        Counter(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueTooLarge, match=r"below 2\*\*64"):
        Counter(2**64)
    full = Counter(2**64 - 1, writer=1)
    assert full.value == 2**64 - 1
    with pytest.raises(ValueTooLarge, match="18,446,744,073,709,551,615 and 1 are to be added"):
        full.increment(1, writer=1)
    assert full.join(Counter(2**64 - 1, writer=2)).value == 2**65 - 2
    with pytest.raises(ValueError, match="no incarnation"):
        Counter(1, incarnation=3)


def test_clocks_and_counters_have_an_entry_limit_on_the_wire() -> None:
    clock = VectorClock(dict.fromkeys(range(CLOCK_ENTRIES_MAX), 1))
    assert VectorClock.decode(clock.encode()) == clock
    with pytest.raises(ProtocolError, match="up to 65,536 entries of 16 bytes"):
        VectorClock.decode(clock.join(VectorClock({2**40: 1})).encode())


# OrderedSet.


def test_the_lesser_limit_wins_and_no_limit_is_the_bottom() -> None:
    wide, narrow = OrderedSet([1, 2, 3, 4], limit=3), OrderedSet([0], limit=2)
    assert wide.value == [2, 3, 4]
    assert wide.join(narrow).value == [3, 4]
    assert wide.join(narrow).limit == 2
    assert wide.join(OrderedSet([9])).value == [3, 4, 9]
    assert wide < wide.join(narrow), "fewer elements, but the greater state"


@pytest.mark.parametrize("limit", [0, -1, 2**31])
def test_limits_have_limits(limit: int) -> None:
    with pytest.raises(ValueError, match="1 to 2,147,483,647"):
        OrderedSet(limit=limit)


@pytest.mark.parametrize("size", [10, 5000])
def test_ranges_are_slices_of_the_sorted_values(size: int) -> None:
    held = OrderedSet(range(0, 2 * size, 2))
    everything = list(range(0, 2 * size, 2))
    assert held.value == list(held) == held.range() == everything
    assert held.range(3, 9) == [4, 6, 8]
    assert held.range(4, 8) == [4, 6]
    assert held.range(low=2 * size) == []
    assert held.range(9, 3) == []
    assert held.range(count=0) == []
    assert held.range(count=2) == everything[:2]
    assert held.range(reverse=True, count=3) == everything[::-1][:3]
    assert held.range(3, 9, count=2, reverse=True) == [8, 6]
    assert 4 in held
    assert 5 not in held
    assert held.range("text") == [], "all numbers are below all texts"


def test_an_ordered_set_changes_its_form_without_changing_itself() -> None:
    grown = OrderedSet()
    for value in range(6000):
        grown.merge(OrderedSet([value * 7 % 6000]))
    assert grown == OrderedSet(range(6000))
    assert grown.size_bytes == len(grown.encode())
    grown.merge(OrderedSet(limit=5))
    assert grown.value == [5995, 5996, 5997, 5998, 5999]
    assert grown.size_bytes == len(grown.encode())


# ORSet.


def accept(state: ORSet, request: ORSet, stamp: int, writer: int) -> ORSet:
    return state.join(request.assign(state, stamp, writer))


def test_an_add_wins_over_a_concurrent_removal() -> None:
    base = accept(ORSet(), ORSet({"milk"}), 1, 1)
    removed = accept(base, ORSet(remove={"milk"}), 2, 1)
    added = accept(base, ORSet(add={"milk"}), 2, 2)
    assert removed.value == set()
    assert removed.join(added).value == {"milk"}


def test_a_removal_removes_what_was_seen_and_stays_removed() -> None:
    base = accept(ORSet(), ORSet({"milk", "eggs"}), 1, 1)
    gone = base.join(base.remove("milk"))
    assert gone.value == {"eggs"}
    assert gone.join(base).value == {"eggs"}, "an old copy does not bring it back"
    assert accept(gone, ORSet({"milk"}), 5, 3).value == {"milk", "eggs"}


def test_a_request_that_removes_and_adds_ends_with_the_addition() -> None:
    base = accept(ORSet(), ORSet({"x"}), 1, 1)
    assert accept(base, ORSet(add={"x"}, remove={"x"}), 2, 1).value == {"x"}


def test_removing_the_unknown_changes_nothing() -> None:
    base = accept(ORSet(), ORSet({"x"}), 1, 1)
    assert base.remove("y") == ORSet.bottom()
    assert accept(base, ORSet(remove={"y"}), 2, 1) == base


def test_the_context_stays_one_interval_while_elements_come_and_go() -> None:
    held = ORSet()
    for stamp in range(1, 201):
        held.merge(ORSet(add={f"e{stamp % 5}"}, remove={f"e{(stamp + 2) % 5}"}).assign(held, stamp, writer=1))
    assert held.dots.intervals == ((1, 1, 200),)
    assert held.size_bytes < 200


# Causal.


def test_concurrent_writes_through_one_worker_are_both_kept() -> None:
    held = Causal()
    held.merge(Causal("x").assign(held, 1, writer=1))
    held.merge(Causal("y").assign(held, 2, writer=1))
    assert sorted(held.value) == ["x", "y"]
    held.merge(held.set("both read").assign(held, 3, writer=1))
    assert held.value == ("both read",)


def test_a_write_supersedes_only_what_its_author_read() -> None:
    held = Causal()
    held.merge(Causal("x").assign(held, 1, writer=1))
    second = Causal("y").assign(held, 2, writer=1)
    only_second = Causal().join(second)
    held.merge(second)
    held.merge(Causal("z", after=only_second).assign(held, 3, writer=1))
    assert sorted(held.value) == ["x", "z"], "a vector clock would have lost x"


def test_versions_carry_their_clock_and_dependencies() -> None:
    parent = Causal("question").assign(None, 1, writer=1)
    reply = Causal("answer", dependencies={"post:1": parent}).assign(None, 1, writer=2)
    (version,) = Causal.decode(reply.encode()).siblings
    assert version.value == "answer"
    assert version.dependencies == {b"post:1": parent.clock}
    assert version.clock == Dots([(2, 1)])


def test_siblings_have_a_limit_at_the_worker_that_accepts_one_more() -> None:
    held = Causal()
    for stamp in range(1, SIBLINGS_MAX + 1):
        held.merge(Causal(stamp).assign(held, stamp, writer=1))
    assert len(held) == SIBLINGS_MAX
    with pytest.raises(ValueTooLarge, match="1,025 concurrent versions; siblings_max is 1,024"):
        Causal("one more").assign(held, 5000, writer=1)
    held.merge(held.set("resolved").assign(held, 5000, writer=1))
    assert held.value == ("resolved",)


# Map.


def test_maps_nest_and_assign_what_is_nested() -> None:
    held = Map()
    for stamp in (1, 2):
        request = Map({"visits": Counter(+1), "carts": Map({"ann": ORSet({"milk"})}), "last": LWW(stamp)})
        held.merge(request.assign(held, stamp, writer=9))
    assert held.value == {"visits": 2, "carts": {"ann": {"milk"}}, "last": 2}
    assert held.size_bytes == len(held.encode())


def test_a_key_of_a_map_keeps_its_type() -> None:
    held = Map({"k": Max(3)})
    with pytest.raises(LatticeTypeMismatch, match="'k' holds a Max, got a Set"):
        Map({"k": Set()}).assign(held, 1, 1)


def test_two_first_writes_of_different_types_still_converge() -> None:
    left, right = Map({"k": Set({"a"})}), Map({"k": Max(3)})
    assert left.join(right) == right.join(left)
    assert left.join(right).value == {"k": 3}
    assert len(left.join(right)) == 1
    left.join(right).assign(left.join(right), 1, 1)


def test_what_a_map_gives_out_is_a_copy() -> None:
    held = Map({"k": Set({"a"})})
    held["k"].merge(Set({"b"}))
    assert held.value == {"k": {"a"}}
    given = Set({"a"})
    held = Map({"k": given})
    given.merge(Set({"b"}))
    assert held.value == {"k": {"a"}}


def test_maps_hold_registered_lattices_up_to_a_depth() -> None:
    with pytest.raises(TypeError, match="'k' of a Map needs a registered lattice, got a int"):
        Map({"k": 3})  # type: ignore[dict-item]
    deep = Map()
    for _ in range(MAP_DEPTH_MAX - 1):
        deep = Map({"k": deep})
    assert Map.decode(deep.encode()) == deep
    with pytest.raises(ValueTooLarge, match="nests 17 deep; map_depth_max is 16"):
        Map({"k": deep})
    encoded = deep.encode()
    for _ in range(2000):
        encoded = b"\x01\x00\x09" + _varint(len(encoded)) + encoded
    with pytest.raises(ProtocolError, match="more than 16 deep"):
        Map.decode(encoded)


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)


# The registry.


def test_a_users_type_is_registered_by_its_number() -> None:
    class Longest(Lattice):
        NUMBER = 200

    try:
        assert register(Longest) is Longest
        assert REGISTRY[200] is Longest
        assert register(Longest) is Longest, "again, as when a module is reloaded"
        other = type("Other", (Lattice,), {"NUMBER": 200})
        with pytest.raises(ValueError, match=r"number 200 is taken by .*Longest"):
            register(other)
    finally:
        REGISTRY.pop(200, None)


@pytest.mark.parametrize("number", [0, 12, 127, 256])
def test_numbers_below_128_are_not_for_users(number: int) -> None:
    with pytest.raises(ValueError, match=f"is {number}; users' types have 128 to 255"):
        register(type("Mine", (Lattice,), {"NUMBER": number}))
    with pytest.raises(TypeError, match="not a subclass"):
        register(int)  # type: ignore[type-var]


def test_laws_say_what_is_missing_without_hypothesis() -> None:
    program = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from anna.lattices import laws\n"
        "try: laws.check(None)\n"
        "except ImportError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install hypothesis" in result.stdout


# Cost, seed and memory.


@pytest.mark.parametrize(
    ("big", "small"),
    [
        (lambda: Set(range(50_000)), lambda: Set([-1])),
        (lambda: OrderedSet(range(50_000)), lambda: OrderedSet([-1])),
        (lambda: ORSet(range(50_000)).assign(None, 1, 1), lambda: ORSet([-1]).assign(None, 1, 2)),
        (lambda: Map({i: Max(i) for i in range(50_000)}), lambda: Map({-1: Max(1)})),
    ],
    ids=["Set", "OrderedSet", "ORSet", "Map"],
)
def test_merging_a_small_delta_into_a_large_state_copies_nothing(big: Any, small: Any) -> None:
    state = big()
    state.merge(small())  # what is made at first need is made now
    delta = type(state).decode(small().encode())
    tracemalloc.start()
    try:
        state.merge(delta)
        state.size_bytes  # noqa: B018
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000, f"{peak:,} bytes were allocated to merge {delta.size_bytes} bytes into {state.size_bytes:,}"


def test_encodings_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "from anna.lattices import *\n"
        "names = {f'name {i}' for i in range(50)}\n"
        "states = [Set(names), ORSet(names, {'x', 'y'}), ORSet(names).assign(None, 5, 1), OrderedSet(names),\n"
        "          Map({name: Set(names) for name in names})]\n"
        "print([state.encode().hex() for state in states])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1
