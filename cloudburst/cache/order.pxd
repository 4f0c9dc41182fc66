from anna.kvs.answers cimport Connection
from anna.kvs.worker cimport Worker
from anna.wire cimport RequestHeader


cdef class Slot:
    cdef Connection connection
    cdef RequestHeader head
    cdef bytes key
    cdef list items
    cdef list failures
    cdef Py_ssize_t missing
    # Of writes: the least number of copies besides the owner's that any of them has, and whether all are on disk.
    cdef int copies
    cdef bint durable
    cdef object answer


cdef class Order(Worker):
    cdef dict queues
    cdef Slot parked

    cdef Slot park(self, RequestHeader* head)
    cdef int count_down(self, Slot slot, list finished) except -1
    cdef object whole(self, Slot slot)
    cdef object join_items(self, Slot slot)
    cdef bytes relay(self, Slot slot, int status, bytes payload)
    cdef bytes relay_write(self, Slot slot, int status, bytes payload)
    cdef bytes relay_state(self, Slot slot, int status, int kind, bytes payload)
    cdef list release(self, list finished)


cdef list read_keys(const char* payload, Py_ssize_t size)
