from libc.stdint cimport int64_t, uint64_t

from anna.lattices.base cimport Lattice


cdef enum:
    # Of a write of a transaction: what the key held before it is deleted. What else a write may be marked with is FLAG_EXPIRES.
    PART_DELETES = 1


cdef class Part:
    # Of the part of who decides between attempts it is empty, and there is no state.
    cdef readonly bytes key
    cdef readonly uint64_t hash
    cdef readonly uint64_t proposal
    # None where nothing is written: of a delete alone.
    cdef readonly Lattice state
    cdef readonly int flags
    # For how many microseconds from the commit on it lives; 0: for ever.
    cdef readonly uint64_t lives_us

    @staticmethod
    cdef Part make(bytes key, uint64_t hash, Lattice state, int flags, uint64_t lives_us)


cdef class Record:
    # The transaction's id and the number of the attempt, 24 bytes.
    cdef readonly bytes name
    # ((hash of a key, worker that was asked to prepare it), …) of all its keys.
    cdef readonly tuple places
    # What is prepared here: Parts by their keys' hashes.
    cdef readonly dict parts
    # The least and the greatest proposal among them.
    cdef readonly uint64_t first
    cdef readonly uint64_t last
    cdef readonly Py_ssize_t size_bytes
    # When (monotonic ns) the others are to be asked, unless somebody says before what became of it.
    cdef public int64_t due
    # Since when (us) it is set aside.
    cdef public uint64_t lost_us
    # What the others have said: proposals by hash, and by hash who has nothing prepared.
    cdef readonly dict known
    cdef readonly dict absent

    cdef int add(self, Part part) except -1


cdef bytes encode_record(Record record, hashes)
cdef Record decode_record(bytes data, Py_ssize_t place)
