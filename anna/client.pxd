from libc.stdint cimport int64_t, uint32_t, uint64_t

from anna.connections cimport Connections
from anna.stream cimport Stream


cdef class Client(Connections):
    cdef Stream ask(self, int op, object key, object value, bint plain, object timeout, int ack)
    cdef uint32_t write(self, Stream stream, int op, const char* data, Py_ssize_t size, object value, bint plain, uint64_t strict, int ack) except 0
    cdef object turn_away(self, Stream stream, object route, object key, bint reads, int place, int64_t deadline)
    cdef object absent(self, Stream stream, int status, object key, object default)
