"""MessagePack with strict types: containers that come out as the types that went in.

The one rule: no type is quietly turned into a relative. The `msgpack` library writes a bytearray as bytes, a tuple as
an array and refuses sets, so this is a writer of our own, and `anna.unpacking` the reader: one pass, no calls into Python, bounds
checked. What MessagePack lacks is an extension type, whose content is MessagePack again or the bytes named here:

    1 tuple       an array            6 bytearray   the bytes             10 timedelta   days, seconds, µs: 3 × i32
    2 set         a sorted array      7 datetime    fold digit, ISO 8601  11 Decimal     text
    3 frozenset   a sorted array      8 date        ISO 8601              12 UUID        16 bytes
    4 int         two's complement    9 time        fold digit, ISO 8601  13 array       `anna.arrays`
    5 complex     two f64

Numbers outside MessagePack are little-endian, but 4 is big-endian as MessagePack is. The writer uses the shortest
form of everything, and sorts sets by the encodings of their elements. The reader takes any form. Lists, tuples and
dicts nest up to `DEPTH_MAX`. Source: the MessagePack specification, msgpack/spec.md.
"""

from cpython.bool cimport PyBool_Check
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_CheckExact
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.list cimport PyList_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from cpython.tuple cimport PyTuple_CheckExact
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport INT16_MIN, INT32_MIN, INT8_MIN, int64_t, uint64_t
from libc.string cimport memcpy, memmove

from anna.scalars import pack_scalar

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    void* PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    PyObject* PyBytes_FromStringAndSizePointer "PyBytes_FromStringAndSize"(const char* data, Py_ssize_t size) except NULL
    char* PyBytes_AS_STRING_Pointer "PyBytes_AS_STRING"(PyObject* data)
    int _PyBytes_Resize(PyObject** data, Py_ssize_t size) except -1

cdef enum:
    FIRST_BYTES = 128


cdef class NotPackable(Exception):
    """The value holds something that MessagePack cannot carry as it is; the codec then pickles the whole."""


cdef struct Writer:
    PyObject* data
    Py_ssize_t size
    Py_ssize_t capacity


cdef bytes pack(object value, int prefix):
    """Return the byte `prefix`, then `value` packed; None when some part of it has no packed form."""
    cdef Writer writer
    writer.data = PyBytes_FromStringAndSizePointer(NULL, FIRST_BYTES)
    writer.size = 0
    writer.capacity = FIRST_BYTES
    try:
        _byte(&writer, prefix)
        _pack(&writer, value, 0)
        _PyBytes_Resize(&writer.data, writer.size)
        return <bytes>writer.data
    except NotPackable:
        return None
    finally:
        Py_XDECREF(writer.data)


cdef bytes text_bytes(str text):
    """Return the UTF-8 of any text, lone surrogates included."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


cdef char* _grow(Writer* writer, Py_ssize_t extra) except NULL:
    """Make room for `extra` bytes, count them as written, and return where they go."""
    cdef Py_ssize_t needed = writer.size + extra
    cdef char* target
    if needed > writer.capacity:
        writer.capacity = max(needed, writer.capacity + (writer.capacity >> 1))
        _PyBytes_Resize(&writer.data, writer.capacity)
    target = PyBytes_AS_STRING_Pointer(writer.data) + writer.size
    writer.size = needed
    return target


cdef int _byte(Writer* writer, int byte) except -1:
    _grow(writer, 1)[0] = <char>byte
    return 0


cdef int _bytes(Writer* writer, const char* data, Py_ssize_t size) except -1:
    memcpy(_grow(writer, size), data, size)
    return 0


cdef int _sized(Writer* writer, int byte, uint64_t number, int width) except -1:
    """Write a type byte, then `number` in `width` bytes, big-endian."""
    cdef char* target = _grow(writer, 1 + width)
    cdef uint64_t big = big64(number)
    target[0] = <char>byte
    memcpy(target + 1, <char*>&big + 8 - width, width)
    return 0


cdef int _count(Writer* writer, Py_ssize_t count, int fix, int fix_max, int of8, int of16) except -1:
    """Write the shortest header for a length: `fix` has it in its one byte, `of8` (if any) and `of16` in 1, 2 or 4 more."""
    if count <= fix_max:
        return _byte(writer, fix | <int>count)
    if of8 and count <= 0xFF:
        return _sized(writer, of8, count, 1)
    if count <= 0xFFFF:
        return _sized(writer, of16, count, 2)
    if count <= 0xFFFFFFFF:
        return _sized(writer, of16 + 1, count, 4)
    raise NotPackable()


cdef int _pack(Writer* writer, object value, int depth) except -1:
    cdef double real
    cdef uint64_t bits
    if PyUnicode_CheckExact(value):
        return _pack_text(writer, value)
    if PyLong_CheckExact(value):
        return _pack_int(writer, value)
    if PyFloat_CheckExact(value):
        real = PyFloat_AS_DOUBLE(value)
        memcpy(&bits, &real, 8)
        return _sized(writer, 0xCB, bits, 8)
    if value is None:
        return _byte(writer, 0xC0)
    if PyBool_Check(value):
        return _byte(writer, 0xC3 if value is True else 0xC2)
    if PyBytes_CheckExact(value):
        _count(writer, PyBytes_GET_SIZE(value), 0, -1, 0xC4, 0xC5)
        return _bytes(writer, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    if depth >= DEPTH_MAX:
        raise NotPackable()
    return _pack_container(writer, value, depth + 1)


cdef int _pack_text(Writer* writer, str text) except -1:
    cdef bytes raw
    cdef Py_ssize_t size
    if PyUnicode_IS_COMPACT_ASCII(text):
        size = PyUnicode_GET_LENGTH(text)
        _count(writer, size, 0xA0, 31, 0xD9, 0xDA)
        return _bytes(writer, <const char*>PyUnicode_DATA(text), size)
    raw = text_bytes(text)
    _count(writer, PyBytes_GET_SIZE(raw), 0xA0, 31, 0xD9, 0xDA)
    return _bytes(writer, PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))


cdef int _pack_int(Writer* writer, object value) except -1:
    cdef int overflow = 0
    cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        return _pack_wide_int(writer, value)
    if number >= 0:
        if number < 0x80:
            return _byte(writer, <int>number)
        if number <= 0xFF:
            return _sized(writer, 0xCC, number, 1)
        if number <= 0xFFFF:
            return _sized(writer, 0xCD, number, 2)
        if number <= 0xFFFFFFFF:
            return _sized(writer, 0xCE, number, 4)
        return _sized(writer, 0xCF, number, 8)
    if number >= -32:
        return _byte(writer, <int>number & 0xFF)
    if number >= INT8_MIN:
        return _sized(writer, 0xD0, <uint64_t>number, 1)
    if number >= INT16_MIN:
        return _sized(writer, 0xD1, <uint64_t>number, 2)
    if number >= INT32_MIN:
        return _sized(writer, 0xD2, <uint64_t>number, 4)
    return _sized(writer, 0xD3, <uint64_t>number, 8)


cdef int _pack_wide_int(Writer* writer, object value) except -1:
    cdef bytes raw
    if 0 <= value < (1 << 64):
        return _sized(writer, 0xCF, <uint64_t>value, 8)
    raw = value.to_bytes(wide_int_bytes(value), "big", signed=True)
    _ext_header(writer, EXT_INT, PyBytes_GET_SIZE(raw))
    return _bytes(writer, PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))


cdef Py_ssize_t wide_int_bytes(object value) except -1:
    """The fewest bytes of two's complement that hold `value`."""
    return ((value if value >= 0 else ~value).bit_length() + 8) // 8


