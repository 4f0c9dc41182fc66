"""What two workers compare instead of what they hold: sums of hashes by bucket, and lists of hashes for the buckets that differ.

The one rule: equal cells have equal hashes and the order of the keys leaves no trace, so two workers that hold the same have the same
256 buckets of (sum, count), 3 KiB, however they came by it. A key's bucket is the top byte of its hash after one multiplication: what two
workers share lies on a few arcs of the ring, and its leading bits are not even.

A cell's hash covers all that a join can change: type, reset, last write, expiry, state. A register's is made from its fields, so that nobody
encodes a million of them to find that nothing differs. Unequal buckets can have equal sums once in 2**64; who may write may contrive
that, and then harms what he wrote. Pure functions and C loops. Source: DESIGN §5 (replication); DeCandia et al. 2007, §4.7.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset

cimport cython

from anna.routing.hash cimport hash64
from anna.wire cimport LWW_HEADER_BYTES, LWW_NUMBER

from anna.errors import ProtocolError

BUCKETS_COUNT = BUCKETS

Entry = tuple[bytes, int, int]
"""What is compared of one key: the key, its hash, its cell's hash."""

cdef enum:
    # A bucket as it is sent: u64 sum, u32 count.
    BUCKET_BYTES = 12
    # A list of keys: u8 bucket, u32 count, then the pairs.
    KEYS_HEADER_BYTES = 5
    PAIR_BYTES = 16

cdef extern from *:
    """
    #define ANNA_BUCKET_MULTIPLIER 0x9E3779B97F4A7C15ULL
    """
    const uint64_t BUCKET_MULTIPLIER "ANNA_BUCKET_MULTIPLIER"

# All that a cell's hash covers; a field that a type does not have is 0.
cdef struct Mark:
    uint64_t key_hash
    uint64_t type
    uint64_t reset
    uint64_t last
    uint64_t expires
    uint64_t stamp
    uint64_t writer
    uint64_t payload_hash

cdef struct Pair:
    uint64_t key_hash
    uint64_t cell_hash


cdef int bucket_at(uint64_t key_hash) noexcept nogil:
    """Return the bucket of a key, 0 to 255."""
    return <int>((key_hash * BUCKET_MULTIPLIER) >> 56)


cdef uint64_t register_mark(uint64_t key_hash, uint64_t reset, uint64_t expires, uint64_t stamp, uint64_t writer, const char* payload, Py_ssize_t size) noexcept nogil:
    """Return the hash of a register's cell, whose last write is its stamp."""
    cdef Mark mark = Mark(key_hash, LWW_NUMBER, reset, 0, expires, stamp, writer, hash64(payload, size))
    return hash64(<const char*>&mark, sizeof(Mark))


cdef uint64_t state_mark(uint64_t key_hash, int type, uint64_t reset, uint64_t last, uint64_t expires, const char* payload, Py_ssize_t size) noexcept nogil:
    """Return the hash of a cell from its state's encoding; type 0 with no bytes is a reset alone."""
    cdef Mark mark = Mark(key_hash, type, reset, last, expires, 0, 0, 0)
    if type == LWW_NUMBER and size >= LWW_HEADER_BYTES:
        memcpy(&mark.stamp, payload, 8)
        memcpy(&mark.writer, payload + 8, 8)
        return register_mark(key_hash, reset, expires, mark.stamp, mark.writer, payload + LWW_HEADER_BYTES, size - LWW_HEADER_BYTES)
    mark.payload_hash = hash64(payload, size)
    return hash64(<const char*>&mark, sizeof(Mark))


cdef uint64_t hashed_mark(uint64_t key_hash, int type, uint64_t expires, uint64_t stamp, uint64_t writer, uint64_t content_hash) noexcept nogil:
    """Return the hash of a cell from the hash of a register's payload, or of another state's encoding (its stamp and writer are 0)."""
    cdef Mark mark = Mark(key_hash, type, 0, 0, expires, stamp, writer, content_hash)
    return hash64(<const char*>&mark, sizeof(Mark))


@cython.final
cdef class Digests:
    """The 256 buckets of a stream of keys, in any order."""

    def __cinit__(self):
        memset(self.buckets, 0, sizeof(self.buckets))

    cdef void add(self, uint64_t key_hash, uint64_t cell_hash) noexcept nogil:
        """Count one key with its cell."""
        cdef Bucket* bucket = &self.buckets[bucket_at(key_hash)]
        bucket.sum += cell_hash
        bucket.count += 1

    def add_all(self, entries):
        """Count [(key, key hash, cell hash), …]."""
        for entry in entries:
            self.add(entry[1], entry[2])

    def encode(self):
        """Return the buckets as they are sent: 256 times u64 sum, u32 count."""
        cdef bytes data = PyBytes_FromStringAndSize(NULL, BUCKETS * BUCKET_BYTES)
        cdef char* place = PyBytes_AS_STRING(data)
        cdef int i
        for i in range(BUCKETS):
            memcpy(place, &self.buckets[i].sum, 8)
            memcpy(place + 8, &self.buckets[i].count, 4)
            place += BUCKET_BYTES
        return data


cdef Bucket bucket_from(const char* data, int index) noexcept nogil:
    cdef Bucket bucket
    memcpy(&bucket.sum, data + index * BUCKET_BYTES, 8)
    memcpy(&bucket.count, data + index * BUCKET_BYTES + 8, 4)
    return bucket


