from libc.stdint cimport uint64_t

from anna.kvs.epochs cimport Epochs
from anna.kvs.held cimport Hold
from anna.kvs.records cimport Part
from anna.wire cimport RequestHeader


cdef class Commits(Epochs):
    cdef readonly uint64_t prepares

    cdef int prepare(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
    cdef list checked_writes(self, RequestHeader* head, bytes data, Py_ssize_t place, dict own, uint64_t guard)
    cdef int check_write(self, RequestHeader* head, bytes key, int flags, Py_ssize_t state_bytes) except -1
    cdef Part prepared_part(self, bytes key, uint64_t hash, int type, int flags, bytes payload, uint64_t writer)
    cdef int commit(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
    cdef int take_commit(self, const char* payload, Py_ssize_t size) except -1
    cdef int finish(self, RequestHeader* head, const char* payload, Py_ssize_t size) except -1
    cdef int reply_outcome(self, RequestHeader* head, bytes name, own) except -1
    cdef Hold hold_at(self, uint64_t hash, int copies, bint durable, bint usual)
    cdef int note_touched(self) except -1
