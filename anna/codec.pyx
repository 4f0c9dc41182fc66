"""Python values to bytes and back: one tag byte, then the plainest layout that gives the same type back.

The one rule: what goes in comes out with the same type, and pickle is the last resort. It is a tag of its own at the
very first byte, never nested below another tag, so anybody can see without decoding whether a value is a pickle.

    tag  value                 after the tag
    00   None                  nothing
    01   False                 nothing
    02   True                  nothing
    03   int of 64 bits        8 bytes, little-endian, two's complement
    04   float                 8 bytes, little-endian IEEE 754
    05   str                   UTF-8 (lone surrogates as in WTF-8)
    06   bytes                 the bytes
    07   containers and more   MessagePack, with extension types (`anna.packing`)
    08   numpy array, scalar   dtype, shape, C-ordered items (`anna.arrays`)
    09   anything else         pickle, protocol 5; or 63 zeros, and a pickle with its large buffers beside it (`anna.beside`)
    0a   a value elsewhere     where on this machine it is, for whoever was told how to open it

Encodings are canonical for hashable values: values of the same types that are equal encode equally, under any hash
seed. Types are told apart: `1`, `1.0` and `True` are three encodings although Python calls them equal; so are `0.0`
and `-0.0`, and `Decimal("1.0")` and `Decimal("1.00")`. Pickles are canonical for nobody, so `encode_element` refuses
them. Tag 0a is never stored and never encoded here: a cache that shares memory with its clients answers with it in place of
a large value (`open_elsewhere_with`).
"""

from cpython.bool cimport PyBool_Check
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from anna.packing cimport pack, text_bytes
from anna.unpacking cimport text_of, unpack

import sys

from anna.beside import Parts, keeper, split
from anna.errors import NeedsPickle, NotSerializable, ProtocolError

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    void* PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    object PyMemoryView_FromMemory(char* data, Py_ssize_t size, int flags)
    int PyBUF_READ

cdef object elsewhere = None

cdef enum:
    # What is after the tag before a pickle with buffers: zeros, so that they are aligned where the encoding is. A pickle begins with 80.
    BESIDE_AT = 63

cdef bytes ENCODED_NONE = b"\x00"
cdef bytes ENCODED_FALSE = b"\x01"
cdef bytes ENCODED_TRUE = b"\x02"


cpdef bytes encode_value(object value):
    """Return the encoding of any Python value. Raises NotSerializable, naming the type, when there is none."""
    cdef int overflow = 0
    cdef int64_t number
    cdef double real
    cdef bytes raw
    if PyUnicode_CheckExact(value):
        if PyUnicode_IS_COMPACT_ASCII(value):
            return _tagged(TAG_STR, <const char*>PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value))
        raw = text_bytes(value)
        return _tagged(TAG_STR, PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))
    if PyBytes_CheckExact(value):
        return _tagged(TAG_BYTES, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    if PyLong_CheckExact(value):
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if not overflow:
            return _tagged(TAG_INT, <const char*>&number, 8)
    elif PyFloat_CheckExact(value):
        real = PyFloat_AS_DOUBLE(value)
        return _tagged(TAG_FLOAT, <const char*>&real, 8)
    elif value is None:
        return ENCODED_NONE
    elif PyBool_Check(value):
        return ENCODED_TRUE if value is True else ENCODED_FALSE
    return _encode_rest(value)


cpdef object decode_value(bytes payload, bint allow_pickle=True):
    """Return the value that `encode_value` wrote.

    Raises NeedsPickle for a pickle unless `allow_pickle`, and ProtocolError for bytes that are no encoding. Accepts any
    valid MessagePack after tag 07, so that a client in another language need not find the shortest form.
    """
    return decode_buffer(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), allow_pickle)


cdef object decode_buffer(const char* data, Py_ssize_t size, bint allow_pickle):
    """`decode_value` of `size` bytes at `data`, which need not outlive the call."""
    cdef int64_t number
    cdef double real
    cdef int tag
    if size < 1:
        raise ProtocolError("a value has at least its tag byte, got 0 bytes")
    tag = <unsigned char>data[0]
    data += 1
    size -= 1
    if tag == TAG_STR:
        return text_of(data, size)
    if tag == TAG_BYTES:
        return PyBytes_FromStringAndSize(data, size)
    if tag == TAG_PACKED:
        return unpack(data, size)
    if tag == TAG_INT:
        _expect_size(size, 8, "an int")
        memcpy(&number, data, 8)
        return number
    if tag == TAG_FLOAT:
        _expect_size(size, 8, "a float")
        memcpy(&real, data, 8)
        return real
    if tag == TAG_ARRAY:
        from anna.arrays import decode_array
        return decode_array(PyMemoryView_FromMemory(<char*>data, size, PyBUF_READ))
    if tag == TAG_PICKLE:
        if not allow_pickle:
            raise NeedsPickle(f"the value is a pickle of {size:,} bytes, and this client was told allow_pickle=False")
        if size >= BESIDE_AT and data[0] == 0:
            return _unpickled_beside(PyMemoryView_FromMemory(<char*>data + BESIDE_AT, size - BESIDE_AT, PyBUF_READ))
        return _unpickled(data[:size])
    if tag == TAG_ELSEWHERE and elsewhere is not None:
        return elsewhere.value(data[:size], allow_pickle)
    if tag > TAG_PICKLE:
        raise ProtocolError(f"{tag:#04x} is no value tag; the last is {TAG_PICKLE:#04x}")
    _expect_size(size, 0, "None, False or True")
    return None if tag == TAG_NONE else tag == TAG_TRUE


