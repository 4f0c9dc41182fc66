"""Every lattice again, naively: plain Python data, joined and encoded by the definition, for comparison.

The one rule: nothing here shares code with `anna.lattices`. A model is an immutable Python value; an oracle knows how
models are generated, joined, read, mutated, assigned and written as bytes. `anna.codec` is used for single values only,
and has its own tests.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any, ClassVar

from hypothesis import strategies as st

from anna.codec import decode_value, encode_value

WORD_MAX = 2**64 - 1
NUMBER_MAX = 2**63 - 1

Model = Any
Mutation = tuple[st.SearchStrategy[Any], Callable[[Any, Any], Any], Callable[[Model, Any], Model]]
"""Arguments, what they do to a state (its delta), and what they do to a model (the mutated model)."""


def varint(number: int) -> bytes:
    out = []
    while True:
        number, low = number >> 7, number & 127
        out.append(low | (128 if number else 0))
        if not number:
            return bytes(out)


def sized(data: bytes) -> bytes:
    return varint(len(data)) + data


def words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def order_key(value: Any) -> bytes:
    """The order-preserving encoding, from its description, with exact fractions."""
    if value is None:
        return b"\x08"
    if isinstance(value, str):
        return b"\x20" + value.encode("utf-8", "surrogatepass").replace(b"\0", b"\0\xff") + b"\0"
    if isinstance(value, bytes):
        return b"\x28" + value.replace(b"\0", b"\0\xff") + b"\0"
    if isinstance(value, tuple):
        return b"\x30" + b"".join(map(order_key, value)) + b"\0"
    if value in (math.inf, -math.inf):
        return b"\x14" if value > 0 else b"\x10"
    kind = bytes([1 if isinstance(value, bool) else 2 if isinstance(value, int) else 3])
    if value == 0:
        return b"\x12" + kind
    magnitude, exponent = abs(Fraction(value)), 0
    while magnitude >= 2:
        magnitude, exponent = magnitude / 2, exponent + 1
    while magnitude < 1:
        magnitude, exponent = magnitude * 2, exponent - 1
    digits: list[int] = []
    rest = magnitude - 1
    while rest or not digits:
        digit = math.floor(rest * 128)
        rest = rest * 128 - digit
        digits.append(digit << 1 | (1 if rest else 0))
    body = struct.pack(">H", exponent + 2048) + bytes(digits)
    if value < 0:
        return b"\x11" + bytes(255 - byte for byte in body) + kind
    return b"\x13" + body + kind


# What states are made of. Small domains, so that ties and overlaps are frequent; extremes, so that bounds are met.

values = st.sampled_from([None, False, 0, 1, "", "a", "žluťoučký", b"", b"\xff", (1, "a"), 2.5, -0.0, "x" * 200])
payloads = values.map(encode_value)
elements = st.one_of(st.integers(0, 5), values, st.text(max_size=3)).map(encode_value)
writers = st.sampled_from([1, 2, 3, WORD_MAX])
amounts = st.sampled_from([1, 2, 7, 2**63])
numbers = st.one_of(
    st.integers(-3, 3),
    st.booleans(),
    st.integers(-(2**64), 2**64),
    st.floats(allow_nan=False).map(lambda real: real + 0.0),  # -0.0 + 0.0 is 0.0
    st.sampled_from([2**53, 2**53 + 1, float(2**53), math.inf, -math.inf, 5e-324, -5e-324, 2**63, -(2**63), 1.0]),
)
places = st.one_of(
    numbers, st.text(max_size=3), st.binary(max_size=3), st.tuples(st.integers(0, 2), st.text(max_size=2))
)
dots = st.tuples(writers, st.integers(1, 6) | st.sampled_from([NUMBER_MAX, NUMBER_MAX - 1, NUMBER_MAX - 3]))


class Oracle:
    NUMBER: ClassVar[int]
    BOTTOM: ClassVar[Model]
    EXAMPLES: ClassVar[list[Model]] = []
    MUTATIONS: ClassVar[list[Mutation]] = []

    def models(self) -> st.SearchStrategy[Model]:
        raise NotImplementedError

    def join(self, a: Model, b: Model) -> Model:
        raise NotImplementedError

    def value(self, a: Model) -> Any:
        raise NotImplementedError

    def encode(self, a: Model) -> bytes:
        raise NotImplementedError

    def assign(self, a: Model, current: Model | None, stamp: int, writer: int) -> Model:
        return a


class LWWOracle(Oracle):
    NUMBER = 1
    BOTTOM = (0, 0, b"")
    EXAMPLES: ClassVar = [
        (0, 0, b""),
        (0, 0, b"\0"),
        (7, 1, b"\5a"),
        (7, 1, b"\5b"),
        (7, 2, b"\5a"),
        (WORD_MAX, 0, b"\6"),
    ]
    MUTATIONS: ClassVar = [
        (
            st.tuples(values, st.integers(1, 3), writers),
            lambda state, args: state.set(*args),
            lambda model, args: max(model, (args[1], args[2], encode_value(args[0]))),
        )
    ]

    def models(self) -> st.SearchStrategy[Model]:
        stamps = st.integers(0, 3) | st.just(WORD_MAX)
        return st.just(self.BOTTOM) | st.tuples(stamps, st.integers(0, 2), payloads)

    def join(self, a: Model, b: Model) -> Model:
        return max(a, b)

    def value(self, a: Model) -> Any:
        return decode_value(a[2]) if a[2] else None

    def encode(self, a: Model) -> bytes:
        stamp, writer, payload = a
        return words(stamp, writer) + bytes(payload)

    def assign(self, a: Model, current: Model | None, stamp: int, writer: int) -> Model:
        return a if a[0] or a[1] else (stamp, writer, a[2])


class MaxOracle(Oracle):
    """A model is () or a tuple of one value."""

    NUMBER = 2
    BOTTOM = ()
    EXAMPLES: ClassVar = [(), (0,), (0.0,), (False,), (2**53 + 1,), (float(2**53),), (math.inf,), (-math.inf,), ("",)]
    MUTATIONS: ClassVar = [
        (places, lambda state, place: state.update(place), lambda m, place: MaxOracle().join(m, (place,)))
    ]

    def models(self) -> st.SearchStrategy[Model]:
        return st.just(()) | st.tuples(places)

    def join(self, a: Model, b: Model) -> Model:
        return max(a, b, key=self.encode)

    def value(self, a: Model) -> Any:
        return a[0] if a else None

    def encode(self, a: Model) -> bytes:
        return order_key(a[0]) if a else b""


class MinOracle(MaxOracle):
    NUMBER = 3
    MUTATIONS: ClassVar = [
        (places, lambda state, place: state.update(place), lambda m, place: MinOracle().join(m, (place,)))
    ]

    def join(self, a: Model, b: Model) -> Model:
        return min(a, b, key=self.encode) if a and b else a or b


class BoolOracle(Oracle):
    NUMBER = 4
    BOTTOM = False
    EXAMPLES: ClassVar = [False, True]
    MUTATIONS: ClassVar = [(st.none(), lambda state, _: state.set(), lambda model, _: True)]

    def models(self) -> st.SearchStrategy[Model]:
        return st.booleans()

    def join(self, a: Model, b: Model) -> Model:
        return a or b

    def value(self, a: Model) -> Any:
        return a

    def encode(self, a: Model) -> bytes:
        return bytes([a])


class CounterOracle(Oracle):
    """A model is a frozenset of ((writer, incarnation), (plus, minus)); writer 0 is a request."""

    NUMBER = 5
    BOTTOM = frozenset()
    EXAMPLES: ClassVar = [
        frozenset(),
        frozenset({((0, 0), (3, 0))}),
        frozenset({((1, 5), (3, 0)), ((1, 6), (0, 4))}),
        frozenset({((1, 5), (2, 9)), ((WORD_MAX, WORD_MAX), (WORD_MAX, WORD_MAX))}),
        frozenset({((writer, 0), (writer, 0)) for writer in range(1, 1001)}),
    ]

    def models(self) -> st.SearchStrategy[Model]:
        keys = st.just((0, 0)) | st.tuples(writers, st.sampled_from([0, 1, 2, WORD_MAX]))
        counts = st.tuples(st.integers(0, 3) | st.just(2**62), st.integers(0, 3)).filter(any)
        return st.dictionaries(keys, counts, max_size=12).map(lambda rows: frozenset(rows.items()))

    def join(self, a: Model, b: Model) -> Model:
        left, right = dict(a), dict(b)
        zero = (0, 0)
        return frozenset(
            (key, tuple(map(max, left.get(key, zero), right.get(key, zero)))) for key in left.keys() | right.keys()
        )

    def value(self, a: Model) -> Any:
        return sum(plus - minus for _, (plus, minus) in a)

    def encode(self, a: Model) -> bytes:
        return b"".join(words(*key, *counts) for key, counts in sorted(a))

    def assign(self, a: Model, current: Model | None, stamp: int, writer: int) -> Model:
        rows, held = dict(a), dict(current or ())
        if (0, 0) not in rows:
            return a
        plus, minus = rows.pop((0, 0))
        incarnation = max((key[1] for key in held if key[0] == writer and key[1] >= stamp), default=stamp)
        had = held.get((writer, incarnation), (0, 0))
        request = frozenset({((writer, incarnation), (had[0] + plus, had[1] + minus))})
        return self.join(request, frozenset(rows.items()))

    @staticmethod
    def _increment(model: Model, args: tuple[int, int]) -> Model:
        amount, writer = args
        rows = dict(model)
        key = max((key for key in rows if key[0] == writer), default=(writer, 0))
        plus, minus = rows.get(key, (0, 0))
        rows[key] = (plus + max(amount, 0), minus + max(-amount, 0))
        return frozenset((key, counts) for key, counts in rows.items() if any(counts))

    MUTATIONS: ClassVar = [
        (
            st.tuples(st.integers(-5, 5), st.integers(0, 3)),
            lambda state, args: state.increment(args[0], writer=args[1]),
            lambda model, args: CounterOracle._increment(model, args),
        ),
        (
            st.tuples(st.integers(-5, 5), st.integers(0, 3)),
            lambda state, args: state.decrement(args[0], writer=args[1]),
            lambda model, args: CounterOracle._increment(model, (-args[0], args[1])),
        ),
    ]


class SetOracle(Oracle):
    NUMBER = 6
    BOTTOM = frozenset()
    EXAMPLES: ClassVar = [
        frozenset(),
        frozenset({encode_value("")}),
        frozenset({encode_value(value) for value in (1, 1.0, True, 0.0, -0.0, "é", "e\u0301", "\ud800")}),
        frozenset({encode_value(f"element {i}") for i in range(1000)}),
        frozenset({encode_value(f"element {i}") for i in range(500, 1500)}),
    ]
    MUTATIONS: ClassVar = [
        (values, lambda state, value: state.add(value), lambda model, value: model | {encode_value(value)}),
        (
            st.sets(values),
            lambda state, added: state.update(added),
            lambda model, added: model | {encode_value(value) for value in added},
        ),
    ]

    def models(self) -> st.SearchStrategy[Model]:
        return st.frozensets(elements, max_size=8)

    def join(self, a: Model, b: Model) -> Model:
        return a | b

    def value(self, a: Model) -> Any:
        return {decode_value(element) for element in a}

    def encode(self, a: Model) -> bytes:
        return b"".join(map(sized, sorted(a)))


class OrderedSetOracle(Oracle):
    """A model is (limit, ascending order keys); a limit of infinity is none."""

    NUMBER = 8
    BOTTOM = (math.inf, ())
    EXAMPLES: ClassVar = [
        (math.inf, ()),
        (1, ()),
        (2, (order_key(1), order_key("a"))),
        (3, (order_key(0), order_key(1.0))),
        (math.inf, tuple(map(order_key, range(1000)))),
        (700, tuple(map(order_key, range(600, 1300)))),
    ]

    def models(self) -> st.SearchStrategy[Model]:
        keys = st.sets(places.map(order_key), max_size=8)
        return st.builds(self.of, st.sampled_from([math.inf, 1, 2, 3, 100]), keys)

    @staticmethod
    def of(limit: float, keys: Any) -> Model:
        ascending = sorted(keys)
        return (limit, tuple(ascending if limit == math.inf else ascending[-int(limit) :]))

    def join(self, a: Model, b: Model) -> Model:
        return self.of(min(a[0], b[0]), {*a[1], *b[1]})

    def value(self, a: Model) -> Any:
        return None  # compared by bytes: the oracle has no reader of order keys

    def encode(self, a: Model) -> bytes:
        return varint(0 if a[0] == math.inf else int(a[0])) + b"".join(map(sized, a[1]))

    MUTATIONS: ClassVar = [
        (
            places,
            lambda state, place: state.add(place),
            lambda model, place: OrderedSetOracle.of(model[0], {*model[1], order_key(place)}),
        ),
        (
            st.sets(places),
            lambda state, added: state.update(added),
            lambda model, added: OrderedSetOracle.of(model[0], {*model[1], *map(order_key, added)}),
        ),
    ]


class PriorityOracle(Oracle):
    """A model is () or (priority, payload)."""

    NUMBER = 10
    BOTTOM = ()
    EXAMPLES: ClassVar = [
        (),
        (1, b"\5b"),
        (1, b"\5a"),
        (1.0, b"\5a"),
        (math.inf, b"\0"),
        (-math.inf, b"\5"),
        (2**31 - 1, b"\5a"),
    ]
    MUTATIONS: ClassVar = [
        (
            st.tuples(numbers, values),
            lambda state, args: state.update(*args),
            lambda model, args: PriorityOracle().join(model, (args[0], encode_value(args[1]))),
        )
    ]

    def models(self) -> st.SearchStrategy[Model]:
        return st.just(()) | st.tuples(numbers | st.integers(0, 2), payloads)

    def join(self, a: Model, b: Model) -> Model:
        return min(a, b, key=lambda model: (order_key(model[0]), model[1])) if a and b else a or b

    def value(self, a: Model) -> Any:
        return decode_value(a[1]) if a else None

    def encode(self, a: Model) -> bytes:
        return sized(order_key(a[0])) + a[1] if a else b""


class VectorClockOracle(Oracle):
    NUMBER = 11
    BOTTOM = frozenset()
    EXAMPLES: ClassVar = [
        frozenset(),
        frozenset({(1, 1)}),
        frozenset({(1, 1), (2, WORD_MAX)}),
        frozenset({(0, 5), (WORD_MAX, 1)}),
        frozenset({(writer, 1) for writer in range(1000)}),
    ]
    MUTATIONS: ClassVar = [
        (
            writers,
            lambda state, writer: state.increment(writer),
            lambda model, writer: frozenset(({**dict(model), writer: dict(model).get(writer, 0) + 1}).items()),
        ),
        (
            st.dictionaries(writers, st.integers(0, 9)),
            lambda state, counts: state.update(counts),
            lambda model, counts: VectorClockOracle().join(model, frozenset((w, n) for w, n in counts.items() if n)),
        ),
    ]

    def models(self) -> st.SearchStrategy[Model]:
        counts = st.dictionaries(writers | st.integers(0, 12), st.integers(1, 3), max_size=12)
        return counts.map(lambda rows: frozenset(rows.items()))

    def join(self, a: Model, b: Model) -> Model:
        left, right = dict(a), dict(b)
        return frozenset((w, max(left.get(w, 0), right.get(w, 0))) for w in left.keys() | right.keys())

    def value(self, a: Model) -> Any:
        return dict(a)

    def encode(self, a: Model) -> bytes:
        return b"".join(words(*row) for row in sorted(a))
