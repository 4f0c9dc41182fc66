cdef enum:
    TAG_NONE = 0
    TAG_FALSE = 1
    TAG_TRUE = 2
    TAG_INT = 3
    TAG_FLOAT = 4
    TAG_STR = 5
    TAG_BYTES = 6
    TAG_PACKED = 7
    TAG_ARRAY = 8
    TAG_PICKLE = 9
    TAG_ELSEWHERE = 10

cpdef bytes encode_value(object value)
cpdef object decode_value(bytes payload, bint allow_pickle=*)
cdef object decode_buffer(const char* data, Py_ssize_t size, bint allow_pickle)
cdef bytes whole_value(const char* data, Py_ssize_t size)
cpdef bytes encode_element(object value)
