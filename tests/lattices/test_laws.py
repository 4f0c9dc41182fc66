"""Every registered lattice keeps the laws, and is the same as its naive oracle, byte for byte."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anna.errors import LatticeTypeMismatch, ProtocolError, RequestError
from anna.lattices import REGISTRY, Max, laws
from tests.lattices.dotted_oracles import ORACLES, MapOracle, Refused

MapOracle.MUTATIONS = [
    (
        st.dictionaries(st.sampled_from(["a", "b", "z"]), st.integers(0, 9)),
        lambda state, added: state.update({key: Max(value) for key, value in added.items()}),
        MapOracle._update,
    )
]

every_type = pytest.mark.parametrize("number", sorted(REGISTRY), ids=lambda number: REGISTRY[number].__name__)
thorough = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def state_of(number: int, model: Any) -> Any:
    return REGISTRY[number].decode(ORACLES[number].encode(model))


def check_against_oracle(number: int, m: Any, n: Any, o: Any) -> None:
    """All laws, and: what the oracle joins, reads, orders and writes is what the lattice does."""
    oracle = ORACLES[number]
    a, b, c = (state_of(number, model) for model in (m, n, o))
    laws.check_states(a, b, c)
    joined = oracle.join(m, n)
    assert a.join(b).encode() == oracle.encode(joined)
    assert (a <= b) == (oracle.encode(joined) == oracle.encode(n))
    expected = oracle.value(m)
    if expected is not None:
        assert repr_of(a.value) == repr_of(expected)


def repr_of(value: Any) -> Any:
    """Something to compare by, in which 1, 1.0 and True differ and a set has no order."""
    if isinstance(value, set):
        return {element if element == element else "nan" for element in value}
    if isinstance(value, dict):
        return {key: repr_of(item) for key, item in value.items()}
    return repr(value)


def test_every_type_has_an_oracle() -> None:
    assert sorted(REGISTRY) == sorted(ORACLES)
    assert [REGISTRY[number].NUMBER for number in sorted(REGISTRY)] == list(range(1, 13))


@every_type
def test_laws_and_oracle(number: int) -> None:
    """D02, D09: joins commute, associate and repeat, in place too, and share no state with what they were made of."""

    @thorough
    @given(*[ORACLES[number].models()] * 3)
    def search(m: Any, n: Any, o: Any) -> None:
        check_against_oracle(number, m, n, o)

    search()


@every_type
def test_laws_and_oracle_on_ties_empties_extremes_and_thousands(number: int) -> None:
    """D01, D04: ties have one winner whatever arrives first; numbers are exact beyond 2**53, and infinities are."""
    examples = ORACLES[number].EXAMPLES
    assert examples
    for m, n in itertools.product(examples, repeat=2):
        check_against_oracle(number, m, n, examples[len(examples) // 2])


@every_type
def test_bottom_is_what_nothing_was_joined_into(number: int) -> None:
    kind = REGISTRY[number]
    assert kind() == kind.bottom()
    assert kind.bottom().encode() == ORACLES[number].encode(ORACLES[number].BOTTOM)


@every_type
def test_a_state_joined_with_a_delta_is_the_mutated_state(number: int) -> None:
    oracle = ORACLES[number]
    assert oracle.MUTATIONS

    @thorough
    @given(st.data(), oracle.models())
    def search(data: st.DataObject, model: Any) -> None:
        arguments, mutate_state, mutate_model = data.draw(st.sampled_from(oracle.MUTATIONS))
        drawn = data.draw(arguments)
        state = state_of(number, model)
        delta = mutate_state(state, drawn)
        assert state.encode() == oracle.encode(model), "a mutator changes nothing"
        assert type(delta) is type(state)
        assert state.join(delta).encode() == oracle.encode(mutate_model(model, drawn))

    search()


@every_type
def test_a_request_becomes_a_delta_at_the_worker(number: int) -> None:
    oracle = ORACLES[number]

    @thorough
    @given(oracle.models(), st.none() | oracle.models(), st.integers(1, 9), st.integers(1, 3))
    def search(m: Any, current: Any, stamp: int, writer: int) -> None:
        a = state_of(number, m)
        held = None if current is None else state_of(number, current)
        try:
            expected = oracle.assign(m, current, stamp, writer)
        except Refused:
            with pytest.raises(RequestError):
                a.assign(held, stamp, writer)
            return
        delta = a.assign(held, stamp, writer)
        assert delta.encode() == oracle.encode(expected)
        assert delta.assign(held, stamp + 1, writer) == delta

    search()


@every_type
def test_bytes_that_no_state_encodes_to_are_refused(number: int) -> None:
    kind, oracle = REGISTRY[number], ORACLES[number]

    def decodes_canonically_or_is_refused(data: bytes) -> None:
        try:
            state = kind.decode(data)
        except ProtocolError:
            return
        assert state.encode() == data
        assert kind.bottom().join(state).encode() == data, "the same state, reached by joining"
        laws.check_states(state, state, kind.bottom())

    @thorough
    @given(st.data(), oracle.models(), oracle.models())
    def search(data: st.DataObject, m: Any, n: Any) -> None:
        encoded = bytearray(oracle.encode(m))
        decodes_canonically_or_is_refused(bytes(encoded) + oracle.encode(n))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(encoded)))
            replaced = data.draw(st.integers(0, 3))
            encoded[at : at + replaced] = data.draw(st.binary(max_size=3))
        decodes_canonically_or_is_refused(bytes(encoded))
        decodes_canonically_or_is_refused(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))

    search()

    @thorough
    @given(st.binary(max_size=60))
    def search_all(data: bytes) -> None:
        decodes_canonically_or_is_refused(data)

    search_all()


@pytest.mark.parametrize("left", sorted(REGISTRY), ids=lambda number: REGISTRY[number].__name__)
def test_states_of_different_types_do_not_mix(left: int) -> None:
    state = REGISTRY[left].bottom()
    for right in sorted(REGISTRY):
        other = REGISTRY[right].bottom()
        if left == right:
            continue
        assert state != other
        for operation in (state.join, state.merge, state.precedes, other.__le__):
            with pytest.raises(LatticeTypeMismatch, match=f"{type(state).__name__}|{type(other).__name__}"):
                operation(other if operation != other.__le__ else state)
    with pytest.raises(LatticeTypeMismatch):
        state.merge(None)  # type: ignore[arg-type]
