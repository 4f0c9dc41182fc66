from libc.stdint cimport int64_t, uint64_t

from cloudburst.cache.flights cimport Flight
from cloudburst.cache.order cimport Slot
from cloudburst.cache.versions cimport Mark, Versions


cdef class CacheEpochs(Versions):
    # What is asked of owners: (key, 16 bytes of epoch and view) -> Flight; and key -> [Flight].
    cdef dict asking
    cdef dict asked
    # How far each owner has told, by its id.
    cdef dict marks
    # Those that have ended, oldest first.
    cdef list ended
    # Until when somebody reads at epochs, and when the owners were told so last, in monotonic ns.
    cdef int64_t wanted_until
    cdef int64_t renewed_at
    cdef uint64_t looked_for
    cdef readonly uint64_t marks_heard
    cdef readonly uint64_t pushed_at
    cdef readonly uint64_t hits_at
    cdef readonly uint64_t misses_at

    cdef int want_at(self, bytes name, bytes epoch, Slot slot, Py_ssize_t index) except -1
    cdef int arrive_at(self, Flight flight, uint64_t owner, int status, int kind, bytes payload, list finished) except -1
    cdef int learn(self, Flight flight, uint64_t owner, object state, uint64_t first, uint64_t last, uint64_t since) except -1
    cdef bint asks_another(self, Flight flight, uint64_t owner, int status) except -1
    cdef list owners_to_ask(self, Flight flight)
    cdef bint waits(self, Flight flight, int status) except -1
    cdef bytes part_of(self, object state)
    cdef int want_marks(self) except -1
    cdef int ask_for_marks(self, uint64_t owner, uint64_t least) except -1
    cdef int end_mark(self, uint64_t owner) except -1
    cdef int hear_mark(self, uint64_t owner, bytes payload, list finished) except -1
    cdef int hear_version(self, uint64_t owner, int status, int kind, bytes payload) except -1
    cdef int marked(self, list finished) except -1
