cpdef bytes order_key(object value)
cpdef object from_order_key(bytes key)
cdef int check_order_key(bytes key) except -1
