from libc.stdint cimport int64_t, uint64_t

from anna.kvs.cells cimport CellReader
from anna.kvs.endings cimport Endings
from anna.kvs.records cimport Record


cdef class Transactions(Endings):
    # Records by name (id and attempt); the names of those of one transaction, by its id.
    cdef readonly dict prepared
    cdef dict attempts
    # What is set aside: some part of it is gone with those who had it.
    cdef readonly dict doubtful
    cdef readonly uint64_t doubts
    cdef readonly Py_ssize_t prepared_bytes
    # What transactions came to: id -> (attempt, stamp, when in us); names of the attempts that never will be -> when in us.
    cdef readonly dict committed
    cdef readonly dict refused
    cdef readonly uint64_t commits
    cdef readonly uint64_t finished_here
    cdef readonly uint64_t conflicts

    cdef bint keeps_pieces(self) noexcept
    cdef int prepare(self, bytes name, tuple places, list parts) except -1
    cdef Record let_go(self, bytes name)
    cdef int set_aside(self, Record record) except -1
    cdef Record record_of(self, bytes name)
    cdef int hold(self, Record record) except -1
    cdef uint64_t first_prepared(self) except 0
    cdef int finish(self, bytes name, uint64_t stamp, bint decided) except -1
    cdef int drop_others(self, bytes name) except -1
    cdef int spread_committed(self, only) except -1
    cdef int apply(self, Record record, uint64_t stamp) except -1
    cdef int forget_pasts(self, Record record, uint64_t epoch) except -1
    cdef int remember(self, bytes name, uint64_t stamp) except -1
    cdef int spread(self, Record record, only) except -1
    cdef int inquire(self, Record record) except -1
    cdef int judge(self, Record record) except -1
    cdef bint is_lost(self, Record record, uint64_t hash) except -1
    cdef int send_body(self, peer, bytes body, uint64_t epoch) except -1
    cdef int log_record(self, bytes name, bytes payload) except -1


cpdef uint64_t writer_of(bytes name) except 0
cdef bytes record_cell(bytes name, bytes payload)
