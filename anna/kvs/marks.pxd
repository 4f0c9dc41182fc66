from libc.stdint cimport int64_t, uint64_t

from anna.kvs.answers cimport Connection
from anna.kvs.commits cimport Commits
from anna.kvs.history cimport History
from anna.wire cimport RequestHeader


cdef class Listener:
    cdef set keys
    cdef int64_t until
    # The epoch that it was told of last; 0: of none.
    cdef uint64_t told


cdef class Marks(Commits):
    cdef dict listeners
    # key -> {Connection: None}, of those who are told what it holds at epochs.
    cdef dict listening
    # The history that was told of, what it was kept from, and up to which epoch.
    cdef History telling
    cdef uint64_t telling_from
    cdef uint64_t told
    cdef readonly uint64_t marks_told

    cdef int subscribe_at(self, Connection connection, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1
    cdef int begin_to_listen(self, Connection connection, int64_t lease_us) except -1
    cdef int answer_at(self, Connection connection, RequestHeader* head, bytes name, uint64_t epoch) except -1
    cdef int listen(self, Connection connection, bytes name, bint wanted) except -1
    cdef int end_listener(self, Connection connection) except -1
    cdef int end_listeners(self) except -1
    cdef int mark(self) except -1
    cdef bytes push_at(self, bytes name, uint64_t epoch)
    cdef bytes unasked(self, int op, int status, int type, bytes head, bytes payload)
