cdef bytes pack(object value, int prefix)
cdef object unpack(const char* data, Py_ssize_t size)
cdef bytes text_bytes(str text)
cdef object text_of(const char* data, Py_ssize_t size)
