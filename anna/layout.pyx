"""Bytes that are read without trust and written without guessing.

The one rule: every read is checked against the end of the buffer, and every number has one form. A length is a varint
(LEB128: seven bits a byte, least significant first, the high bit says that more follow) in its shortest form; other
integers are little-endian. Writers know their size beforehand, so they write into exactly one allocation.
"""

from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport uint64_t

import sys

from anna.errors import ProtocolError

assert sys.byteorder == "little", "the encodings are written for little-endian machines"


cdef int run_short(Reader* reader, uint64_t size) except -1:
    raise ProtocolError(
        f"{reader.end - reader.start:,} bytes end too soon: {size:,} more were to follow byte "
        f"{reader.next - reader.start:,}"
    )


cdef int expect_end(Reader* reader, str what) except -1:
    """Raise ProtocolError when bytes are left over."""
    if reader.next != reader.end:
        raise ProtocolError(f"{reader.end - reader.next:,} bytes follow the end of {what}")
    return 0


cdef uint64_t take_varint(Reader* reader) except? 0xFFFFFFFFFFFFFFFF:
    """Read a varint of 64 bits. Raises ProtocolError on a longer number and on a longer form of a short one."""
    cdef uint64_t number = 0
    cdef int shift = 0
    cdef unsigned char byte
    while True:
        byte = take(reader, 1)[0]
        if shift == 63 and byte > 1:
            raise ProtocolError("a varint has more than 64 bits")
        number |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise ProtocolError("a varint ends in a zero byte, so it has a shorter form")
            return number
        shift += 7


cdef bytes varint(uint64_t number):
    cdef char[10] target
    return target[:write_varint(target, number) - target]


cdef bytes sized(bytes data):
    """Return `data` after its length."""
    return varint(PyBytes_GET_SIZE(data)) + data
