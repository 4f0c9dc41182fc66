"""One commit of a log in bytes, and the system calls that make it durable.

The one rule: a group is there whole or not at all. It is written in one piece at the begin of a block, under a seal over all of
it, and synced before anybody hears of it; the one before was synced before it was begun. So only the last group of a log can be
torn, and whatever is broken and has a later group behind it was damaged. Source: decision 0017.

    u64 seal | 4 bytes magic | u32 count | u64 first number | u64 content bytes | content | zeros to the end of the block
    content: count times u32 bytes | the blobs

The seal is that of `anna.storage.seal` over all that follows it, under the log's salt: what a client wrote cannot look like a
group. A group without blobs is a mark: all numbers before its first were durable when it was written.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from anna.routing.hash cimport hash64

import os

from anna.errors import StorageFailed

cdef extern from "<unistd.h>" nogil:
    ssize_t pwrite(int fd, const void* data, size_t size, int64_t place)
    int fdatasync(int fd)

cdef enum:
    SEAL = 8
    HEADER = 32
    BLOCK = 4096

cdef uint64_t P1 = 0x9E3779B185EBCA87ULL
cdef const char* MAGIC = b"log1"

BLOCK_BYTES = BLOCK

cdef packed struct Header:
    uint64_t seal
    char[4] magic
    uint32_t count
    uint64_t first
    uint64_t bytes


cdef inline Py_ssize_t in_blocks(Py_ssize_t size) noexcept nogil:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def group_bytes(list blobs not None):
    """Return how many bytes a group of `blobs` takes in a file: whole blocks."""
    cdef Py_ssize_t size = HEADER + 4 * len(blobs)
    for blob in blobs:
        size += len(blob)
    return in_blocks(size)


def write_group(int file, int64_t place, bytes salt not None, uint64_t first, list blobs not None, bint sync=True):
    """Write a group of blobs, which begin with number `first`, at byte `place` of a file, and make it durable; return its bytes.

    The interpreter is free for other threads from the seal to the sync. Raises OSError when it could not be written, after which it
    may be written again to the same place, and StorageFailed when it could not be synced: nobody knows then what is on the disk.
    """
    cdef Py_ssize_t size = group_bytes(blobs)
    cdef bytes group = PyBytes_FromStringAndSize(NULL, size)
    cdef char* target = PyBytes_AS_STRING(group)
    cdef Header* header = <Header*>target
    cdef const char* name = PyBytes_AS_STRING(salt)
    cdef Py_ssize_t name_bytes = PyBytes_GET_SIZE(salt)
    cdef Py_ssize_t at = HEADER + 4 * len(blobs)
    cdef uint32_t index, length
    cdef int wrong
    cdef bytes blob
    memcpy(header.magic, MAGIC, 4)
    header.count, header.first = <uint32_t>len(blobs), first
    for index in range(header.count):
        blob = <bytes?>blobs[index]
        length = <uint32_t>PyBytes_GET_SIZE(blob)
        memcpy(target + HEADER + 4 * index, &length, 4)
        memcpy(target + at, PyBytes_AS_STRING(blob), length)
        at += length
    header.bytes = <uint64_t>(at - HEADER)
    with nogil:
        memset(target + at, 0, size - at)
        header.seal = hash64(target + SEAL, at - SEAL) + hash64(name, name_bytes) * P1
        wrong = write_all(file, target, size, place)
        if wrong == 0 and sync and fdatasync(file) != 0:
            wrong = -errno
    if wrong > 0:
        raise OSError(wrong, os.strerror(wrong))
    if wrong < 0:
        raise StorageFailed(f"the log could not be synced: {os.strerror(-wrong)}")
    return size


cdef int write_all(int file, const char* data, Py_ssize_t size, int64_t place) noexcept nogil:
    """Write all of `data`; return 0, or what went wrong."""
    cdef Py_ssize_t written
    while size > 0:
        written = pwrite(file, data, size, place)
        if written < 0 and errno != EINTR:
            return errno
        if written > 0:
            data, place, size = data + written, place + written, size - written
    return 0


def groups_in(bytes content not None, bytes salt not None, uint64_t from_number):
    """Return [(place, bytes, first, count), …] of the whole groups in a file's content that reach `from_number` or later.

    Marks are among them, with count 0. What is no group is stepped over, block by block.
    """
    cdef const char* data = PyBytes_AS_STRING(content)
    cdef Py_ssize_t end = PyBytes_GET_SIZE(content)
    cdef Py_ssize_t place = 0
    cdef Py_ssize_t size
    cdef Header* header
    cdef uint64_t salted = hash64(PyBytes_AS_STRING(salt), PyBytes_GET_SIZE(salt)) * P1
    found = []
    while end - place >= HEADER:
        header = <Header*>(data + place)
        size = 0
        if (memcmp(header.magic, MAGIC, 4) == 0 and header.bytes <= <uint64_t>(end - place - HEADER)
                and 4 * <uint64_t>header.count <= header.bytes and header.first + max(header.count, 1) > from_number):
            if hash64(data + place + SEAL, HEADER - SEAL + header.bytes) + salted == header.seal:
                size = HEADER + header.bytes
                found.append((place, in_blocks(size), header.first, header.count))
        place += in_blocks(size) if size else BLOCK
    return found


def blobs_in(bytes content not None, Py_ssize_t place):
    """Return the blobs of the group at `place` of a file's content, which `groups_in` found there."""
    cdef const char* data = PyBytes_AS_STRING(content) + place
    cdef Header* header = <Header*>data
    cdef Py_ssize_t at = HEADER + 4 * <Py_ssize_t>header.count
    cdef uint32_t index, length
    blobs = []
    for index in range(header.count):
        memcpy(&length, data + HEADER + 4 * index, 4)
        blobs.append(PyBytes_FromStringAndSize(data + at, length))
        at += length
    return blobs
