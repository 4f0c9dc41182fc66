"""The merges that were published for these types are caught by the laws.

Each class here is the rule of the original C++ Anna, as its description has it; none is ours. If one of these tests
fails, the laws have become too weak to tell a lattice from what replicas diverge on.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import pytest
from hypothesis import strategies as st

from anna.lattices import Lattice, laws


class Published(Lattice):
    """A state of plain data, in `held`, whose merge is the published one."""

    BOTTOM: ClassVar[Any]

    def __init__(self, held: Any = None) -> None:
        self.held = self.BOTTOM if held is None else held

    def merged(self, old: Any, new: Any) -> Any:
        raise NotImplementedError

    def merge(self, other: Self) -> bool:
        before = self.held
        self.held = self.merged(self.held, other.held)
        return bool(self.held != before)

    def copy(self) -> Self:
        return type(self)(self.held)

    def precedes(self, other: Self) -> bool:
        return self.join(other) == other

    def equals(self, other: Self) -> bool:
        return bool(self.held == other.held)

    def encode(self) -> bytes:
        return repr(self.held).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        return cls(eval(data))

    @property
    def size_bytes(self) -> int:
        return len(self.encode())

    def read(self, allow_pickle: bool) -> Any:
        return self.held


class PublishedLWW(Published):
    """The incoming value wins if its time is not earlier: ties are decided by arrival."""

    BOTTOM = (0, "")

    def merged(self, old: Any, new: Any) -> Any:
        return new if new[0] >= old[0] else old


class PublishedPriority(Published):
    """The incoming value wins if its priority is lower: ties keep the first."""

    BOTTOM = (2147483647, "")

    def merged(self, old: Any, new: Any) -> Any:
        return new if new[0] < old[0] else old


class MendedLWW(Published):
    """The same as the first, with a total order: what these tests would say of a rule that is right."""

    BOTTOM = (0, "")

    def merged(self, old: Any, new: Any) -> Any:
        return max(old, new)


class PublishedMax(Published):
    """The current value is copied into an int before it is compared, so a fraction is lost."""

    BOTTOM = 0.0

    def merged(self, old: Any, new: Any) -> Any:
        return new if int(old) < new else old


def merged_clock(old: dict[str, int], new: dict[str, int]) -> dict[str, int]:
    return {writer: max(old.get(writer, 0), new.get(writer, 0)) for writer in {*old, *new}}


class PublishedSingleKeyCausal(Published):
    """(clock, values): one clock for all siblings, compared with the merged one."""

    BOTTOM: ClassVar[Any] = ({}, frozenset())

    def merged(self, old: Any, new: Any) -> Any:
        clock = merged_clock(old[0], new[0])
        if clock == new[0]:
            return new
        return (clock, old[1] | new[1]) if clock != old[0] else old


class PublishedMultiKeyCausal(Published):
    """(clock, dependencies, values): the same rule; the dependencies follow the values, or are merged."""

    BOTTOM: ClassVar[Any] = ({}, {}, frozenset())

    def merged(self, old: Any, new: Any) -> Any:
        clock = merged_clock(old[0], new[0])
        if clock == new[0]:
            return new
        if clock == old[0]:
            return old
        keys = {*old[1], *new[1]}
        found = {key: merged_clock(old[1].get(key, {}), new[1].get(key, {})) for key in keys}
        return (clock, found, old[2] | new[2])


names = st.sampled_from("XYZ")
clocks = st.dictionaries(st.sampled_from("ab"), st.integers(0, 1))
written = names.map(lambda name: frozenset({name}))


@pytest.mark.parametrize(
    ("states", "law"),
    [
        (st.builds(PublishedLWW, st.tuples(st.integers(0, 2), names)), "a ⊔ b == b ⊔ a"),
        (st.builds(PublishedPriority, st.tuples(st.integers(0, 2), names)), "a ⊔ b == b ⊔ a"),
        (st.builds(PublishedPriority, st.just((2**31 + 5, "X"))), "⊥ ⊔ a == a"),
        (st.builds(PublishedMax, st.sampled_from([10.9, 10.5])), "a ⊔ b == b ⊔ a"),
        (st.builds(PublishedSingleKeyCausal, st.tuples(clocks, written)), "a ⊔ b"),
        (st.builds(PublishedMultiKeyCausal, st.tuples(clocks, st.just({}), written)), "a ⊔ b"),
    ],
    ids=["LWW", "Priority", "Priority beyond 2**31", "Max", "single-key causal", "multi-key causal"],
)
def test_the_laws_catch_the_published_merge(states: st.SearchStrategy[Any], law: str) -> None:
    """D01, D02, D04: what replicas differed by for ever would not pass here."""
    with pytest.raises(laws.LawBroken, match="breaks") as caught:
        laws.check(states)
    assert law in str(caught.value)


def test_the_laws_find_nothing_wrong_with_a_merge_that_is_right() -> None:
    laws.check(st.builds(MendedLWW, st.tuples(st.integers(0, 2), names)))


def test_one_clock_for_all_siblings_is_not_associative() -> None:
    x = PublishedSingleKeyCausal(({"a": 1}, frozenset("X")))
    y = PublishedSingleKeyCausal(({"b": 1}, frozenset("Y")))
    z = PublishedSingleKeyCausal(({"a": 1, "b": 1}, frozenset("Z")))
    with pytest.raises(laws.LawBroken, match=r"\(a ⊔ b\) ⊔ c == a ⊔ \(b ⊔ c\)"):
        laws.associative(z, x, y)
    assert z.join(x.join(y)).value[1] == {"X", "Y"}
    assert x.join(y).join(z).value[1] == {"Z"}


def test_equal_clocks_overwrite_by_arrival() -> None:
    states = st.builds(PublishedSingleKeyCausal, st.tuples(st.just({"a": 1}), written))
    with pytest.raises(laws.LawBroken, match="a ⊔ b == b ⊔ a"):
        laws.commutative(*(PublishedSingleKeyCausal(({"a": 1}, frozenset(name))) for name in "XYZ"))
    with pytest.raises(laws.LawBroken):
        laws.check(states)


def test_a_zero_entry_makes_a_clock_newer() -> None:
    plain = PublishedSingleKeyCausal(({"a": 1}, frozenset("X")))
    padded = PublishedSingleKeyCausal(({"a": 1, "b": 0}, frozenset("Y")))
    assert plain.join(padded).value[1] == {"Y"}
    assert padded.join(plain).value[1] == {"Y"}, "a clock that knows nothing more has won both ways"
