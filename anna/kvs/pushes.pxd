from anna.kvs.answers cimport Connection
from anna.kvs.held cimport Held


cdef class Pushes(Held):
    cdef dict subscribers
    cdef set changed

    cdef int send_behind(self, Connection connection, object data, list pushes) except -1
    cdef bint push(self, bytes key) except -1
    cdef int note(self, const char* key, Py_ssize_t key_bytes) except -1
