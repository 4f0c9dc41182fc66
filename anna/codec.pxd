cpdef bytes encode_value(object value)
cpdef object decode_value(bytes payload, bint allow_pickle=*)
cdef object decode_buffer(const char* data, Py_ssize_t size, bint allow_pickle)
cpdef bytes encode_element(object value)
