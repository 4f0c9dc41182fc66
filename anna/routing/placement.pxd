from libc.stdint cimport int32_t, uint64_t


cdef enum:
    # Room for the owners of one key on one ring: config.OWNERS_MAX.
    OWNERS_ROOM = 16
    # Room for all who are told of a write: the owners on two rings, twice.
    SPAN_ROOM = 64


cdef struct Arcs:
    Py_ssize_t size
    int shift
    int members_count
    uint64_t* ends
    int32_t* members
    int32_t* first


cdef struct Branch:
    const Arcs* seats
    int first_worker


# One tier's ring; without nodes the pointers are NULL.
cdef struct Tier:
    int nodes
    int workers
    const Arcs* arcs
    Branch* branches


# How many owners a key has on each tier, clamped.
cdef struct Copies:
    int memory
    int disk


# An entry of the table of keys with a vector of their own; without copies it is free.
cdef struct Own:
    uint64_t position
    Copies copies


cdef class Placement:
    cdef readonly object view
    cdef readonly int workers
    cdef readonly int copies_usual
    cdef readonly int copies_most
    cdef readonly bint everywhere
    cdef bint is_one
    cdef int only
    cdef Copies usual
    cdef uint64_t own_mask
    cdef Own* own
    cdef TierOwner memory
    cdef TierOwner disk
    cdef Placement target

    cdef Copies clamped(self, vector)
    cdef int place_own(self, dict vectors) except -1
    cdef Copies copies_at(self, uint64_t position) noexcept nogil
    cdef int owner(self, const char* key, Py_ssize_t size) noexcept nogil
    cdef int owner_at(self, uint64_t position) noexcept nogil
    cdef int owners_at(self, uint64_t position, int* out) noexcept nogil
    cdef int some_at(self, uint64_t position, object count, int* out)
    cdef int span_at(self, uint64_t position, int* out) noexcept nogil
    cdef int count_at(self, uint64_t position) noexcept nogil
    cdef bint spans(self, uint64_t position, int place) noexcept nogil


cdef class TierOwner:
    cdef Tier tier
    cdef ArcsOwner arcs
    cdef list seat_arcs

    cdef int compile_seats(self, list nodes, dict index_of, int virtual_nodes) except -1


cdef class ArcsOwner:
    cdef Arcs arcs

    cdef int sort_points(self, const uint64_t* positions, const int32_t* members) except -1
