"""MessagePack with strict types, read: what `anna.packing` writes, and any other form of the same.

The one rule: a value comes out as the type that went in, or there is a ProtocolError; nothing is read beyond the bytes that are there. Any form
is taken, not the shortest alone.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_Clear
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from anna.layout cimport Reader, expect_end, take
from anna.packing cimport *

from anna.errors import ProtocolError
from anna.scalars import unpack_scalar

cdef extern from "Python.h":
    void* PyUnicode_DATA(object text)
    object PyUnicode_New(Py_ssize_t size, unsigned int greatest)
    int PyDict_SetItem(object items, object key, object item)


cdef object unpack(const char* data, Py_ssize_t size):
    """Return the value packed in exactly `size` bytes at `data`. Raises ProtocolError on anything else."""
    cdef Reader reader
    reader.start = reader.next = data
    reader.end = data + size
    value = _unpack(&reader, 0)
    expect_end(&reader, "a packed value")
    return value


cdef uint64_t _number(Reader* reader, int width) except? 0xFFFFFFFFFFFFFFFF:
    cdef uint64_t big = 0
    memcpy(<char*>&big + 8 - width, take(reader, width), width)
    return big64(big)


cdef object _unpack(Reader* reader, int depth):
    cdef int byte = <unsigned char>take(reader, 1)[0]
    if byte < 0x80:
        return byte
    if byte >= 0xE0:
        return byte - 0x100
    if byte < 0x90:
        return _unpack_dict(reader, byte & 0x0F, depth + 1)
    if byte < 0xA0:
        return _unpack_list(reader, byte & 0x0F, depth + 1)
    if byte < 0xC0:
        return text_of(take(reader, byte & 0x1F), byte & 0x1F)
    if byte == 0xC0:
        return None
    if byte == 0xC1:
        raise ProtocolError(f"byte {reader.next - reader.start - 1:,} of a packed value is 0xc1, which is never used")
    if byte <= 0xC3:
        return byte == 0xC3
    return _unpack_sized(reader, byte, depth)


cdef object _unpack_sized(Reader* reader, int byte, int depth):
    cdef uint64_t size
    if byte <= 0xC6:
        size = _number(reader, 1 << (byte - 0xC4))
        return PyBytes_FromStringAndSize(take(reader, size), size)
    if byte <= 0xC9:
        return _unpack_ext(reader, _number(reader, 1 << (byte - 0xC7)), depth + 1)
    if byte <= 0xCB:
        return _unpack_float(reader, byte)
    if byte <= 0xCF:
        return _number(reader, 1 << (byte - 0xCC))
    if byte == 0xD0:
        return <int8_t>_number(reader, 1)
    if byte == 0xD1:
        return <int16_t>_number(reader, 2)
    if byte == 0xD2:
        return <int32_t>_number(reader, 4)
    if byte == 0xD3:
        return <int64_t>_number(reader, 8)
    if byte <= 0xD8:
        return _unpack_ext(reader, 1 << (byte - 0xD4), depth + 1)
    if byte <= 0xDB:
        size = _number(reader, 1 << (byte - 0xD9))
        return text_of(take(reader, size), size)
    if byte <= 0xDD:
        return _unpack_list(reader, _number(reader, 2 << (byte - 0xDC)), depth + 1)
    return _unpack_dict(reader, _number(reader, 2 << (byte - 0xDE)), depth + 1)


cdef object _unpack_float(Reader* reader, int byte):
    cdef uint64_t bits
    cdef uint32_t bits32
    cdef double real
    cdef float real32
    if byte == 0xCA:
        bits32 = <uint32_t>_number(reader, 4)
        memcpy(&real32, &bits32, 4)
        return <double>real32
    bits = _number(reader, 8)
    memcpy(&real, &bits, 8)
    return real


cdef int _enter(Reader* reader, uint64_t items, int depth) except -1:
    """Refuse a depth that would exhaust the stack, and a count that would allocate more than the bytes can hold."""
    if depth > DEPTH_MAX:
        raise ProtocolError(f"a packed value nests more than {DEPTH_MAX} deep")
    if items > <uint64_t>(reader.end - reader.next):
        raise ProtocolError(f"a packed container of {items:,} items has {reader.end - reader.next:,} bytes left")
    return 0


cdef object _unpack_list(Reader* reader, uint64_t count, int depth):
    cdef list items = []
    cdef Py_ssize_t i
    _enter(reader, count, depth)
    for i in range(<Py_ssize_t>count):
        items.append(_unpack(reader, depth))
    return items


cdef object _unpack_tuple(Reader* reader, int depth):
    cdef uint64_t count = _array_count(reader)
    _enter(reader, count, depth)
    cdef tuple items = PyTuple_New(count)
    cdef Py_ssize_t i
    for i in range(<Py_ssize_t>count):
        item = _unpack(reader, depth)
        Py_INCREF(item)
        PyTuple_SET_ITEM(items, i, item)
    return items


cdef uint64_t _array_count(Reader* reader) except? 0xFFFFFFFFFFFFFFFF:
    """Read the header of an array, which is the content of tuples and sets."""
    cdef int byte = <unsigned char>take(reader, 1)[0]
    if 0x90 <= byte < 0xA0:
        return byte & 0x0F
    if byte == 0xDC or byte == 0xDD:
        return _number(reader, 2 << (byte - 0xDC))
    raise ProtocolError(f"a tuple or set begins with the header of an array, got {byte:#04x}")


cdef object _unpack_dict(Reader* reader, uint64_t count, int depth):
    cdef dict items = {}
    cdef Py_ssize_t i
    _enter(reader, 2 * count, depth)
    for i in range(<Py_ssize_t>count):
        key = _unpack(reader, depth)
        item = _unpack(reader, depth)
        if PyDict_SetItem(items, key, item) < 0:
            _refuse_key(key)
    return items


cdef int _refuse_key(object key) except -1:
    """PyDict_SetItem has failed: the key cannot be hashed."""
    PyErr_Clear()
    raise ProtocolError(f"a {type(key).__name__} cannot be the key of a dict")


cdef object _unpack_ext(Reader* reader, uint64_t size, int depth):
    cdef int code = <int8_t>take(reader, 1)[0]
    cdef const char* data = take(reader, size)
    cdef Reader inner
    inner.start = inner.next = data
    inner.end = data + size
    if code == EXT_INT:
        return _unpack_int(data[:size])
    if code > EXT_INT or code < EXT_TUPLE:
        return unpack_scalar(code, data[:size])
    value = _unpack_tuple(&inner, depth)
    expect_end(&inner, "a tuple or set")
    if code == EXT_TUPLE:
        return value
    try:
        return set(value) if code == EXT_SET else frozenset(value)
    except TypeError:
        raise ProtocolError("a set holds an item that cannot be hashed") from None


cdef object _unpack_int(bytes raw):
    value = int.from_bytes(raw, "big", signed=True)
    if -(1 << 63) <= value < (1 << 64) or wide_int_bytes(value) != PyBytes_GET_SIZE(raw):
        raise ProtocolError(f"an int in {len(raw):,} bytes has a shorter form")
    return value


cdef object text_of(const char* data, Py_ssize_t size):
    """Return the text of some UTF-8. Raises ProtocolError when it is none. ASCII, the common case, is one copy."""
    cdef object text
    if not _is_ascii(data, size):
        return _wide_text_of(data, size)
    text = PyUnicode_New(size, 127)
    memcpy(PyUnicode_DATA(text), data, size)
    return text


cdef bint _is_ascii(const char* data, Py_ssize_t size) noexcept nogil:
    cdef uint64_t eight, seen = 0
    cdef Py_ssize_t i
    for i in range(0, size - 7, 8):
        memcpy(&eight, data + i, 8)
        seen |= eight
    for i in range(size & ~7, size):
        seen |= <unsigned char>data[i]
    return (seen & 0x8080808080808080ULL) == 0


cdef object _wide_text_of(const char* data, Py_ssize_t size):
    try:
        return PyUnicode_DecodeUTF8(data, size, "surrogatepass")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"a text of {size:,} bytes is not UTF-8 at byte {error.start:,}") from None


# Writing ------------------------------------------------------------------------------------------------------------
