"""Digests are equal when cells are, tell which buckets differ, and lists tell which keys."""

from __future__ import annotations

import struct
from collections import Counter
from random import Random

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from anna.errors import ProtocolError
from anna.kvs.digest import (
    BUCKETS_COUNT,
    Digests,
    bucket_of,
    cell_hash,
    decode_keys,
    differing,
    encode_keys,
    missing,
    register_hash,
)
from anna.lattices.lww import LWW
from anna.lattices.set import Set
from anna.routing.hash import key_hash

U64 = st.integers(0, 2**64 - 1)
HASHES = st.dictionaries(U64, U64, max_size=40)

Entry = tuple[bytes, int, int]


def entries_of(hashes: dict[int, int]) -> list[Entry]:
    """Return entries whose keys tell the hash that they pretend to have."""
    return [(b"%d" % key, key, cell) for key, cell in hashes.items()]


def digests_of(entries: list[Entry]) -> bytes:
    digests = Digests()
    digests.add_all(entries)
    return digests.encode()


def of_bucket(hashes: dict[int, int], bucket: int) -> list[Entry]:
    return [entry for entry in entries_of(hashes) if bucket_of(entry[1]) == bucket]


@given(HASHES, st.randoms(use_true_random=False))
def test_the_order_of_keys_leaves_no_trace(hashes: dict[int, int], dice: Random) -> None:
    entries = entries_of(hashes)
    before = digests_of(entries)
    dice.shuffle(entries)
    assert digests_of(entries) == before


@given(HASHES, HASHES)
def test_buckets_differ_where_the_cells_in_them_do(mine: dict[int, int], theirs: dict[int, int]) -> None:
    expected = []
    for bucket in range(BUCKETS_COUNT):
        a, b = ({(e[1], e[2]) for e in of_bucket(side, bucket)} for side in (mine, theirs))
        if a != b and (len(a) != len(b) or sum(c for _, c in a) % 2**64 != sum(c for _, c in b) % 2**64):
            expected.append((bucket, len(a), len(b)))
    assert differing(digests_of(entries_of(mine)), digests_of(entries_of(theirs))) == expected


@given(HASHES, st.data())
def test_one_changed_cell_is_one_differing_bucket(hashes: dict[int, int], data: st.DataObject) -> None:
    key, cell = data.draw(U64), data.draw(U64)
    changed = {**hashes, key: cell}
    found = differing(digests_of(entries_of(hashes)), digests_of(entries_of(changed)))
    assert [bucket for bucket, _, _ in found] == ([] if hashes.get(key) == cell else [bucket_of(key)])


@given(HASHES, HASHES, st.integers(0, 255))
def test_missing_keys_are_those_that_the_peer_lacks_or_has_otherwise(
    mine: dict[int, int], theirs: dict[int, int], bucket: int
) -> None:
    shift = pow(0x9E3779B97F4A7C15, -1, 2**64)
    mine, theirs = (
        {(bucket << 56 | key >> 8) * shift % 2**64: cell for key, cell in side.items()} for side in (mine, theirs)
    )
    found_bucket, pairs = decode_keys(encode_keys(bucket, entries_of(theirs)))
    assert found_bucket == bucket
    assert missing(entries_of(mine), pairs) == [b"%d" % key for key, cell in mine.items() if theirs.get(key) != cell]


def test_keys_whose_hashes_collide_are_told_apart_by_their_cells() -> None:
    """Neither may be taken for the other, and lost."""
    mine = [(b"one", 5, 70), (b"other", 5, 71)]
    _, pairs = decode_keys(encode_keys(bucket_of(5), [(b"one", 5, 70)]))
    assert missing(mine, pairs) == [b"other"]


def test_nothing_is_missing_from_the_same_list_and_all_from_an_empty_one() -> None:
    entries = of_bucket({key: key * 7 for key in range(5000)}, 9)
    assert missing(entries, decode_keys(encode_keys(9, entries))[1]) == []
    assert missing(entries, b"") == [key for key, _, _ in entries]
    assert len(entries) > 10


@given(st.binary(min_size=1, max_size=40), U64, U64, U64, st.binary(max_size=80))
def test_a_register_is_hashed_as_its_encoding_is(key: bytes, reset: int, stamp: int, writer: int, value: bytes) -> None:
    state = LWW.of(value).set(value, stamp, writer)
    found = register_hash(key, reset, stamp, writer, state.encode()[16:])
    assert found == cell_hash(key, LWW.NUMBER, reset, 0, state.encode())
    payload_hash = xxhash.xxh64_intdigest(state.encode()[16:])
    mark = struct.pack("<8Q", key_hash(key), 1, reset, 0, 0, stamp, writer, payload_hash)
    assert found == xxhash.xxh64_intdigest(mark)


def test_every_field_of_a_cell_is_in_its_hash() -> None:
    state = Set({"a"}).encode()
    hashes = {
        cell_hash(b"k", Set.NUMBER, 0, 9, state),
        cell_hash(b"l", Set.NUMBER, 0, 9, state),
        cell_hash(b"k", Set.NUMBER + 1, 0, 9, state),
        cell_hash(b"k", Set.NUMBER, 5, 9, state),
        cell_hash(b"k", Set.NUMBER, 0, 8, state),
        cell_hash(b"k", Set.NUMBER, 0, 9, Set({"b"}).encode()),
        cell_hash(b"k", 0, 5, 0, b""),
        register_hash(b"k", 0, 1, 2, b"x"),
        register_hash(b"k", 0, 2, 1, b"x"),
        register_hash(b"k", 3, 1, 2, b"x"),
        register_hash(b"k", 0, 1, 2, b"y"),
        register_hash(b"k", 0, 1, 2, b"x", expires=7),
        cell_hash(b"k", Set.NUMBER, 0, 9, state, expires=7),
    }
    assert len(hashes) == 13


def test_keys_fill_the_buckets_evenly_even_if_they_lie_on_one_arc() -> None:
    """What two workers share has equal leading bits."""
    counts = Counter(bucket_of(0x7A << 56 | key_hash(b"%d" % i) >> 16) for i in range(100_000))
    assert len(counts) == BUCKETS_COUNT
    assert max(counts.values()) < 1.5 * 100_000 / BUCKETS_COUNT


def test_buckets_and_hashes_never_change_by_accident() -> None:
    """D28: two workers compare numbers that they made apart, so the functions are specified."""
    assert [bucket_of(key_hash(key)) for key in (b"a", b"k", b"greeting")] == [255, 117, 19]
    assert [
        f"{cell_hash(b'k', 3, 1, 2, b'state'):016x}",
        f"{register_hash(b'k', 1, 2, 3, b'value'):016x}",
    ] == ["f0652126fa5d5945", "c832a9e96e0e9ae2"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "at least 5 bytes, got 0"),
        (struct.pack("<BI", 1, 1) + bytes(15), "1 keys has 16 bytes of them, got 15"),
        (struct.pack("<BI", 1, 2**32 - 1), "of them, got 0"),
        (struct.pack("<BIQQ", 1, 1, 0, 0), "not of bucket 1"),
        (struct.pack("<BI4Q", 55, 2, 1 << 8, 1, 1 << 8, 0), "key 1 of a list of 2 is out of order"),
    ],
)
def test_what_is_no_list_of_keys_is_a_protocol_error(data: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        decode_keys(data)


def test_digests_of_another_length_are_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match=r"3,072 bytes, got 3,072 and 3,071"):
        differing(Digests().encode(), Digests().encode()[1:])
