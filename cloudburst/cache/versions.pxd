from libc.stdint cimport uint64_t

from anna.lattices.base cimport Lattice
from cloudburst.cache.kept cimport Kept


cdef class Mark:
    cdef readonly uint64_t owner
    # The first and the last epoch that it was told of, 0 before the first, and their view.
    cdef readonly uint64_t first
    cdef readonly uint64_t epoch
    cdef readonly uint64_t view


cdef class Version:
    cdef readonly uint64_t first
    # Of an open one, the last epoch of which the owner has said so in so many words: it holds up to the mark, if that is later.
    cdef readonly uint64_t last
    cdef readonly bint open
    # None: the key was not there.
    cdef readonly Lattice state
    cdef readonly Py_ssize_t bytes


cdef class Dated:
    cdef readonly bytes name
    cdef readonly Mark mark
    cdef readonly list versions
    cdef bint touched

    cdef Version find(self, uint64_t epoch, uint64_t view)
    cdef int close(self, uint64_t epoch) except -1


cdef class Versions(Kept):
    cdef readonly dict dated
    cdef readonly Py_ssize_t bytes_at
    # The epochs that sessions may read, ascending; of those that are pinned, until when.
    cdef readonly list given
    cdef readonly dict pinned
    cdef uint64_t newest_given
    # The keys with more than one version.
    cdef set layered

    cdef int give(self, uint64_t epoch) except -1
    cdef bint is_given(self, uint64_t first, uint64_t last) except -1
    cdef int keep_version(self, bytes name, Mark mark, uint64_t first, uint64_t last, bint open, Lattice state) except -1
    cdef int push_version(self, Dated dated, uint64_t first, uint64_t last, Lattice state, uint64_t marked) except -1
    cdef int settle_versions(self, Dated dated) except -1
    cdef int count_versions(self, Dated dated, int sign) except -1
    cdef int forget_dated(self, Dated dated) except -1
    cdef int forget_mark(self, Mark mark) except -1
    cdef int drop_oldest_dated(self) except -1
    cdef int let_go(self, uint64_t floor) except -1
    cdef int listen_no_more(self, Dated dated) except -1
