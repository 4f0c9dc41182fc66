from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef enum:
    DEPTH_MAX = 256
    EXT_TUPLE = 1
    EXT_SET = 2
    EXT_FROZENSET = 3
    EXT_INT = 4

cdef extern from *:
    """
    #if defined(__GNUC__)
    #define big16(x) __builtin_bswap16(x)
    #define big32(x) __builtin_bswap32(x)
    #define big64(x) __builtin_bswap64(x)
    #endif
    """
    uint16_t big16(uint16_t number)
    uint32_t big32(uint32_t number)
    uint64_t big64(uint64_t number)


cdef bytes pack(object value, int prefix)
cdef bytes text_bytes(str text)
cdef Py_ssize_t wide_int_bytes(object value) except -1
