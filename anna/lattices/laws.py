"""The laws of a lattice, for checking a type of your own before you register it.

The one rule: a type that breaks a law loses or resurrects writes on some replica, in some order of messages, and no
test of a single process will show it. Each law here is one function of three states; `check` searches for states that
break one, with Hypothesis, and shows the smallest that it finds. Source: DESIGN §3; Shapiro et al. 2011.

    from hypothesis import strategies as st
    from anna.lattices import laws

    laws.check(st.builds(HyperLogLog.of, st.sets(st.integers())))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from anna.errors import RequestError
from anna.lattices.base import Lattice

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Law = Callable[[Any, Any, Any], None]


class LawBroken(AssertionError):
    """Some states break a law that every lattice keeps."""


def check(states: SearchStrategy[Any], *, examples: int = 100) -> None:
    """Raise LawBroken with the smallest states found that break a law: the first of `LAWS` that is broken.

    All states have to be of one type. Each law is tried on `examples` triples, the same on every run. Needs Hypothesis.
    """
    for law in LAWS:
        _search(law, states, examples)


def check_states(a: Lattice, b: Lattice, c: Lattice) -> None:
    """Raise LawBroken if these three states break a law."""
    for law in LAWS:
        law(a, b, c)


def associative(a: Lattice, b: Lattice, c: Lattice) -> None:
    """The order in which replicas meet does not matter."""
    _expect(a.join(b).join(c) == a.join(b.join(c)), "(a ⊔ b) ⊔ c == a ⊔ (b ⊔ c)", a, b, c)


def commutative(a: Lattice, b: Lattice, c: Lattice) -> None:
    """Nor does who sends and who receives, at ties too."""
    _expect(a.join(b) == b.join(a), "a ⊔ b == b ⊔ a", a, b)


def idempotent(a: Lattice, b: Lattice, c: Lattice) -> None:
    """A message that arrives twice counts once, also after others have been joined."""
    _expect(a.join(a) == a, "a ⊔ a == a", a)
    _expect(a.join(b).join(b) == a.join(b), "(a ⊔ b) ⊔ b == a ⊔ b", a, b)


def has_bottom(a: Lattice, b: Lattice, c: Lattice) -> None:
    """The bottom is below all, and joining it changes nothing."""
    bottom = type(a).bottom()
    _expect(bottom.join(a) == a and a.join(bottom) == a, "⊥ ⊔ a == a == a ⊔ ⊥", a)
    _expect(bottom <= a, "⊥ <= a", a)


def monotone(a: Lattice, b: Lattice, c: Lattice) -> None:
    """A state only grows."""
    joined = a.join(b)
    _expect(a <= joined and b <= joined, "a <= a ⊔ b and b <= a ⊔ b", a, b)


def ordered_by_join(a: Lattice, b: Lattice, c: Lattice) -> None:
    """`a <= b` says exactly that joining `a` into `b` changes nothing; so it is a partial order."""
    _expect((a <= b) == (a.join(b) == b), "a <= b  is  a ⊔ b == b", a, b)
    _expect((a == b) == (a <= b and b <= a), "a == b  is  a <= b and b <= a", a, b)


def merges_as_it_joins(a: Lattice, b: Lattice, c: Lattice) -> None:
    """`merge` is `join` in place, and says whether the state grew."""
    state = a.copy()
    grew = state.merge(b)
    _expect(state == a.join(b), "a.merge(b) leaves a ⊔ b", a, b)
    _expect(grew is (not b <= a), "a.merge(b) is True exactly when b <= a is not", a, b)
    _expect(state.merge(b) is False, "merging the same again is False", a, b)


def leaves_operands_alone(a: Lattice, b: Lattice, c: Lattice) -> None:
    """Neither operand of a join changes, nor does a state when its copy or its join grows."""
    before = a.encode(), b.encode()
    joined = a.join(b)
    joined.merge(c)
    a.copy().merge(c)
    _expect((a.encode(), b.encode()) == before, "a and b are as they were before a ⊔ b", a, b, c)


def round_trips(a: Lattice, b: Lattice, c: Lattice) -> None:
    """Encoding loses nothing, and a state that was decoded goes on as the original would."""
    decoded = type(a).decode(a.encode())
    _expect(decoded == a and decoded.encode() == a.encode(), "decode(encode(a)) == a", a)
    _expect(decoded.join(b) == a.join(b), "decode(encode(a)) ⊔ b == a ⊔ b", a, b)


def encodes_canonically(a: Lattice, b: Lattice, c: Lattice) -> None:
    """Equal states have equal bytes and hashes, by whichever way they came about."""
    left, right = a.join(b).join(c), c.join(b.join(a))
    _expect(left.encode() == right.encode(), "the bytes of (a ⊔ b) ⊔ c and c ⊔ (b ⊔ a) are the same", a, b, c)
    _expect((a == b) == (a.encode() == b.encode()), "a == b  is  equal bytes", a, b)
    _expect(a != b or hash(a) == hash(b), "equal states hash equally", a, b)


def knows_its_size(a: Lattice, b: Lattice, c: Lattice) -> None:
    """`size_bytes` is the length of the encoding, after a merge too."""
    _expect(a.size_bytes == len(a.encode()), f"size_bytes {a.size_bytes} == {len(a.encode())}", a)
    state = a.copy()
    state.merge(b)
    _expect(state.size_bytes == len(state.encode()), f"size_bytes {state.size_bytes} after a merge", a, b)


def assigns_once(a: Lattice, b: Lattice, c: Lattice) -> None:
    """What a worker accepts can be joined to what it holds, and accepting it again changes nothing."""
    try:
        current = b.assign(None, 1 << 40, 7)
        before = a.encode(), current.encode()
        delta = a.assign(current, 1 << 41, 7)
    except RequestError:
        return  # a refused write has no effect
    _expect((a.encode(), current.encode()) == before, "assign changes neither operand", a, b)
    _expect(delta.assign(current, 1 << 42, 8) == delta, "a delta that was assigned stays as it is", a, b)
    _expect(delta <= current.join(delta), "current ⊔ delta holds delta", a, b)


LAWS: Final[tuple[Law, ...]] = (
    associative,
    commutative,
    idempotent,
    has_bottom,
    monotone,
    ordered_by_join,
    merges_as_it_joins,
    leaves_operands_alone,
    round_trips,
    encodes_canonically,
    knows_its_size,
    assigns_once,
)
"""Every law, as a function of three states that raises LawBroken."""


def _search(law: Law, states: SearchStrategy[Any], examples: int) -> None:
    try:
        from hypothesis import HealthCheck, given, settings
    except ImportError:
        raise ImportError("anna.lattices.laws.check needs hypothesis: pip install hypothesis") from None

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(states, states, states)
    def search(a: Lattice, b: Lattice, c: Lattice) -> None:
        law(a, b, c)

    search()


def _expect(kept: bool, law: str, *states: Lattice) -> None:
    if not kept:
        shown = ", ".join(f"{name} = {state!r}" for name, state in zip("abc", states))
        raise LawBroken(f"{type(states[0]).__name__} breaks  {law}  for {shown}")
