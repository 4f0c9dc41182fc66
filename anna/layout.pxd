from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcpy


cdef struct Reader:
    const char* start
    const char* next
    const char* end


cdef int run_short(Reader* reader, uint64_t size) except -1
cdef int expect_end(Reader* reader, str what) except -1
cdef uint64_t take_varint(Reader* reader) except? 0xFFFFFFFFFFFFFFFF
cdef bytes varint(uint64_t number)
cdef bytes sized(bytes data)


cdef inline Reader reader_of(bytes data) noexcept:
    cdef Reader reader
    reader.start = reader.next = PyBytes_AS_STRING(data)
    reader.end = reader.start + PyBytes_GET_SIZE(data)
    return reader


cdef inline const char* take(Reader* reader, uint64_t size) except NULL:
    """Step over `size` bytes and return where they begin. Raises ProtocolError when fewer are left."""
    cdef const char* taken = reader.next
    if size > <uint64_t>(reader.end - taken):
        run_short(reader, size)
        return NULL
    reader.next = taken + size
    return taken


cdef inline bytes take_sized(Reader* reader):
    """Return the bytes that follow their own length."""
    cdef uint64_t size = take_varint(reader)
    cdef const char* data = take(reader, size)
    return PyBytes_FromStringAndSize(data, size)


cdef inline int varint_bytes(uint64_t number) noexcept nogil:
    cdef int size = 1
    while number >= 0x80:
        number >>= 7
        size += 1
    return size


cdef inline Py_ssize_t sized_bytes(bytes data) noexcept:
    """How many bytes `write_sized` writes."""
    return varint_bytes(PyBytes_GET_SIZE(data)) + PyBytes_GET_SIZE(data)


cdef inline char* write_varint(char* target, uint64_t number) noexcept nogil:
    while number >= 0x80:
        target[0] = <char>(number & 0x7F | 0x80)
        number >>= 7
        target += 1
    target[0] = <char>number
    return target + 1


cdef inline char* write_sized(char* target, bytes data) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    target = write_varint(target, size)
    memcpy(target, PyBytes_AS_STRING(data), size)
    return target + size
