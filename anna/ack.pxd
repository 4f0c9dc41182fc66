from libc.stdint cimport uint64_t


cdef class Ack:
    cdef readonly int replicas
    cdef readonly int durable
    cdef readonly uint64_t stamp

    @staticmethod
    cdef Ack make(int replicas, int durable, uint64_t stamp)
