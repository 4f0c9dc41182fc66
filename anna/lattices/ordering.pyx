"""Values as bytes whose order is the values' order, so that stores compare and range over them without decoding.

The one rule: `order_key(a) < order_key(b)`, as memcmp has it, exactly when a sorts before b, and two keys are equal
only for the same value of the same type. The order is total: None < numbers < str < bytes < tuples. Numbers (bool,
int, float) are compared exactly, by value, infinities included: 2**53 < 2**53 + 1 < float(2**53 + 2); at a tie bool <
int < float. NaN has no place and is refused, -0.0 is 0.0. Text is compared by code points, bytes by bytes, tuples
elementwise, a prefix first. One byte tells the kind:

    08 None                         12 zero                       20 str: UTF-8, a zero as 00 ff, then 00
    10 minus infinity               13 positive: magnitude        28 bytes: a zero as 00 ff, then 00
    11 negative: ~magnitude         14 plus infinity              30 tuple: the elements' keys, then 00

A magnitude 2**e × 1.f is e + 2048 in two bytes, big-endian, then the bits of f without trailing zeros, seven to a
byte from the top, at least one byte; the lowest bit says that more follow. ~ inverts all of these. A finite number
ends in a byte for its type: 1 bool, 2 int, 3 float. Ints have up to `INT_BITS_MAX` bits, tuples nest up to
`DEPTH_MAX`. Source: the idea is that of FoundationDB's tuple layer; the exact numbers are ours.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check, PyFloat_CheckExact
from cpython.long cimport PyLong_Check, PyLong_CheckExact
from cpython.tuple cimport PyTuple_CheckExact
from cpython.unicode cimport PyUnicode_CheckExact
from libc.math cimport isinf, isnan, ldexp
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memchr, memcpy

from anna.layout cimport Reader, expect_end, reader_of, take
from anna.packing cimport text_bytes
from anna.unpacking cimport text_of

from anna.errors import NotSerializable, ProtocolError, ValueTooLarge

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1

cdef extern from *:
    int __builtin_clzll(unsigned long long number) noexcept nogil
    int __builtin_ctzll(unsigned long long number) noexcept nogil

cdef enum:
    END = 0x00
    NONE = 0x08
    MINUS_INFINITY = 0x10
    NEGATIVE = 0x11
    ZERO = 0x12
    POSITIVE = 0x13
    PLUS_INFINITY = 0x14
    STR = 0x20
    BYTES = 0x28
    TUPLE = 0x30
    ESCAPE = 0xFF

    RANK_BOOL = 1
    RANK_INT = 2
    RANK_FLOAT = 3

    EXPONENT_BIAS = 2048
    INT_BITS_MAX = 4096
    DEPTH_MAX = 32
    NUMBER_BYTES_MAX = 16

cdef bytes KEY_NONE = bytes([NONE])
cdef bytes KEY_MINUS_INFINITY = bytes([MINUS_INFINITY])
cdef bytes KEY_PLUS_INFINITY = bytes([PLUS_INFINITY])


cpdef bytes order_key(object value):
    """Return the key of `value`. numpy scalars and subclasses of int and float count as plain numbers.

    Raises NotSerializable, naming the type, for a value that has no place in the order, ValueError for NaN, and
    ValueTooLarge for an int or nesting beyond the limits.
    """
    return _key(value, 0)


cpdef object from_order_key(bytes key):
    """Return the value of a key. Raises ProtocolError on bytes that `order_key` does not give."""
    cdef Reader reader = reader_of(key)
    value = _value(&reader, 0)
    expect_end(&reader, "an order key")
    return value


cdef int check_order_key(bytes key) except -1:
    """Raise ProtocolError unless `key` has the structure of a key. Makes no objects; reading checks the UTF-8."""
    cdef Reader reader = reader_of(key)
    _skip(&reader, 0)
    expect_end(&reader, "an order key")
    return 0


# Writing ------------------------------------------------------------------------------------------------------------


cdef bytes _key(object value, int depth):
    if PyLong_CheckExact(value):
        return _int_key(value, RANK_INT)
    if PyUnicode_CheckExact(value):
        return _text_key(STR, text_bytes(value))
    if PyFloat_CheckExact(value):
        return _float_key(PyFloat_AS_DOUBLE(value))
    if PyBytes_CheckExact(value):
        return _text_key(BYTES, value)
    if PyTuple_CheckExact(value):
        if depth >= DEPTH_MAX:
            raise ValueTooLarge(f"a tuple in an order nests more than {DEPTH_MAX} deep")
        return b"\x30" + b"".join([_key(item, depth + 1) for item in value]) + b"\x00"
    if value is None:
        return KEY_NONE
    if value is True or value is False:
        return _int_key(int(value), RANK_BOOL)
    return _relative_key(value, depth)


cdef bytes _relative_key(object value, int depth):
    """Subclasses of int and float, and numpy's scalars."""
    kind = type(value)
    is_numpy = kind.__module__ == "numpy" and hasattr(value, "item") and not hasattr(value, "__len__")
    plain = value.item() if is_numpy else None
    if type(plain) in (bool, int, float):
        return _key(plain, depth)
    if PyLong_Check(value):
        return _int_key(int(value), RANK_INT)
    if PyFloat_Check(value):
        return _float_key(float(value))
    raise NotSerializable(
        f"a {kind.__qualname__} has no place in the order None < numbers < str < bytes < tuples"
    )


