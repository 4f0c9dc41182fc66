from libc.stdint cimport int32_t, uint64_t


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


cdef class Placement:
    cdef readonly object view
    cdef readonly int workers
    cdef int only
    cdef int nodes
    cdef ArcsOwner node_arcs
    cdef list seat_arcs
    cdef Branch* branches
    cdef Placement target

    cdef list compile_seats(self, tuple nodes, int virtual_nodes)
    cdef int owner(self, const char* key, Py_ssize_t size) noexcept nogil
    cdef int owner_at(self, uint64_t position) noexcept nogil
    cdef int owners_at(self, uint64_t position, int count, int* out) noexcept nogil
    cdef int owners_of_few_nodes(self, uint64_t entry, int count, const int* nodes, int* out) noexcept nogil
    cdef int span_at(self, uint64_t position, int count, int* out) noexcept nogil


cdef class ArcsOwner:
    cdef Arcs arcs

    cdef int sort_points(self, const uint64_t* positions, const int32_t* members) except -1
