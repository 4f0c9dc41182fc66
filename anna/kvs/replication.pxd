from libc.stdint cimport int64_t, uint32_t, uint64_t

from anna.buffer cimport Buffer
from anna.kvs.cells cimport CellReader
from anna.kvs.changes cimport Changes
from anna.kvs.clock cimport Clock
from anna.kvs.snapshot cimport Snapshot
from anna.kvs.store cimport Piece, Store
from anna.kvs.table cimport Slot
from anna.lattices.base cimport Lattice
from anna.routing.placement cimport Placement


cdef class Replication:
    cdef readonly uint64_t mine
    cdef readonly Store store
    cdef readonly Clock clock
    cdef Changes changes
    cdef Changes log
    cdef Placement placement
    cdef Placement former
    cdef object former_view
    cdef public Snapshot snapshot
    cdef int former_factor
    cdef readonly int place
    cdef readonly int factor
    cdef readonly bint sharing
    # Whether each worker has a copy of each key.
    cdef bint everywhere
    cdef readonly bint watching
    cdef readonly set touched
    cdef readonly tuple ids
    cdef readonly dict links
    cdef dict sessions
    cdef readonly dict repairs
    cdef dict repair_sent
    cdef Placement offered
    cdef int offered_factor
    cdef int offered_place
    cdef readonly uint64_t floor
    cdef list sweeping
    cdef readonly uint64_t dropped
    cdef list buffers
    cdef dict pending
    cdef dict confirmed
    cdef readonly uint64_t epoch
    cdef readonly uint64_t closed
    cdef readonly uint64_t stable
    cdef dict closed_of
    cdef dict kept_of
    cdef uint64_t unlogged_from
    cdef uint64_t under_way_from
    cdef uint64_t busy_until
    cdef uint64_t announced
    cdef list outbox
    cdef int flushes
    cdef readonly uint64_t deltas_sent
    cdef readonly uint64_t deltas_taken
    cdef readonly uint64_t bodies_sent
    cdef readonly uint64_t quarantined
    cdef readonly object view
    cdef readonly uint32_t log_round
    cdef uint32_t log_under_way
    cdef uint64_t log_number
    cdef uint64_t log_epoch
    cdef uint64_t logged_epoch

    cdef int note_register(self, Slot* slot) except -1
    cdef int note_deleted(self, bytes key) except -1
    cdef int note_delta(self, bytes key, uint64_t stamp, Lattice delta) except -1
    cdef int turn(self, uint64_t epoch) except -1
    cdef int cut(self) except -1
    cdef int queue_cell(self, uint64_t hash, bytes key, Lattice state, uint64_t last) except -1
    cdef int send_buffer(self, int place, uint32_t round) except -1
    cdef bint take_cell(self, CellReader reader, uint64_t epoch) except -1
    cdef bint take_register(self, CellReader reader, bytes key, uint64_t reset) except -1
    cdef bint take_state(self, CellReader reader, bytes key, uint64_t reset, uint64_t epoch) except -1
    cdef bint may_offer(self, uint64_t hash) noexcept
    cdef bint is_shared(self, uint64_t hash, int place, int former_place) noexcept
    cdef list entries_of(self, int place, int former_place, list keys, Py_ssize_t begin, Py_ssize_t end)
    cdef int wait_for_copies(self) except -1