cdef bytes _text_key(int kind, bytes raw):
    cdef Py_ssize_t size = PyBytes_GET_SIZE(raw)
    cdef bytes result
    cdef char* target
    if memchr(PyBytes_AS_STRING(raw), 0, size) is not NULL:
        raw = raw.replace(b"\x00", b"\x00\xff")
        size = PyBytes_GET_SIZE(raw)
    result = PyBytes_FromStringAndSize(NULL, size + 2)
    target = PyBytes_AS_STRING(result)
    target[0] = <char>kind
    memcpy(target + 1, PyBytes_AS_STRING(raw), size)
    target[size + 1] = END
    return result


cdef bytes _float_key(double real):
    cdef uint64_t bits, fraction
    cdef int exponent
    if isnan(real):
        raise ValueError("NaN has no place in an order")
    if isinf(real):
        return KEY_PLUS_INFINITY if real > 0 else KEY_MINUS_INFINITY
    if real == 0:
        return bytes([ZERO, RANK_FLOAT])
    memcpy(&bits, &real, 8)
    exponent = <int>(bits >> 52 & 0x7FF) - 1023
    fraction = bits << 12
    if exponent == -1023:  # subnormal: shift the leading one out of the fraction
        exponent -= __builtin_clzll(fraction)
        fraction = fraction << __builtin_clzll(fraction) << 1
    return _number_key(bits >> 63, exponent, fraction, RANK_FLOAT)


cdef bytes _int_key(object value, int rank):
    cdef int overflow = 0
    cdef int exponent
    cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
    cdef uint64_t magnitude
    if overflow:
        return _wide_int_key(value)
    if number == 0:
        return bytes([ZERO, rank])
    magnitude = <uint64_t>number if number > 0 else 0 - <uint64_t>number
    exponent = 63 - __builtin_clzll(magnitude)
    return _number_key(number < 0, exponent, magnitude << (63 - exponent) << 1, rank)


cdef bytes _number_key(bint negative, int exponent, uint64_t fraction, int rank):
    """Write ±2**exponent × 1.fraction, the fraction's first bit being the highest of its 64."""
    cdef unsigned char[NUMBER_BYTES_MAX] key
    cdef unsigned char flip = 0xFF if negative else 0
    cdef int size = 3
    key[0] = NEGATIVE if negative else POSITIVE
    key[1] = <unsigned char>((exponent + EXPONENT_BIAS) >> 8) ^ flip
    key[2] = <unsigned char>((exponent + EXPONENT_BIAS) & 0xFF) ^ flip
    while True:
        key[size] = <unsigned char>(fraction >> 57 << 1 | (1 if fraction << 7 else 0)) ^ flip
        fraction <<= 7
        size += 1
        if fraction == 0:
            break
    key[size] = <unsigned char>rank
    return PyBytes_FromStringAndSize(<char*>key, size + 1)


