"""One by one, the encodings that break one rule of a layout: each is refused, for that reason."""

from __future__ import annotations

import pytest

from anna.errors import ProtocolError
from anna.lattices import REGISTRY
from tests.lattices.oracles import order_key, sized, varint, words

A, B = b"\5a", b"\5b"
ONE_DOT = b"\x01" + words(1, 1, 1)
NONE_ASKED = b"\0\0"
BOTTOM_ORSET = b"\0\0\0\0"


def entry(element: bytes, *dots: tuple[int, int]) -> bytes:
    return sized(element) + varint(len(dots)) + b"".join(words(*dot) for dot in dots)


def version(*intervals: tuple[int, int, int], flag: int = 0, found: bytes = b"\0", value: bytes = A) -> bytes:
    return bytes([flag]) + varint(len(intervals)) + b"".join(words(*i) for i in intervals) + found + sized(value)


MALFORMED: list[tuple[str, bytes, str]] = [
    ("LWW", b"", "at least 16 bytes, got 0"),
    ("LWW", words(1) + b"1234567", "got 15"),
    ("LWW", words(1, 0), "has no value"),
    ("Max", b"\x08", "no state of Max"),
    ("Max", b"\x99", "0x99 is no kind"),
    ("Max", order_key(1) + b"\0", "1 bytes follow"),
    ("Min", b"\x12\x00", "no type of number"),
    ("Min", order_key(1.5)[:-1] + b"\x02", "number of type 2"),
    ("Min", order_key(2**60 + 1)[:-1] + b"\x03", "number of type 3"),
    ("Min", b"\x13\x08\x01\x01\x00\x02", "shorter form"),
    ("Bool", b"", "00 or 01, got 0 bytes"),
    ("Bool", b"\x02", "00 or 01"),
    ("Bool", b"\x01\x01", "00 or 01"),
    ("Counter", words(1, 1, 1), "entries of 32 bytes, got 24"),
    ("Counter", words(1, 1, 0, 0), "counts nothing"),
    ("Counter", words(1, 2, 1, 0) + words(1, 1, 1, 0), "not beyond"),
    ("Counter", words(1, 1, 1, 0) * 2, "not beyond"),
    ("Counter", words(0, 1, 1, 0), "no writer, but incarnation 1"),
    ("Counter", words(0, 0, 1, 0) + words(0, 1, 1, 0), "no writer, but incarnation 1"),
    ("VectorClock", words(1), "entries of 16 bytes, got 8"),
    ("VectorClock", words(1, 0), "counts nothing"),
    ("VectorClock", words(2, 1, 1, 1), "not beyond"),
    ("Set", b"\x03\x05", "3 more were to follow"),
    ("Set", b"\x00", "an element has 0 bytes"),
    ("Set", b"\x01\x09", "tag 0x09"),
    ("Set", sized(B) + sized(A), "not strictly ascending"),
    ("Set", sized(A) * 2, "not strictly ascending"),
    ("Set", b"\x82\x00" + A, "shorter form"),
    ("Set", b"\xff" * 9 + b"\x02" + A, "more than 64 bits"),
    ("Set", b"\xff" * 9 + b"\x01" + A, "end too soon"),
    ("Set", varint(1024 * 1024 + 1) + b"\5" * (1024 * 1024 + 1), "1 to 1,048,576"),
    ("ORSet", b"", "end too soon"),
    ("ORSet", BOTTOM_ORSET + b"\0", "1 bytes follow"),
    ("ORSet", b"\x01" + words(1, 0, 1) + b"\0" + NONE_ASKED, "no interval"),
    ("ORSet", b"\x01" + words(1, 2, 1) + b"\0" + NONE_ASKED, "no interval"),
    ("ORSet", b"\x01" + words(1, 1, 2**63) + b"\0" + NONE_ASKED, "no interval"),
    ("ORSet", b"\x02" + words(1, 1, 1, 1, 2, 2) + b"\0" + NONE_ASKED, "not beyond"),
    ("ORSet", b"\x02" + words(2, 1, 1, 1, 1, 1) + b"\0" + NONE_ASKED, "not beyond"),
    ("ORSet", varint(2**60) + b"\0" + NONE_ASKED, "intervals"),
    ("ORSet", ONE_DOT + b"\x01" + entry(A) + NONE_ASKED, "has 0 dots"),
    ("ORSet", ONE_DOT + b"\x01" + sized(A) + varint(2**60) + NONE_ASKED, "dots, with 2 bytes left"),
    ("ORSet", ONE_DOT + b"\x01" + entry(A, (1, 2)) + NONE_ASKED, "not in the context"),
    ("ORSet", ONE_DOT + b"\x01" + entry(A, (1, 1), (1, 1)) + NONE_ASKED, "dots of an element"),
    ("ORSet", ONE_DOT + b"\x02" + entry(A, (1, 1)) + entry(B, (1, 1)) + NONE_ASKED, "stands for two elements"),
    ("ORSet", ONE_DOT + b"\x02" + entry(B, (1, 1)) + entry(A, (1, 1)) + NONE_ASKED, "not strictly ascending"),
    ("ORSet", b"\0\0\x02" + sized(B) + sized(A) + b"\0", "additions of an ORSet are not strictly ascending"),
    ("ORSet", b"\0\0\0\x02" + sized(A) * 2, "removals of an ORSet are not strictly ascending"),
    ("ORSet", b"\0" + varint(2**64 - 1) + NONE_ASKED, "an element has 0 bytes"),
    ("OrderedSet", b"", "end too soon"),
    ("OrderedSet", varint(2**31), "up to 2,147,483,647"),
    ("OrderedSet", b"\x01" + sized(order_key(1)) + sized(order_key(2)), "the 1 greatest has 2 elements"),
    ("OrderedSet", b"\0" + sized(order_key(2)) + sized(order_key(1)), "not strictly ascending"),
    ("OrderedSet", b"\0" + sized(order_key(1)) * 2, "not strictly ascending"),
    ("OrderedSet", b"\0" + sized(b"\x99"), "no kind of order key"),
    ("OrderedSet", b"\0\0", "end too soon"),
    ("Map", sized(A) + b"\x03", "end too soon"),
    ("Map", sized(A) + b"\x00" + b"\0", "0 is the number of no lattice"),
    ("Map", sized(A) + b"\xc8" + b"\0", "200 is the number of no lattice"),
    ("Map", sized(A) + b"\x04" + sized(b"\x02"), "00 or 01"),
    ("Map", sized(B) + b"\x02\0" + sized(A) + b"\x02\0", "not strictly ascending"),
    ("Map", sized(A) + b"\x06\0" + sized(A) + b"\x02\0", "not strictly ascending"),
    ("Map", b"\x00\x02\0", "an element has 0 bytes"),
    ("Priority", sized(order_key(1)), "has no value"),
    ("Priority", sized(b"\x99") + A, "no kind of order key"),
    ("Priority", b"\0" + A, "end too soon"),
    ("Causal", version((1, 1, 1), flag=2), "0 or 1, got 2"),
    ("Causal", version(), "no request has no dot"),
    ("Causal", version((1, 1, 1), value=b""), "has no value"),
    ("Causal", version((1, 1, 1)) + version((1, 1, 2)), "supersedes one before"),
    ("Causal", version((1, 1, 2)) + version((1, 1, 1)), "superseded or repeated"),
    ("Causal", version((1, 1, 1)) * 2, "superseded or repeated"),
    ("Causal", version((2, 1, 1)) + version((1, 1, 1)), "not strictly ascending"),
    ("Causal", version((1, 1, 1), found=b"\x01\0" + ONE_DOT), "ascending keys"),
    ("Causal", version((1, 1, 1), found=b"\x02" + (sized(b"k") + ONE_DOT) * 2), "ascending keys"),
    ("Causal", b"\0" + varint(65537) + words(*range(9)), "65,537 intervals; the most is 65,536"),
]


