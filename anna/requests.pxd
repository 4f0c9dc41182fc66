from libc.stdint cimport uint32_t, uint64_t

from anna.buffer cimport Buffer
from anna.wire cimport ReplyHeader, RequestHeader


cdef const char* key_view(object key, Py_ssize_t* size, bint system) except NULL
cdef bytes key_bytes(object key, bint system)

cdef Py_ssize_t check_reply(ReplyHeader* head) except -1
cdef int mark(RequestHeader* head, uint64_t strict, int ack) except -1


cdef class Requests:
    cdef readonly uint64_t seen
    cdef readonly bint allow_pickle
    cdef readonly bint system
    cdef uint32_t last_request
    cdef int ack

    cdef uint32_t write_conditional_put(self, Buffer out, const char* key, Py_ssize_t key_bytes, object value, object ttl, object if_stamp) except 0
    cdef uint32_t write_request(self, Buffer out, int op, int type, const char* key, Py_ssize_t key_bytes, const char* payload, Py_ssize_t payload_bytes) except 0
    cdef uint32_t write_put(self, Buffer out, const char* key, Py_ssize_t key_bytes, object value) except 0
    cdef uint32_t write_put_head(self, Buffer out, const char* key, Py_ssize_t key_bytes, bytes value) except 0
    cdef uint32_t write_multi_get(self, Buffer out, list keys, bytes snapshot=*) except 0
    cdef uint32_t write_multi_put(self, Buffer out, list keys, list values) except 0
    cdef object value_of(self, int type, const char* payload, Py_ssize_t size)
    cdef object lattice_of(self, int type, const char* payload, Py_ssize_t size)
    cdef object error(self, int status, const char* payload, Py_ssize_t size)
    cdef list read_multi_get(self, const char* payload, Py_ssize_t size, list keys, object default, list misplaced, bint lattices=*)


cdef class Replies:
    cdef Buffer pending
    cdef readonly uint32_t stable