cdef bytes _wide_int_key(object value):
    magnitude = abs(value)
    exponent = magnitude.bit_length() - 1
    if exponent >= INT_BITS_MAX:
        raise ValueTooLarge(f"an int in an order has {exponent + 1:,} bits; INT_BITS_MAX is {INT_BITS_MAX:,}")
    fraction = magnitude ^ (1 << exponent)
    digits = max(1, (exponent - ((fraction & -fraction).bit_length() - 1) + 6) // 7) if fraction else 1
    scaled = fraction << (7 * digits) >> exponent
    body = [(exponent + EXPONENT_BIAS) >> 8, (exponent + EXPONENT_BIAS) & 0xFF]
    body += [(scaled >> (7 * i) & 0x7F) << 1 | (1 if i else 0) for i in range(digits - 1, -1, -1)]
    if value < 0:
        body = [0xFF - byte for byte in body]
    return bytes([NEGATIVE if value < 0 else POSITIVE, *body, RANK_INT])


# Reading ------------------------------------------------------------------------------------------------------------


cdef struct Number:
    bint negative
    int exponent
    int rank
    int digits  # bytes of fraction
    const char* fraction
    uint64_t bits  # the first 63 bits of the fraction, left-justified: all of a float, and of an int below 2**63


cdef int _enter(int depth) except -1:
    if depth > DEPTH_MAX:
        raise ProtocolError(f"an order key nests more than {DEPTH_MAX} deep")
    return 0


cdef int _skip(Reader* reader, int depth) except -1:
    cdef int kind = <unsigned char>take(reader, 1)[0]
    cdef Number number
    cdef bint escaped
    if kind == STR or kind == BYTES:
        _text_end(reader, &escaped)
    elif kind == ZERO:
        _zero_rank(reader)
    elif kind == POSITIVE or kind == NEGATIVE:
        _read_number(reader, kind == NEGATIVE, &number)
    elif kind == TUPLE:
        _enter(depth + 1)
        while not _ends(reader):
            _skip(reader, depth + 1)
    elif kind != NONE and kind != MINUS_INFINITY and kind != PLUS_INFINITY:
        raise ProtocolError(f"{kind:#04x} is no kind of order key")
    return 0


cdef object _value(Reader* reader, int depth):
    cdef int kind = <unsigned char>take(reader, 1)[0]
    cdef int rank
    cdef Number number
    if kind == STR or kind == BYTES:
        return _text_value(reader, kind)
    if kind == POSITIVE or kind == NEGATIVE:
        _read_number(reader, kind == NEGATIVE, &number)
        return _number_value(&number)
    if kind == TUPLE:
        return _tuple_value(reader, depth + 1)
    if kind == NONE:
        return None
    if kind == ZERO:
        rank = _zero_rank(reader)
        return 0 if rank == RANK_INT else 0.0 if rank == RANK_FLOAT else False
    if kind == PLUS_INFINITY or kind == MINUS_INFINITY:
        return float("inf") if kind == PLUS_INFINITY else float("-inf")
    raise ProtocolError(f"{kind:#04x} is no kind of order key")


cdef object _tuple_value(Reader* reader, int depth):
    cdef list items = []
    _enter(depth)
    while not _ends(reader):
        items.append(_value(reader, depth))
    return tuple(items)


cdef bint _ends(Reader* reader) except -1:
    """Whether the tuple ends here; if so, step over its end."""
    if take(reader, 1)[0] == END:
        return True
    reader.next -= 1
    return False


cdef int _zero_rank(Reader* reader) except -1:
    cdef int rank = <unsigned char>take(reader, 1)[0]
    if not RANK_BOOL <= rank <= RANK_FLOAT:
        raise ProtocolError(f"{rank:#04x} is no type of number in an order key")
    return rank


cdef Py_ssize_t _text_end(Reader* reader, bint* escaped) except -1:
    """Step over a text and its end; return the text's length, escapes included."""
    cdef const char* start = reader.next
    cdef const char* zero
    escaped[0] = False
    while True:
        zero = <const char*>memchr(reader.next, END, reader.end - reader.next)
        if zero is NULL:
            raise ProtocolError(f"a text in an order key of {reader.end - reader.start:,} bytes has no end")
        reader.next = zero + 1
        if reader.next == reader.end or <unsigned char>reader.next[0] != ESCAPE:
            return zero - start
        reader.next += 1
        escaped[0] = True


cdef object _text_value(Reader* reader, int kind):
    cdef const char* start = reader.next
    cdef bint escaped
    cdef Py_ssize_t size = _text_end(reader, &escaped)
    cdef bytes raw
    if kind == BYTES or escaped:
        raw = PyBytes_FromStringAndSize(start, size)
        if escaped:
            raw = raw.replace(b"\x00\xff", b"\x00")
        if kind == BYTES:
            return raw
        start, size = PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)
    return text_of(start, size)


