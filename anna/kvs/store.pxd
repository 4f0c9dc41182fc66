from libc.stdint cimport uint64_t

from anna.kvs.memory cimport Cold, Memory
from anna.kvs.table cimport Slot, Table
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW


cdef class Piece:
    cdef readonly uint64_t epoch
    cdef readonly uint64_t last
    cdef readonly Lattice state


cdef class Store:
    cdef readonly Table states
    cdef readonly Py_ssize_t size_bytes
    # How many of those are of states that are no registers.
    cdef readonly Py_ssize_t objects_bytes
    # What keys and states may take before clients' writes are refused; 0: nothing is refused.
    cdef readonly Py_ssize_t limit_bytes
    cdef readonly dict resets
    cdef readonly dict pieces
    cdef readonly dict quarantine
    cdef dict pieces_of_epoch
    cdef object resets_by_age
    # Stamps of writes whose time is over, by key, while anything older may still come; and of those with whose time the key did not end.
    cdef readonly dict ended
    cdef readonly dict survived
    cdef readonly dict expiries
    # The keys of which nothing is known any more, for the checkpoint; None when nobody wants to know.
    cdef public list forgotten
    cdef object expiries_by_time
    # None where every state is in memory.
    cdef readonly Memory memory
    # Keys whose states the disk does not give back -> Cold.
    cdef readonly dict lost
    # How many states were ever found to be lost.
    cdef readonly uint64_t losses

    cdef Slot* write_register(self, const char* key, Py_ssize_t key_bytes, uint64_t hash, uint64_t stamp, uint64_t writer,
                              const char* payload, Py_ssize_t size, bytes held) except NULL
    cdef Slot* begin_register(self, Slot* slot, bytes key, LWW written) except NULL
    cdef Slot* insert(self, bytes key, Lattice state, Py_ssize_t size) except NULL
    cdef bint lost_later(self, bytes key, uint64_t stamp) except -1
    cdef int replace_lost(self, bytes key, uint64_t stamp) except -1
    cdef Slot* write_cold(self, Slot* slot, LWW written) except NULL
    cpdef Lattice read(self, bytes key)
    cpdef Lattice look(self, bytes key)
    cpdef Lattice warm(self, bytes key)
    cdef Lattice fetched(self, bytes key, Cold cold)
    cpdef object kind_of(self, bytes key)
    cdef int leave_memory(self, bytes key) except -1
    cdef Py_ssize_t taken(self) noexcept
    cpdef Lattice write(self, bytes key, Lattice delta)
    cpdef bint remove(self, bytes key) except -1
    cpdef bint reset(self, bytes key, uint64_t stamp) except -1
    cpdef uint64_t reset_of(self, bytes key) except? 0xFFFFFFFFFFFFFFFF
    cpdef uint64_t deleted_at(self, bytes key) except? 0xFFFFFFFFFFFFFFFF
    cpdef Piece keep_piece(self, bytes key, uint64_t epoch, uint64_t last, Lattice state)
    cpdef bint settle_type(self, bytes key, object kind) except -1


cdef uint64_t written_at(Lattice state) except? 0xFFFFFFFFFFFFFFFF
