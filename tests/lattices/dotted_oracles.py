"""The naive models of what is built from dots, and of maps, which may hold any of the others."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import strategies as st

from anna.codec import decode_value, encode_value
from tests.lattices.oracles import (
    NUMBER_MAX,
    BoolOracle,
    CounterOracle,
    LWWOracle,
    MaxOracle,
    MinOracle,
    Model,
    Oracle,
    OrderedSetOracle,
    PriorityOracle,
    SetOracle,
    VectorClockOracle,
    dots,
    elements,
    payloads,
    sized,
    values,
    varint,
    words,
)

Dot = tuple[int, int]


class Refused(Exception):
    """The worker has to refuse this write."""


def encode_dots(seen: frozenset[Dot]) -> bytes:
    intervals: list[list[int]] = []
    for writer, number in sorted(seen):
        if intervals and intervals[-1][0] == writer and intervals[-1][2] == number - 1:
            intervals[-1][2] = number
        else:
            intervals.append([writer, number, number])
    return varint(len(intervals)) + b"".join(words(*interval) for interval in intervals)


def next_dot(mine: frozenset[Dot], seen: frozenset[Dot], stamp: int, writer: int) -> Dot:
    known = max((number for who, number in mine | seen if who == writer), default=0)
    number = max(known + 1, stamp)
    if number > NUMBER_MAX:
        raise Refused
    return (writer, number)


class ORSetOracle(Oracle):
    """A model is (seen dots, frozenset of (dot, element) present, requested additions, requested removals)."""

    NUMBER = 7
    BOTTOM: ClassVar[Model] = (frozenset(), frozenset(), frozenset(), frozenset())
    EXAMPLES: ClassVar = [
        BOTTOM,
        (frozenset(), frozenset(), frozenset({b"\5a"}), frozenset({b"\5a", b"\5b"})),
        (frozenset({(1, 1)}), frozenset({((1, 1), b"\5a")}), frozenset(), frozenset()),
        (frozenset({(1, 1)}), frozenset({((1, 1), b"\5b")}), frozenset(), frozenset()),
        (frozenset({(1, 1), (1, 3)}), frozenset({((1, 3), b"\5a")}), frozenset(), frozenset()),
        (
            frozenset({(1, n) for n in range(1, 1001)}),
            frozenset({((1, n), encode_value(n)) for n in range(1, 1001) if n % 3}),
            frozenset(),
            frozenset(),
        ),
        (
            frozenset({(w, n) for n in range(1, 400) for w in (1, 2)}),
            frozenset({((w, n), encode_value(n)) for n in range(1, 400) for w in (1, 2) if n % 5}),
            frozenset(),
            frozenset(),
        ),
    ]

    def models(self) -> st.SearchStrategy[Model]:
        seen = st.dictionaries(dots, st.none() | elements, max_size=12)
        return st.builds(self.of, seen, st.frozensets(elements, max_size=2), st.frozensets(elements, max_size=2))

    @staticmethod
    def of(seen: dict[Dot, bytes | None], additions: frozenset[bytes], removals: frozenset[bytes]) -> Model:
        present = frozenset((dot, element) for dot, element in seen.items() if element is not None)
        return (frozenset(seen), present, additions, removals)

    def join(self, a: Model, b: Model) -> Model:
        present = (a[1] & b[1]) | {p for p in a[1] if p[0] not in b[0]} | {p for p in b[1] if p[0] not in a[0]}
        return (a[0] | b[0], frozenset(present), a[2] | b[2], a[3] | b[3])

    def value(self, a: Model) -> Any:
        return {decode_value(element) for element in ({e for _, e in a[1]} - a[3]) | a[2]}

    def encode(self, a: Model) -> bytes:
        entries = b""
        for element in sorted({e for _, e in a[1]}):
            mine = sorted(dot for dot, e in a[1] if e == element)
            entries += sized(element) + varint(len(mine)) + b"".join(words(*dot) for dot in mine)
        return (
            encode_dots(a[0])
            + varint(len({e for _, e in a[1]}))
            + entries
            + b"".join(varint(len(asked)) + b"".join(map(sized, sorted(asked))) for asked in (a[2], a[3]))
        )

    def assign(self, a: Model, current: Model | None, stamp: int, writer: int) -> Model:
        seen, present, additions, removals = a
        held = current or self.BOTTOM
        old = {dot for dot, element in held[1] if element in additions | removals}
        new: dict[Dot, bytes] = {}
        mine = held[0]
        for element in sorted(additions):
            dot = next_dot(mine, seen, stamp, writer)
            new[dot], mine = element, mine | {dot}
        return (seen | old | frozenset(new), present | frozenset(new.items()), frozenset(), frozenset())

    @staticmethod
    def _update(model: Model, added: Any, removed: Any) -> Model:
        gone = {encode_value(value) for value in removed}
        kept = frozenset(p for p in model[1] if p[1] not in gone)
        return (model[0], kept, model[2] | {encode_value(value) for value in added}, model[3])

    MUTATIONS: ClassVar = [
        (values, lambda state, value: state.add(value), lambda model, value: ORSetOracle._update(model, [value], [])),
        (
            values,
            lambda state, value: state.remove(value),
            lambda model, value: ORSetOracle._update(model, [], [value]),
        ),
        (
            st.tuples(st.sets(values), st.sets(values)),
            lambda state, args: state.update(*args),
            lambda model, args: ORSetOracle._update(model, *args),
        ),
    ]


class CausalOracle(Oracle):
    """A model is a frozenset of (pending, clock: frozenset of dots, dependencies: tuple of (key, clock), payload)."""

    NUMBER = 12
    BOTTOM = frozenset()
    EXAMPLES: ClassVar = [
        frozenset(),
        frozenset({(True, frozenset(), (), b"\0")}),
        frozenset({(False, frozenset({(1, 1)}), (), b"\5x")}),
        frozenset({(False, frozenset({(2, 1)}), (), b"\5y")}),
        frozenset({(False, frozenset({(1, 1), (2, 1)}), (), b"\5z")}),
        frozenset({(False, frozenset({(1, 1)}), (), b"\5other value, same clock")}),
        frozenset({(False, frozenset({(1, 2)}), ((b"k", frozenset({(9, NUMBER_MAX)})),), "\5é".encode())}),
        frozenset({(False, frozenset({(w, 1)}), (), b"\5v") for w in range(1, 201)}),
        frozenset({(False, frozenset({(w, 1) for w in range(1, 1001)}), (), b"\5all of them")}),
    ]

    def models(self) -> st.SearchStrategy[Model]:
        clocks = st.frozensets(dots, min_size=1, max_size=5)
        keys = st.sampled_from([b"a", b"b", b"\xff" * 40])
        dependencies = st.dictionaries(keys, clocks, max_size=2).map(lambda found: tuple(sorted(found.items())))
        placed = st.tuples(st.just(False), clocks, dependencies, payloads)
        pending = st.tuples(st.just(True), st.frozensets(dots, max_size=3), dependencies, payloads)
        return st.frozensets(placed | pending, max_size=5).map(self.maximal)

    @staticmethod
    def maximal(versions: Any) -> Model:
        return frozenset(v for v in versions if v[0] or not any(not other[0] and v[1] < other[1] for other in versions))

    def join(self, a: Model, b: Model) -> Model:
        return self.maximal(a | b)

    def value(self, a: Model) -> Any:
        return tuple(decode_value(version[3]) for version in sorted(a, key=self._encode))

    def encode(self, a: Model) -> bytes:
        return b"".join(sorted(map(self._encode, a)))

    @staticmethod
    def _encode(version: Any) -> bytes:
        pending, clock, dependencies, payload = version
        found = b"".join(sized(key) + encode_dots(seen) for key, seen in dependencies)
        return bytes([pending]) + encode_dots(clock) + varint(len(dependencies)) + found + sized(payload)

    def assign(self, a: Model, current: Model | None, stamp: int, writer: int) -> Model:
        if not any(version[0] for version in a):
            return a
        placed = {version for version in a if not version[0]}
        mine = frozenset().union(*(version[1] for version in placed | (current or frozenset())))
        for _, clock, dependencies, payload in sorted(a - placed, key=self._encode):
            dot = next_dot(mine, clock, stamp, writer)
            mine |= {dot}
            placed.add((False, clock | {dot}, dependencies, payload))
        return self.maximal(placed)

    @staticmethod
    def _set(model: Model, value: Any) -> Model:
        clock: frozenset[Dot] = frozenset().union(*(version[1] for version in model))
        return model | {(True, clock, (), encode_value(value))}

    MUTATIONS: ClassVar = [
        (values, lambda state, value: state.set(value), lambda model, value: CausalOracle._set(model, value))
    ]


class MapOracle(Oracle):
    """A model is a frozenset of ((key, type number), model of that type)."""

    NUMBER = 9
    BOTTOM = frozenset()
    EXAMPLES: ClassVar = [
        frozenset(),
        frozenset({((b"\5k", 2), (1,))}),
        frozenset({((b"\5k", 2), ()), ((b"\5k", 6), frozenset({b"\5x"}))}),
        frozenset({((b"\5k", 9), frozenset({((b"\5k", 9), frozenset({((b"\5k", 4), True)}))}))}),
        frozenset({((encode_value(i), 2), (i,)) for i in range(1000)}),
    ]

    def models(self) -> st.SearchStrategy[Model]:
        return self._models(2)

    def _models(self, depth: int) -> st.SearchStrategy[Model]:
        kinds = [st.tuples(st.just(number), ORACLES[number].models()) for number in ORACLES if number != 9]
        if depth:
            kinds.append(st.tuples(st.just(9), self._models(depth - 1)))
        keys = st.sampled_from([encode_value(key) for key in ("a", "b", "", 1, ("é", 2))])
        pairs = st.lists(st.tuples(keys, st.one_of(kinds)), max_size=4)
        return pairs.map(lambda found: frozenset({(key, number): model for key, (number, model) in found}.items()))

    def join(self, a: Model, b: Model) -> Model:
        left, right = dict(a), dict(b)
        return frozenset(
            (at, ORACLES[at[1]].join(left.get(at, ORACLES[at[1]].BOTTOM), right.get(at, ORACLES[at[1]].BOTTOM)))
            for at in left.keys() | right.keys()
        )

    def value(self, a: Model) -> Any:
        lowest: dict[bytes, tuple[int, Model]] = {}
        for (key, number), model in a:
            if key not in lowest or number < lowest[key][0]:
                lowest[key] = (number, model)
        if any(number == 8 for number, _ in lowest.values()):
            return None  # the oracle has no reader of order keys
        found = {decode_value(key): ORACLES[number].value(model) for key, (number, model) in lowest.items()}
        return None if any(v is None and lowest[encode_value(k)][0] == 9 for k, v in found.items()) else found

    def encode(self, a: Model) -> bytes:
        return b"".join(
            sized(key) + bytes([number]) + sized(ORACLES[number].encode(model))
            for (key, number), model in sorted(a, key=lambda entry: entry[0])
        )

    def assign(self, a: Model, current: Model | None, stamp: int, writer: int) -> Model:
        held = dict(current or ())
        for key, number in dict(a):
            if (key, number) not in held and any(other == key for other, _ in held):
                raise Refused
        return frozenset((at, ORACLES[at[1]].assign(model, held.get(at), stamp, writer)) for at, model in a)

    @staticmethod
    def _update(model: Model, added: dict[str, int]) -> Model:
        return ORACLES[9].join(model, frozenset(((encode_value(key), 2), (value,)) for key, value in added.items()))


ORACLES: dict[int, Oracle] = {
    oracle.NUMBER: oracle
    for oracle in (
        LWWOracle(),
        MaxOracle(),
        MinOracle(),
        BoolOracle(),
        CounterOracle(),
        SetOracle(),
        ORSetOracle(),
        OrderedSetOracle(),
        MapOracle(),
        PriorityOracle(),
        VectorClockOracle(),
        CausalOracle(),
    )
}
