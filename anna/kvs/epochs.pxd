from libc.stdint cimport uint64_t

from anna.kvs.scans cimport Scans
from anna.lattices.base cimport Lattice
from anna.wire cimport RequestHeader


cdef class Epochs(Scans):
    cdef readonly uint64_t gets_at

    cdef int get_at(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1
    cdef int multi_get_at(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
    cdef int item_at(self, bytes key, uint64_t epoch) except -1
    cdef int append_item(self, int status, Lattice state) except -1
    cdef int pin(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
    cdef int want_history(self, uint64_t lease_us) except -1
    cdef int check_epoch(self, uint64_t epoch, uint64_t view) except -1
