"""Which keys changed since the last look, and by what: what is still to be sent to the replicas, or to be logged.

The one rule: a key is noted once a round, however often it is written, so a hot key costs what a cold one does. A register's change is its
state as it is when the round is taken; of any other type the round's joined delta is kept (a `Piece`), so that a set of a million
elements that grows by one sends one. A deleted key is noted like a register: its reset says all.
"""

from libc.stdint cimport uint32_t

cimport cython

from anna.buffer cimport Buffer
from anna.kvs.store cimport Piece


@cython.final
cdef class Changes:
    """The changes of one round: registers by key and hash, and key -> Piece, or None where the store's state says it all.

    A register that was deleted and written again may stand among the registers twice.
    """

    def __init__(self):
        self.registers = []
        self.hashes = Buffer()
        self.noted = {}
        self.round = 1

    def __len__(self):
        return len(self.registers) + len(self.noted)

    cdef int note(self, bytes key) except -1:
        """Note a deleted key; what was noted of its past is void."""
        self.noted[key] = None
        return 0

    cdef int note_piece(self, bytes key, Piece piece) except -1:
        """Note a delta; further ones of this round are to be merged into `piece_of(key)`."""
        self.noted[key] = piece
        return 0

    cdef Piece piece_of(self, bytes key):
        """Return the round's delta of `key`, or None."""
        return <Piece>self.noted.get(key)

    cdef tuple take(self):
        """Return the round's changes, (keys of registers, their hashes, {key: Piece or None}), and begin the next round."""
        cdef tuple taken = (self.registers, self.hashes, self.noted)
        self.registers = []
        self.hashes = Buffer()
        self.noted = {}
        self.round += 1
        if self.round == 0:
            self.round = 1
        return taken
