from libc.stdint cimport uint64_t


cdef class Lattice:
    cpdef Lattice copy(self)
    cpdef Lattice join(self, Lattice other)
    cpdef bint merge(self, Lattice other) except -1
    cpdef bint precedes(self, Lattice other) except -1
    cpdef bint equals(self, Lattice other) except -1
    cpdef Lattice assign(self, Lattice current, uint64_t stamp, uint64_t writer)
    cpdef object read(self, bint allow_pickle)
    cpdef bytes encode(self)

cdef int expect(Lattice state, Lattice other) except -1
