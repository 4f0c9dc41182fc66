from anna.kvs.closings cimport Closings


cdef class Replication(Closings):
    pass
