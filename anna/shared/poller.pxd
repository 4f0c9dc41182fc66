from libc.stdint cimport int64_t

from anna.shared.patience cimport Patience
from anna.shared.transport cimport RingTransport


cdef class Poller:
    cdef object server
    cdef list awake
    cdef Patience patience
    cdef readonly int count
    cdef int most
    cdef bint scheduled
    # Whether it is awake only for what may come.
    cdef bint staying
    cdef int64_t quiet_since

    cdef int rouse(self, RingTransport transport) except -1
    cdef bint serve_all(self) except -1
    cdef bint goes_on(self, int64_t now) noexcept
    cdef bint all_asleep(self) except -1
