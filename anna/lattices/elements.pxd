from anna.layout cimport Reader

cdef bytes element_of(object value)
cdef set elements_of(object values)
cdef set decoded(object elements, bint allow_pickle)
cdef Py_ssize_t elements_bytes(object elements) except -1
cdef char* write_elements(char* target, object elements) except NULL
cdef bytes take_element(Reader* reader)
cdef int expect_after(bytes element, bytes last, str what) except -1
