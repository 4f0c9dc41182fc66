from libc.stdint cimport int32_t, uint64_t


cdef struct Arcs:
    Py_ssize_t size
    int shift
    uint64_t* ends
    int32_t* members
    int32_t* first


cdef struct Branch:
    const Arcs* seats
    int first_worker


cdef class Placement:
    cdef readonly object view
    cdef readonly int workers
    cdef int nodes
    cdef ArcsOwner node_arcs
    cdef list seat_arcs
    cdef Branch* branches

    cdef list compile_seats(self, object ring)
    cdef int owner(self, const char* key, Py_ssize_t size) noexcept nogil
    cdef int owner_at(self, uint64_t position) noexcept nogil


cdef class ArcsOwner:
    cdef Arcs arcs
