"""XXH64 is the published function: golden vectors, and the xxhash package as the oracle."""

from __future__ import annotations

import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from anna.routing.hash import key_hash

SANITY = bytes((i * 2654435761 >> 24) & 0xFF for i in range(101))


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"greeting", 0xE7C5CA42CD4BED7F),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
        (SANITY[:31], 0x4071DD1310FA5DA9),
        (SANITY[:32], 0x13EE8A64346F0691),
        (SANITY[:33], 0xF75619499E2E2E99),
        (SANITY, 0xEB65198E80653DD3),
    ],
)
def test_hash_has_its_golden_values(data: bytes, digest: int) -> None:
    """D28: the hash is a specified one, of 64 bits, and not whatever a library has."""
    assert key_hash(data) == digest


@given(st.binary(max_size=200))
@example(bytes(4096))
@example(b"\xff" * 4095)
def test_hash_equals_the_xxhash_package(data: bytes) -> None:
    assert key_hash(data) == xxhash.xxh64_intdigest(data)


@pytest.mark.parametrize("size", range(80))
def test_every_tail_length_is_hashed(size: int) -> None:
    assert key_hash(SANITY[:size]) == xxhash.xxh64_intdigest(SANITY[:size])


@pytest.mark.parametrize("key", [None, "text", bytearray(b"x")])
def test_only_bytes_are_hashed(key: object) -> None:
    with pytest.raises(TypeError):
        key_hash(key)  # type: ignore[arg-type]
