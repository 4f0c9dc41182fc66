"""A value that comes in chunks, over connections that end at any moment: whole, in order, and bounded on its way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudburst.errors import ProtocolError
from cloudburst.segments.chunks import ASK, LENGTH, Chunks, opening, unpack_opening

CHUNK = 8
AHEAD = 3


def chunks(size: int) -> Chunks:
    return Chunks(size, CHUNK, AHEAD, fruitless_max=2)


def unpacked(asks: bytes) -> list[tuple[int, int]]:
    return list(ASK.iter_unpack(asks))


def test_a_few_chunks_are_asked_for_ahead_and_the_next_as_bytes_arrive() -> None:
    fetched = chunks(60)
    assert unpacked(fetched.asks()) == [(0, 8), (8, 8), (16, 8)]
    assert fetched.asks() == b""
    assert fetched.take(8) == 0
    assert unpacked(fetched.asks()) == [(24, 8)]
    assert fetched.take(20) == 8
    assert unpacked(fetched.asks()) == [(32, 8), (40, 8), (48, 8)]
    assert fetched.take(28) == 28
    assert unpacked(fetched.asks()) == [(56, 4)]
    assert not fetched.complete
    assert fetched.take(4) == 56
    assert fetched.complete
    assert fetched.asks() == b""


def test_torn_connection_is_made_again_where_it_ended_until_two_in_a_row_bring_nothing() -> None:
    fetched = chunks(60)
    fetched.asks()
    fetched.take(11)
    assert fetched.torn()
    assert unpacked(fetched.asks()) == [(11, 8), (19, 8), (27, 8)]
    assert fetched.torn()
    fetched.asks()
    fetched.take(1)
    assert fetched.torn()
    assert fetched.torn()
    assert not fetched.torn()


@given(
    st.integers(1, 200),
    st.lists(st.one_of(st.integers(1, 40), st.just(0)), max_size=80),
)
def test_every_byte_lies_where_it_belongs_however_it_came(size: int, events: list[int]) -> None:
    """`events`: so many bytes come; 0: the connection ends, with all that was on its way."""
    value = bytes(number % 251 for number in range(size))
    fetched, found, stream = chunks(size), bytearray(size), b""
    for event in events:
        if fetched.complete:
            break
        for at, count in unpacked(fetched.asks()):
            assert 0 < count <= CHUNK
            stream += value[at : at + count]
        assert len(stream) <= (AHEAD + 1) * CHUNK
        fetched.check()
        if event:
            came, stream = stream[:event], stream[event:]
            at = fetched.take(len(came))
            found[at : at + len(came)] = came
        else:
            stream = b""
            if not fetched.torn():
                break
        fetched.check()
        assert found[: fetched.arrived] == value[: fetched.arrived]
    assert fetched.complete == (fetched.arrived == size)


def test_more_than_was_asked_for_is_refused() -> None:
    fetched = chunks(60)
    with pytest.raises(ProtocolError, match="1 bytes at 0 of a value, where 0 had been asked for"):
        fetched.take(1)
    fetched.asks()
    with pytest.raises(ProtocolError, match="25 bytes"):
        fetched.take(25)


def test_opening_says_who_asks_for_what() -> None:
    words = opening(b"key", b"where")
    assert LENGTH.unpack_from(words)[0] == len(words) - LENGTH.size
    assert unpack_opening(words[LENGTH.size :]) == (b"key", b"where", False)
    assert unpack_opening(opening(b"key", b"where", offers=True)[LENGTH.size :]) == (b"key", b"where", True)
    for wrong in (b"", b"\xc0", b"\x93\x01\x02\x03", opening(b"key", b"where")[5:], b"\x82\xa3key\x01\xa4give\x02"):
        with pytest.raises(ProtocolError):
            unpack_opening(wrong)
