"""A cell: one key with all that a replica, a log or a backup has to know of it, in bytes.

The one rule: a cell can be joined. It has a state (or none), the stamp of the key's last delete (`reset`, 0 for none) and the
stamp of the latest write in the state (`last`, 0 for registers, which carry their own). What a reset means to a state is decided in
`anna.kvs.store`, by stamps alone, so cells may arrive in any order and more than once.

    u16 key bytes | u8 type (0: no state) | u8 flags | u32 payload bytes | u64 reset | u64 last | key | [u64 expiry] | state
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cimport cython

from anna.buffer cimport Buffer
from anna.kvs.table cimport Table
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64

from anna.errors import ProtocolError

assert sizeof(CellHeader) == CELL_HEADER_BYTES

WHOLE = CELL_WHOLE

cdef enum:
    REGISTER_BYTES = 16
    EXPIRY_BYTES = 8


cdef int append_cell(Buffer out, bytes key, Lattice state, uint64_t reset, uint64_t last, int flags, uint64_t expires) except -1:
    """Append one cell; `state` None says that the key is deleted, `expires` 0 that the write stays."""
    cdef bytes encoded
    if type(state) is LWW:
        return append_register(out, key, <LWW>state, reset, expires)
    encoded = b"" if state is None else state.encode()
    place = begin_cell(out, key, 0 if state is None else state.NUMBER, flags, reset, last, expires, PyBytes_GET_SIZE(encoded))
    memcpy(place, PyBytes_AS_STRING(encoded), PyBytes_GET_SIZE(encoded))
    return 0


cdef int append_register(Buffer out, bytes key, LWW register, uint64_t reset, uint64_t expires) except -1:
    """Append the cell of a register."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(register.payload)
    cdef char* place = begin_cell(out, key, 1, 0, reset, 0, expires, REGISTER_BYTES + size)
    memcpy(place, &register.stamp, 8)
    memcpy(place + 8, &register.writer, 8)
    memcpy(place + REGISTER_BYTES, PyBytes_AS_STRING(register.payload), size)
    return 0


cdef bytes end_cell(bytes key, uint64_t stamp):
    """Return the cell that says that a key's time is over, which the write of `stamp` gave it."""
    cdef Buffer out = Buffer()
    append_cell(out, key, None, 0, stamp, 0, 0)
    return PyBytes_FromStringAndSize(out.data, out.size)


cdef char* begin_cell(Buffer out, bytes key, int type, int flags, uint64_t reset, uint64_t last, uint64_t expires, Py_ssize_t size) except NULL:
    """Append all of a cell but its state; return where that goes."""
    cdef Py_ssize_t key_bytes = PyBytes_GET_SIZE(key)
    cdef Py_ssize_t expiry_bytes = EXPIRY_BYTES if expires else 0
    cdef char* place = out.reserve(CELL_HEADER_BYTES + key_bytes + expiry_bytes + size)
    cdef CellHeader* head = <CellHeader*>place
    head.key_bytes = <uint16_t>key_bytes
    head.type = <uint8_t>type
    head.flags = <uint8_t>(flags | (CELL_EXPIRES if expires else 0))
    head.payload_bytes = <uint32_t>(expiry_bytes + size)
    head.reset = reset
    head.last = last
    place += CELL_HEADER_BYTES
    memcpy(place, PyBytes_AS_STRING(key), key_bytes)
    place += key_bytes
    memcpy(place, &expires, expiry_bytes)
    return place + expiry_bytes


@cython.final
cdef class CellReader:
    """Walks over cells, one after the other, from `place`. Raises ProtocolError where the bytes are no cell."""

    def __init__(self, bytes data, Py_ssize_t place=0):
        self.data = data
        self.place = place

    cdef bint next_of(self, Table states) except -1:
        """`next`, and begin to fetch from memory what is under the keys that follow; the cell's key has then `hash`."""
        if self.announced == self.told:
            self.announced = self.announce(states)
            self.told = 0
        if not self.next():
            return False
        self.hash = self.hashes[self.told]
        self.told += 1
        return True

    cdef int announce(self, Table states) noexcept:
        """Return of how many cells the keys are announced: none at the end, and where the next one is not whole."""
        cdef CellHeader head
        cdef Py_ssize_t left = PyBytes_GET_SIZE(self.data) - self.place
        cdef const char* place = PyBytes_AS_STRING(self.data) + self.place
        cdef int count = 0
        while count < ANNOUNCED_MAX and left >= CELL_HEADER_BYTES:
            memcpy(&head, place, CELL_HEADER_BYTES)
            place += CELL_HEADER_BYTES
            left -= CELL_HEADER_BYTES + <Py_ssize_t>head.key_bytes + <Py_ssize_t>head.payload_bytes
            if left < 0:
                break
            self.hashes[count] = hash64(place, head.key_bytes)
            place += <Py_ssize_t>head.key_bytes + <Py_ssize_t>head.payload_bytes
            count += 1
        states.announce(self.hashes, count)
        return count

    cdef bint next(self) except -1:
        """Step to the next cell; False at the end. `head`, `key`, `payload` (without the expiry) and `expires` are then its own."""
        cdef Py_ssize_t left = PyBytes_GET_SIZE(self.data) - self.place
        cdef const char* place = PyBytes_AS_STRING(self.data) + self.place
        if left == 0:
            return False
        if left < CELL_HEADER_BYTES:
            raise ProtocolError(f"a cell begins with {CELL_HEADER_BYTES} bytes, {left} are left")
        memcpy(&self.head, place, CELL_HEADER_BYTES)
        left -= CELL_HEADER_BYTES
        if left < <Py_ssize_t>self.head.key_bytes + <Py_ssize_t>self.head.payload_bytes or self.head.key_bytes == 0:
            raise ProtocolError(f"a cell says that its key has {self.head.key_bytes:,} bytes and its state {self.head.payload_bytes:,}; {left:,} are left")
        self.key = place + CELL_HEADER_BYTES
        self.payload = self.key + self.head.key_bytes
        self.place += CELL_HEADER_BYTES + self.head.key_bytes + self.head.payload_bytes
        self.expires = 0
        if self.head.flags & CELL_EXPIRES:
            if self.head.payload_bytes < EXPIRY_BYTES:
                raise ProtocolError("a cell that expires does not say when")
            memcpy(&self.expires, self.payload, EXPIRY_BYTES)
            self.payload += EXPIRY_BYTES
            self.head.payload_bytes -= EXPIRY_BYTES
        return True


def read_cells(bytes data, Py_ssize_t place=0):
    """Return [(key, type, flags, reset, last, expires, payload), …] of the cells in `data` from `place`. Raises ProtocolError."""
    cdef CellReader reader = CellReader(data, place)
    found = []
    while reader.next():
        found.append((
            reader.key[:reader.head.key_bytes], reader.head.type, reader.head.flags & ~CELL_EXPIRES, reader.head.reset, reader.head.last,
            reader.expires, reader.payload[:reader.head.payload_bytes],
        ))
    return found
