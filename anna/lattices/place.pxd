cdef bytes place_of(object value)
cdef bytes take_place(bytes raw, str what)
