from libc.stdint cimport uint64_t

from anna.buffer cimport Buffer
from anna.kvs.clock cimport Clock
from anna.kvs.replication cimport Replication
from anna.lattices.base cimport Lattice
from anna.wire cimport RequestHeader


cdef class Connection:
    cdef Buffer pending
    cdef bytes bulk
    cdef Py_ssize_t bulk_bytes
    cdef readonly str failure
    cdef readonly set subscriptions
    cdef Buffer held
    cdef object holds
    cdef bytes backlog


cdef class Answers:
    cdef readonly Clock clock
    # None for who takes no part in a cluster: a node's cache.
    cdef readonly Replication replication
    cdef Buffer out
    cdef list chunks
    # What every answer tells of the view, as it stands in its flags.
    cdef int view_mark
    cdef readonly uint64_t malformed

    cdef char* reply(self, RequestHeader* head, int status, int type, Py_ssize_t payload_bytes) except NULL
    cdef int reply_text(self, RequestHeader* head, int status, bytes payload) except -1
    cdef int reply_state(self, RequestHeader* head, Lattice state) except -1
    cdef int fail(self, Connection connection, str why) except -1
    cdef object take(self)