@pytest.mark.parametrize(("name", "data", "why"), MALFORMED, ids=[f"{name}-{why}" for name, _, why in MALFORMED])
def test_it_is_refused(name: str, data: bytes, why: str) -> None:
    kind = next(kind for kind in REGISTRY.values() if kind.__name__ == name)
    with pytest.raises(ProtocolError) as caught:
        kind.decode(data)
    assert why in str(caught.value)


def test_the_pieces_of_these_examples_are_right_by_themselves() -> None:
    kinds = {kind.__name__: kind for kind in REGISTRY.values()}
    for name, data in [
        ("ORSet", BOTTOM_ORSET),
        ("ORSet", b"\x02" + words(1, 1, 1, 1, 3, 3) + b"\x01" + entry(A, (1, 1), (1, 3)) + NONE_ASKED),
        ("Causal", version((1, 1, 1)) + version((2, 1, 1))),
        ("Causal", version((1, 1, 1), found=b"\x01" + sized(b"k") + ONE_DOT)),
        ("Causal", version(flag=1)),
        ("Set", sized(A) + sized(B)),
        ("Priority", sized(order_key(1)) + A),
        ("Map", sized(A) + b"\x02\0" + sized(A) + b"\x06\0"),
        ("Counter", words(0, 0, 1, 0)),
        ("OrderedSet", b"\x01" + sized(order_key(1))),
    ]:
        assert kinds[name].decode(data).encode() == data
