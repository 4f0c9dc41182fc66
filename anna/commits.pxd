from libc.stdint cimport uint64_t

cpdef uint64_t guard_of(bytes transaction) except? 0