cdef int _pack_container(Writer* writer, object value, int depth) except -1:
    cdef Py_ssize_t start
    cdef bytes raw
    if PyList_CheckExact(value):
        return _pack_array(writer, value, len(value), depth)
    if PyDict_CheckExact(value):
        _count(writer, len(value), 0x80, 15, 0, 0xDE)
        for key, item in (<dict>value).items():
            _pack(writer, key, depth)
            _pack(writer, item, depth)
        return 0
    start = writer.size
    if PyTuple_CheckExact(value):
        _grow(writer, 6)
        _pack_array(writer, value, len(value), depth)
        return _close_ext(writer, EXT_TUPLE, start)
    if type(value) is set or type(value) is frozenset:
        _grow(writer, 6)
        _pack_set(writer, value, depth)
        return _close_ext(writer, EXT_SET if type(value) is set else EXT_FROZENSET, start)
    packed = pack_scalar(value)
    if packed is None:
        raise NotPackable()
    raw = packed[1]
    _ext_header(writer, packed[0], PyBytes_GET_SIZE(raw))
    return _bytes(writer, PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))


cdef int _pack_array(Writer* writer, object items, Py_ssize_t count, int depth) except -1:
    """Write `count` items; a list that another thread changes meanwhile is refused, not written wrongly."""
    cdef Py_ssize_t written = 0
    _count(writer, count, 0x90, 15, 0, 0xDC)
    for item in items:
        _pack(writer, item, depth)
        written += 1
    if written != count:
        raise RuntimeError(f"a list changed its length from {count} to {written} while it was encoded")
    return 0


cdef int _pack_set(Writer* writer, object items, int depth) except -1:
    cdef Writer element
    cdef list encoded = []
    cdef bytes raw
    element.data = PyBytes_FromStringAndSizePointer(NULL, FIRST_BYTES)
    element.capacity = FIRST_BYTES
    try:
        for item in items:
            element.size = 0
            _pack(&element, item, depth)
            encoded.append(PyBytes_FromStringAndSize(PyBytes_AS_STRING_Pointer(element.data), element.size))
    finally:
        Py_XDECREF(element.data)
    encoded.sort()
    _count(writer, len(encoded), 0x90, 15, 0, 0xDC)
    for raw in encoded:
        _bytes(writer, PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))
    return 0


cdef int _ext_header(Writer* writer, int code, Py_ssize_t size) except -1:
    if size == 1 or size == 2 or size == 4 or size == 8 or size == 16:
        _byte(writer, 0xD4 + (0 if size == 1 else 1 if size == 2 else 2 if size == 4 else 3 if size == 8 else 4))
    else:
        _count(writer, size, 0, -1, 0xC7, 0xC8)
    return _byte(writer, code)


cdef int _close_ext(Writer* writer, int code, Py_ssize_t start) except -1:
    """Put the shortest header before the content, for which 6 bytes were kept at `start`."""
    cdef Py_ssize_t end = writer.size
    cdef Py_ssize_t size = end - start - 6
    cdef Py_ssize_t header
    cdef char* base
    writer.size = start
    _ext_header(writer, code, size)
    header = writer.size - start
    base = PyBytes_AS_STRING_Pointer(writer.data) + start
    memmove(base + header, base + 6, size)
    writer.size += size
    return 0
