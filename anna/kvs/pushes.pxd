from anna.kvs.held cimport Held


cdef class Pushes(Held):
    cdef dict subscribers
    cdef set changed

    cdef bint push(self, bytes key) except -1
    cdef int note(self, const char* key, Py_ssize_t key_bytes) except -1
