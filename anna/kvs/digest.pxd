from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    BUCKETS = 256


cdef struct Bucket:
    uint64_t sum
    uint32_t count


cdef class Digests:
    cdef Bucket buckets[BUCKETS]

    cdef void add(self, uint64_t key_hash, uint64_t cell_hash) noexcept nogil


cdef int bucket_at(uint64_t key_hash) noexcept nogil
cdef uint64_t register_mark(uint64_t key_hash, uint64_t reset, uint64_t expires, uint64_t stamp, uint64_t writer, const char* payload, Py_ssize_t size) noexcept nogil
cdef uint64_t state_mark(uint64_t key_hash, int type, uint64_t reset, uint64_t last, uint64_t expires, const char* payload, Py_ssize_t size) noexcept nogil

cdef uint64_t hashed_mark(uint64_t key_hash, int type, uint64_t expires, uint64_t stamp, uint64_t writer, uint64_t content_hash) noexcept nogil
