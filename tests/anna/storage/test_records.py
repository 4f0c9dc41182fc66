"""The bytes on the disk, which another version must read: golden, and against xxhash's own library."""

from __future__ import annotations

import hashlib

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from anna.storage.records import (
    CELLS_HEAD,
    Head,
    Identity,
    cell_of,
    cell_record,
    head_of,
    head_record,
    identity_of,
    identity_record,
    name_of,
    segment_of,
    segment_record,
)
from anna.storage.seal import sealed, unsealed

P1 = 0x9E3779B185EBCA87


@given(name=st.binary(max_size=40), content=st.binary(max_size=200))
def test_a_seal_is_the_hash_of_content_and_name(name: bytes, content: bytes) -> None:
    seal = (xxhash.xxh64_intdigest(content) + xxhash.xxh64_intdigest(name) * P1) % (1 << 64)
    assert sealed(name, content) == seal.to_bytes(8, "little") + content
    assert unsealed(name, sealed(name, content)) == content


@given(name=st.binary(min_size=1, max_size=20), content=st.binary(max_size=60), data=st.data())
def test_no_flipped_bit_in_name_or_record_is_unsealed(name: bytes, content: bytes, data: st.DataObject) -> None:
    record = bytearray(sealed(name, content))
    bit = data.draw(st.integers(0, 8 * (len(name) + len(record)) - 1))
    flipped = bytearray(name)
    target, at = (flipped, bit // 8) if bit < 8 * len(name) else (record, bit // 8 - len(name))
    target[at] ^= 1 << bit % 8
    assert unsealed(bytes(flipped), bytes(record)) is None


@pytest.mark.parametrize("size", range(8))
def test_a_record_that_is_too_short_is_not_unsealed(size: int) -> None:
    assert unsealed(b"name", bytes(size)) is None


@given(key=st.one_of(st.binary(min_size=1, max_size=30), st.binary(min_size=505, max_size=600)), cell=st.binary())
def test_a_cell_is_found_under_a_name_that_no_head_has(key: bytes, cell: bytes) -> None:
    name, record = cell_record(key, cell)
    assert name == name_of(key)
    assert cell_of(name, record) == (key, cell)
    assert 1 <= len(name) <= 511
    assert len(name) != len(CELLS_HEAD)


def test_long_keys_are_stored_under_their_beginning_and_digest() -> None:
    key = b"k" * 510
    name, record = cell_record(key, b"cell")
    assert name == b"k" * 495 + hashlib.blake2b(key, digest_size=16).digest()
    assert record[8:] == b"\xfe\x01" + key + b"cell"


def test_heads_and_identities_keep_their_bytes() -> None:
    head = Head(transaction=5, first=2, last=9, entries=9)
    record = head_record(b"\0", head)
    assert record[8:] == b"".join(number.to_bytes(8, "little") for number in (5, 2, 9, 9))
    assert head_of(b"\0", record) == head
    assert head_of(b"\1", record) is None
    identity = Identity("größe", 7, 2**64 - 1)
    record = identity_record(identity)
    assert record[8:] == (7).to_bytes(8, "little") + b"\xff" * 8 + "größe".encode()
    assert identity_of(record) == identity


def test_segments_keep_their_bytes() -> None:
    name, record = segment_record(3, 2**20)
    assert (name, record[8:]) == (b"\0s" + (3).to_bytes(8, "little"), (2**20).to_bytes(8, "little"))
    assert segment_of(name, record) == (3, 2**20)
    assert segment_of(segment_record(4, 2**20)[0], record) is None