def bucket_of(uint64_t key_hash):
    """Return the bucket of a key, 0 to 255."""
    return bucket_at(key_hash)


def register_hash(bytes key not None, uint64_t reset, uint64_t stamp, uint64_t writer, bytes payload not None, uint64_t expires=0):
    """Return the hash of a register's cell: what `cell_hash` does from its encoding."""
    cdef uint64_t key_hash = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
    return register_mark(key_hash, reset, expires, stamp, writer, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))


def cell_hash(bytes key not None, int type, uint64_t reset, uint64_t last, bytes payload not None, uint64_t expires=0):
    """Return the hash of a cell; `payload` is the state's canonical encoding, empty for type 0: a reset alone."""
    cdef uint64_t key_hash = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
    return state_mark(key_hash, type, reset, last, expires, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))


def differing(bytes mine not None, bytes theirs not None):
    """Return [(bucket, my count, their count), …] of the buckets that differ, ascending. Raises ProtocolError for another length."""
    cdef Bucket a, b
    cdef int i
    if len(mine) != BUCKETS * BUCKET_BYTES or len(theirs) != BUCKETS * BUCKET_BYTES:
        raise ProtocolError(f"digests have {BUCKETS * BUCKET_BYTES:,} bytes, got {len(mine):,} and {len(theirs):,}")
    found = []
    for i in range(BUCKETS):
        a, b = bucket_from(mine, i), bucket_from(theirs, i)
        if a.sum != b.sum or a.count != b.count:
            found.append((i, a.count, b.count))
    return found


cdef int order_of_pairs(const void* a, const void* b) noexcept nogil:
    cdef const Pair* one = <const Pair*>a
    cdef const Pair* other = <const Pair*>b
    if one.key_hash != other.key_hash:
        return -1 if one.key_hash < other.key_hash else 1
    if one.cell_hash != other.cell_hash:
        return -1 if one.cell_hash < other.cell_hash else 1
    return 0


def encode_keys(int bucket, list entries not None):
    """Return the list of a bucket's (key hash, cell hash), sorted: u8 bucket, u32 count, the pairs."""
    cdef uint32_t count = <uint32_t>len(entries)
    cdef bytes pairs = PyBytes_FromStringAndSize(NULL, count * <Py_ssize_t>PAIR_BYTES)
    cdef Pair* place = <Pair*>PyBytes_AS_STRING(pairs)
    cdef Py_ssize_t i
    cdef char[KEYS_HEADER_BYTES] head
    for i in range(count):
        entry = entries[i]
        place[i] = Pair(entry[1], entry[2])
    qsort(place, count, PAIR_BYTES, order_of_pairs)
    head[0] = <char>bucket
    memcpy(head + 1, &count, 4)
    return PyBytes_FromStringAndSize(head, KEYS_HEADER_BYTES) + pairs


def decode_keys(bytes data not None):
    """Return (bucket, pairs) of what `encode_keys` wrote. Raises ProtocolError, also for pairs out of order or of another bucket."""
    cdef const char* place = PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data) - KEYS_HEADER_BYTES
    cdef uint32_t count
    cdef Py_ssize_t i
    cdef Pair pair, before = Pair(0, 0)
    cdef int bucket
    if size < 0:
        raise ProtocolError(f"a list of keys has at least {KEYS_HEADER_BYTES} bytes, got {len(data)}")
    memcpy(&count, place + 1, 4)
    if size != count * <Py_ssize_t>PAIR_BYTES:
        raise ProtocolError(f"a list of {count:,} keys has {count * PAIR_BYTES:,} bytes of them, got {size:,}")
    bucket = <uint8_t>place[0]
    place += KEYS_HEADER_BYTES
    for i in range(count):
        memcpy(&pair, place + i * PAIR_BYTES, PAIR_BYTES)
        if bucket_at(pair.key_hash) != bucket or order_of_pairs(&before, &pair) > 0:
            raise ProtocolError(f"key {i} of a list of {count:,} is out of order or not of bucket {bucket}")
        before = pair
    return bucket, data[KEYS_HEADER_BYTES:]


cdef bint is_listed(const char* pairs, Py_ssize_t count, Pair* sought) noexcept nogil:
    """Whether sorted pairs have this one. O(log count)."""
    cdef Py_ssize_t low = 0, high = count, middle
    cdef Pair pair
    while low < high:
        middle = (low + high) // 2
        memcpy(&pair, pairs + middle * PAIR_BYTES, PAIR_BYTES)
        if order_of_pairs(&pair, sought) < 0:
            low = middle + 1
        else:
            high = middle
    if low == count:
        return False
    memcpy(&pair, pairs + low * PAIR_BYTES, PAIR_BYTES)
    return order_of_pairs(&pair, sought) == 0


def missing(list entries not None, bytes pairs not None):
    """Return the keys of [(key, key hash, cell hash), …] that `pairs` lacks or has with another cell, in order."""
    cdef Pair sought
    cdef Py_ssize_t count = PyBytes_GET_SIZE(pairs) // PAIR_BYTES
    found = []
    for entry in entries:
        sought = Pair(entry[1], entry[2])
        if not is_listed(PyBytes_AS_STRING(pairs), count, &sought):
            found.append(entry[0])
    return found
