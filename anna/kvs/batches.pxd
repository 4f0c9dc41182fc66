from libc.stdint cimport uint32_t

from anna.kvs.operations cimport Operations
from anna.wire cimport RequestHeader


cdef class Batches(Operations):
    cdef int multi_get(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
    cdef int multi_get_item(self, const char* key, Py_ssize_t key_bytes, int flags) except -1
    cdef int absent_item(self, const char* key, Py_ssize_t key_bytes) except -1
    cdef int multi_put(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1


cdef uint32_t batch_count(const char* payload, Py_ssize_t size) except? 0xFFFFFFFF
cdef int check_put_items(const char* place, const char* end, uint32_t count, int flags) except -1
