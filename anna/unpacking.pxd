cdef object unpack(const char* data, Py_ssize_t size)
cdef object text_of(const char* data, Py_ssize_t size)
