from libc.stdint cimport uint64_t

from anna.kvs.batches cimport Batches
from anna.wire cimport RequestHeader


cdef class Scans(Batches):
    cdef readonly uint64_t scans

    cdef int scan(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1
    cdef int backup(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
