from libc.stdint cimport uint64_t

from anna.kvs.frames cimport Frames
from anna.routing.placement cimport Placement


cdef class Member(Frames):
    cdef readonly uint64_t worker_id
    cdef readonly object view
    cdef readonly object membership
    cdef tuple seeds
    cdef Placement placement
    cdef int place
    cdef bytes view_payload
    # While it settles, a worker answers reads only of the keys that it owned when it was complete last: by `settled`.
    cdef bint settling
    cdef Placement settled
    cdef int settled_place
    cdef bint swept
    # Whether all that was ever stable can be here: fewer nodes are silent than keys have copies, those apart whose copies were made anew.
    cdef readonly bint entire
    cdef object made_good
    cdef object dead_workers
    # Whether nodes are back from the other side of a partition, and what they have is not all here yet.
    cdef readonly bint returning
    # The digests of the views under which it was not, the latest last.
    cdef dict partial
    cdef bint gone
    cdef bint closing
    # Two where some key has more than one owner, else one.
    cdef int copies_usual
    # Whether each worker has a copy of each key.
    cdef bint owns_all
    cdef uint64_t epoch_end
    # Something is to be sent, or made durable, before this epoch ends: the driver calls `outgoing`, `take_released` and `log_out`.
    cdef bint urgent

    cdef int see_whether_entire(self) except -1
    cdef int require_entire(self) except -1
    cdef bint owns(self, const char* key, Py_ssize_t size) noexcept
    cdef int replicas(self, const char* key, Py_ssize_t key_bytes, int* owners) except -1
    cdef int usual_copies(self, const char* key, Py_ssize_t key_bytes) noexcept
    cdef bint has(self, const char* key, Py_ssize_t size) noexcept
    cdef bint has_handed_over(self) except -1
    cdef int keep_time(self) except -1
    cdef uint64_t stamp_write(self) except 0
    cdef bint is_current(self, uint64_t stamp) except -1
