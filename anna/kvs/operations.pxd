from libc.stdint cimport uint64_t

from anna.kvs.history cimport Past
from anna.kvs.pushes cimport Pushes
from anna.kvs.snapshot cimport Snapshot
from anna.kvs.table cimport Slot
from anna.lattices.base cimport Lattice
from anna.wire cimport RequestHeader


cdef class Operations(Pushes):
    # The state at the end of one epoch, while a backup reads it; else None.
    cdef readonly Snapshot snapshot
    # Whether somebody may want what keys were before they change: a snapshot, or a history.
    cdef bint preserving
    cdef readonly uint64_t gets
    cdef readonly uint64_t puts
    cdef readonly uint64_t deletes
    cdef readonly uint64_t stale

    cdef int check_key(self, const char* key, Py_ssize_t size, int flags) except -1
    cdef int get(self, RequestHeader* head, const char* key) except -1
    cdef int get_cold(self, RequestHeader* head, const char* key) except -1
    cdef int reply_absent(self, RequestHeader* head, const char* key) except -1
    cdef int absence_of(self, const char* key, Py_ssize_t key_bytes) except -1
    cdef int put(self, RequestHeader* head, const char* key, const char* payload, Py_ssize_t size) except -1
    cdef int compare(self, const char* key, Py_ssize_t key_bytes, const char* payload, Py_ssize_t size) except -1
    cdef int delete(self, RequestHeader* head, const char* key) except -1
    cdef int write(self, const char* key, Py_ssize_t key_bytes, int type, const char* payload, Py_ssize_t size) except -1
    cdef int write_register(self, const char* key, Py_ssize_t key_bytes, uint64_t stamp, uint64_t writer,
                            const char* payload, Py_ssize_t size, bytes held) except -1
    cdef Slot* write_preserving(self, const char* key, Py_ssize_t key_bytes, uint64_t stamp, uint64_t writer,
                                const char* payload, Py_ssize_t size, bytes held) except NULL
    cdef Past preserve(self, const char* key, Py_ssize_t key_bytes)
    cdef int look_whether_preserving(self) except -1
    cdef bint has_expired(self, const char* key, Py_ssize_t key_bytes) except -1


cdef int check_growth(Lattice current, Lattice delta) except -1
