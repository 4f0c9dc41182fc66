"""The checksum before every record on a disk.

The one rule: it covers the record's name as well as its content, so a record under another name is damage too.
A seal is XXH64(content) + XXH64(name) * P1 in 64 bits, little-endian, before the content. A million cells are
unsealed at every start; in Python that alone took longer than everything else together.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from anna.routing.hash cimport hash64

cdef uint64_t P1 = 0x9E3779B185EBCA87ULL
cdef Py_ssize_t SEAL = 8
SEAL_BYTES = 8


cdef inline uint64_t seal_of(bytes name, const char* content, Py_ssize_t size) noexcept:
    return hash64(content, size) + hash64(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)) * P1


def sealed(bytes name not None, bytes content not None):
    """Return the record that holds `content` under `name`: 8 bytes longer."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(content)
    cdef bytes record = PyBytes_FromStringAndSize(NULL, SEAL + size)
    cdef char* target = PyBytes_AS_STRING(record)
    cdef uint64_t seal = seal_of(name, PyBytes_AS_STRING(content), size)
    memcpy(target, &seal, SEAL)
    memcpy(target + SEAL, PyBytes_AS_STRING(content), size)
    return record


def unsealed(bytes name not None, bytes record not None):
    """Return the content of the record under `name`, None when either is not as it was written."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(record) - SEAL
    cdef const char* source = PyBytes_AS_STRING(record)
    cdef uint64_t seal
    if size < 0:
        return None
    seal = seal_of(name, source + SEAL, size)
    if memcmp(source, &seal, SEAL) != 0:
        return None
    return PyBytes_FromStringAndSize(source + SEAL, size)
