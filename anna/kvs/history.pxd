from libc.stdint cimport int64_t, uint64_t

from anna.kvs.cells cimport CellReader
from anna.kvs.store cimport Piece, Store
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.placement cimport Placement


cdef class Past:
    # What all epochs up to the history's floor have joined, and what it was: the stamp of its last delete, and its time to live.
    cdef Lattice base
    cdef uint64_t reset
    cdef uint64_t expires
    cdef uint64_t expires_of
    # What later epochs changed: [Piece], [(epoch, stamp)] of deletes, [(epoch, stamp, time)] of times to live.
    cdef list pieces
    cdef list resets
    cdef list expiries
    # The piece that this past began itself and may add to.
    cdef Piece own
    # What it takes of memory, about, and what of that is counted.
    cdef Py_ssize_t bytes
    cdef Py_ssize_t counted

    cdef Lattice at(self, uint64_t epoch)
    cdef uint64_t reset_at(self, uint64_t epoch) except? 0xFFFFFFFFFFFFFFFF
    cdef Lattice joined_at(self, uint64_t epoch)
    cdef int note_register(self, uint64_t epoch, LWW written) except -1
    cdef int note_state(self, uint64_t epoch, uint64_t last, Lattice delta) except -1
    cdef int note_piece(self, Piece piece) except -1
    cdef int note_reset(self, uint64_t epoch, uint64_t stamp) except -1
    cdef bint settle_registers(self, uint64_t floor) except -1
    cdef int settle(self, list bounds, uint64_t window) except -1


cdef class History:
    cdef Store store
    cdef readonly uint64_t kept_from
    cdef readonly uint64_t floor
    cdef readonly uint64_t window
    cdef readonly dict pasts
    cdef readonly dict blurred
    cdef dict changed_in
    cdef readonly dict pins
    # [after which epoch, up to which, digest of the view under which those became stable].
    cdef list spans
    cdef int64_t until
    cdef readonly Py_ssize_t size_bytes
    cdef Placement former
    cdef int former_place
    cdef uint64_t since
    # Up to which epoch somebody was told of changes, 0 while nobody is; and the keys of which he was told what may be so no more.
    cdef uint64_t told
    cdef set unsure

    cdef int advanced(self, uint64_t before, uint64_t stable, uint64_t view) except -1
    cpdef uint64_t view_of(self, uint64_t epoch) except? 0xFFFFFFFFFFFFFFFF
    cdef Past open(self, bytes key, uint64_t epoch)
    cdef int count(self, Past past) except -1
    cdef int take(self, CellReader reader, uint64_t epoch, uint64_t reset) except -1
    cdef bint is_mixed(self, bytes key, Past past, uint64_t epoch) except -1
    cdef int blur(self, bytes key, uint64_t epoch) except -1
    cdef int forget(self, uint64_t epoch) except -1
    cdef bint reads(self, uint64_t epoch) noexcept
    cdef Lattice read(self, bytes key, uint64_t epoch)
    cdef int held_for(self, bytes key, uint64_t epoch, uint64_t stable, uint64_t* first, uint64_t* last) except -1
    cdef bint is_mortal(self, bytes key) except -1