def open_elsewhere_with(opener):
    """Let `opener` open values that lie elsewhere in this process from now on; return the one that did, None for none.

    `opener.value(where, allow_pickle)` returns the value that the bytes `where` lead to, `opener.encoded(where)` its encoding.
    """
    global elsewhere
    before, elsewhere = elsewhere, opener
    return before


cdef bytes whole_value(const char* data, Py_ssize_t size):
    """Return an encoded value that may lie elsewhere as one that does not."""
    if size > 0 and data[0] == TAG_ELSEWHERE and elsewhere is not None:
        return elsewhere.encoded(data[1:size])
    return data[:size]


cpdef bytes encode_element(object value):
    """Return the encoding of a value that may be an element of a set or key of a map: hashable, its encoding canonical.

    Raises TypeError when it is unhashable, and NotSerializable when only pickle could carry it: two pickles of equal
    objects may differ, so a removal could miss what was added.
    """
    cdef bytes encoded
    if not (PyUnicode_CheckExact(value) or PyBytes_CheckExact(value)):
        hash(value)
    encoded = encode_value(value)
    if PyBytes_AS_STRING(encoded)[0] == TAG_PICKLE:
        raise NotSerializable(
            f"an element or key needs an encoding that equal values share; a {_type_name(value)} has only a pickle"
        )
    return encoded


cdef bytes _tagged(int tag, const char* body, Py_ssize_t size):
    cdef bytes result = PyBytes_FromStringAndSize(NULL, 1 + size)
    cdef char* target = PyBytes_AS_STRING(result)
    target[0] = <char>tag
    memcpy(target + 1, body, size)
    return result


cdef int _expect_size(Py_ssize_t size, Py_ssize_t wanted, str what) except -1:
    if size != wanted:
        raise ProtocolError(f"{what} has {wanted} bytes after its tag, got {size:,}")
    return 0


cdef bytes _encode_rest(object value):
    """Containers, arrays, and what only pickle can carry."""
    cdef bytes packed
    if "numpy" in sys.modules and type(value).__module__ == "numpy":
        from anna.arrays import encode_array
        packed = encode_array(value)
        if packed is not None:
            return _tagged(TAG_ARRAY, PyBytes_AS_STRING(packed), PyBytes_GET_SIZE(packed))
    packed = pack(value, TAG_PACKED)
    return packed if packed is not None else _pickled(value)


cdef bytes _pickled(object value):
    """Pickle as the interpreter does when that is enough; by value (cloudpickle) what another process cannot import."""
    import pickle
    cdef bytes plain = None
    cdef list buffers = []
    try:
        if not _registered_by_value():
            plain = pickle.dumps(value, 5, buffer_callback=keeper(buffers))
    except Exception:  # the value's own code may raise anything; cloudpickle may know another way
        plain = None
    if plain is not None and b"__main__" not in plain:
        return _laid_out(plain, buffers)
    import cloudpickle
    buffers.clear()
    try:
        plain = cloudpickle.dumps(value, 5, buffer_callback=keeper(buffers))
    except Exception as error:  # the value's own code may raise anything
        raise NotSerializable(f"a value of type {_type_name(value)} has no encoding: {error}") from error
    return _laid_out(plain, buffers)


cdef bytes _laid_out(bytes pickled, list buffers):
    """Return a pickle's encoding, with the large buffers that it leaves out beside it."""
    if not buffers:
        return _tagged(TAG_PICKLE, PyBytes_AS_STRING(pickled), PyBytes_GET_SIZE(pickled))
    return b"".join((bytes((TAG_PICKLE,)), bytes(BESIDE_AT), *Parts(pickled, buffers).pieces()))


cdef object _unpickled_beside(data):
    """Return a value that may be changed: each of its buffers is a copy. Whoever has the bytes to keep can open them in place."""
    pickled, buffers = split(data)
    return _unpickled(bytes(pickled), [bytearray(buffer) for buffer in buffers])


cdef bint _registered_by_value() except -1:
    """Whether the user told cloudpickle to send some module's code along."""
    module = sys.modules.get("cloudpickle")
    return module is not None and len(module.list_registry_pickle_by_value()) > 0


cdef object _unpickled(bytes data, buffers=None):
    import pickle
    try:
        return pickle.loads(data, buffers=buffers)
    except (pickle.UnpicklingError, EOFError) as error:
        raise ProtocolError(f"{len(data):,} bytes are not a pickle: {error}") from error
    except Exception as error:  # so may what it is made by
        raise NotSerializable(f"a pickle cannot be loaded here: {type(error).__name__}: {error}") from error


cdef str _type_name(object value):
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
