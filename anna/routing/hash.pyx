"""XXH64: the 64-bit hash that places keys and virtual nodes on the ring.

The one rule: every program, version and platform computes the same number, for ever, because the number
decides where a key lives. So the hash is a published one with a fixed seed of 0, and its golden vectors are
in the tests. Source: Collet, "xxHash fast digest algorithm", doc/xxhash_spec.md, section XXH64.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

import sys

if sys.byteorder != "little":
    raise ImportError("anna is built for little-endian machines: frames and hashes read integers in place")

cdef extern from *:
    """
    #define ANNA_P1 0x9E3779B185EBCA87ULL
    #define ANNA_P2 0xC2B2AE3D27D4EB4FULL
    #define ANNA_P3 0x165667B19E3779F9ULL
    #define ANNA_P4 0x85EBCA77C2B2AE63ULL
    #define ANNA_P5 0x27D4EB2F165667C5ULL
    """
    const uint64_t P1 "ANNA_P1"
    const uint64_t P2 "ANNA_P2"
    const uint64_t P3 "ANNA_P3"
    const uint64_t P4 "ANNA_P4"
    const uint64_t P5 "ANNA_P5"


cdef inline uint64_t rotated(uint64_t word, int bits) noexcept nogil:
    return (word << bits) | (word >> (64 - bits))


cdef inline uint64_t lane_at(const char* data) noexcept nogil:
    cdef uint64_t lane
    memcpy(&lane, data, 8)
    return lane


cdef inline uint64_t half_lane_at(const char* data) noexcept nogil:
    cdef uint32_t lane
    memcpy(&lane, data, 4)
    return lane


cdef inline uint64_t absorbed(uint64_t accumulator, uint64_t lane) noexcept nogil:
    return rotated(accumulator + lane * P2, 31) * P1


cdef inline uint64_t folded(uint64_t digest, uint64_t accumulator) noexcept nogil:
    return (digest ^ absorbed(0, accumulator)) * P1 + P4


cdef uint64_t long_digest(const char* data, Py_ssize_t stripes) noexcept nogil:
    """The digest of whole 32-byte stripes, at least one, before the length and the tail are mixed in."""
    cdef uint64_t a = P1 + P2, b = P2, c = 0, d = <uint64_t>0 - P1
    cdef uint64_t digest
    cdef Py_ssize_t i
    for i in range(stripes):
        a = absorbed(a, lane_at(data))
        b = absorbed(b, lane_at(data + 8))
        c = absorbed(c, lane_at(data + 16))
        d = absorbed(d, lane_at(data + 24))
        data += 32
    digest = rotated(a, 1) + rotated(b, 7) + rotated(c, 12) + rotated(d, 18)
    return folded(folded(folded(folded(digest, a), b), c), d)


cdef uint64_t hash64(const char* data, Py_ssize_t size) noexcept nogil:
    """Return XXH64 with seed 0 of `size` bytes, 0 and more. About 1 ns per 8 bytes."""
    cdef const char* end = data + size
    cdef uint64_t digest
    if size >= 32:
        digest = long_digest(data, size // 32) + <uint64_t>size
        data += size - size % 32
    else:
        digest = P5 + <uint64_t>size
    while end - data >= 8:
        digest = rotated(digest ^ absorbed(0, lane_at(data)), 27) * P1 + P4
        data += 8
    if end - data >= 4:
        digest = rotated(digest ^ (half_lane_at(data) * P1), 23) * P2 + P3
        data += 4
    while data < end:
        digest = rotated(digest ^ (<uint64_t>(<uint8_t>data[0]) * P5), 11) * P1
        data += 1
    digest = (digest ^ (digest >> 33)) * P2
    digest = (digest ^ (digest >> 29)) * P3
    return digest ^ (digest >> 32)


def key_hash(bytes key not None):
    """Return the position of `key` on the ring: XXH64 with seed 0, 0 to 2**64 - 1.

    >>> hex(key_hash(b"greeting"))
    '0xe7c5ca42cd4bed7f'
    """
    return hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