cdef int _read_number(Reader* reader, bint negative, Number* number) except -1:
    """Read a number that is not zero, and refuse what `order_key` would have written otherwise."""
    cdef unsigned char flip = 0xFF if negative else 0
    cdef const char* head = take(reader, 2)
    cdef int shift = 57
    cdef unsigned char digit
    number.negative = negative
    number.exponent = ((<unsigned char>head[0] ^ flip) << 8 | (<unsigned char>head[1] ^ flip)) - EXPONENT_BIAS
    number.fraction = reader.next
    number.bits = 0
    while True:
        digit = <unsigned char>take(reader, 1)[0] ^ flip
        if shift >= 0:
            number.bits |= <uint64_t>(digit >> 1) << shift
        shift -= 7
        if not digit & 1:
            break
    number.digits = <int>(reader.next - number.fraction)
    if digit == 0 and number.digits > 1:
        raise ProtocolError("a fraction in an order key ends in a zero byte, so it has a shorter form")
    number.rank = <unsigned char>take(reader, 1)[0]
    return _check_number(number, digit)


cdef int _check_number(Number* number, unsigned char last) except -1:
    """Refuse a number that its type cannot hold. `last` is the last byte of the fraction."""
    cdef int e = number.exponent
    cdef int bits = 7 * number.digits - (__builtin_ctzll(last >> 1) if last >> 1 else 7)
    cdef bint held = False
    if number.rank == RANK_FLOAT:
        held = -1022 <= e <= 1023 and bits <= 52 or -1074 <= e < -1022 and bits <= e + 1074
    elif number.rank == RANK_INT:
        held = 0 <= e < INT_BITS_MAX and bits <= e
    elif number.rank == RANK_BOOL:
        held = e == 0 and bits == 0 and not number.negative
    if not held:
        raise ProtocolError(f"an order key has 2**{e} with {bits} bits of fraction for a number of type {number.rank}")
    return 0


cdef object _number_value(Number* number):
    cdef int e = number.exponent
    cdef uint64_t significand = <uint64_t>1 << 63 | number.bits >> 1
    cdef double real
    if number.rank == RANK_BOOL:
        return True
    if number.rank == RANK_FLOAT:
        real = ldexp(<double>(significand >> 11), e - 52)
        return -real if number.negative else real
    if e < 63:
        significand >>= 63 - e
        return -<int64_t>significand if number.negative else <int64_t>significand
    return _wide_int_value(number)


cdef object _wide_int_value(Number* number):
    cdef int i
    flip = 0xFF if number.negative else 0
    scaled = 1
    for i in range(number.digits):
        scaled = scaled << 7 | (<unsigned char>number.fraction[i] ^ flip) >> 1
    shift = number.exponent - 7 * number.digits
    magnitude = scaled << shift if shift >= 0 else scaled >> -shift
    return -magnitude if number.negative else magnitude
