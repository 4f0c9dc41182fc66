"""How owners come to the same about keys whose time is over.

The one rule: what one owner ended and another had kept alive, all have again. An owner ends a key by its own clock, and may not have heard by
then of a write that was to keep the key alive. Of a register that does no harm: what ended is one write, and a later one has taken its place
everywhere. Of any other type the later write is a part alone: who had ended the key would be left with that part, and the others with the
whole. No reset says which part of a joined state is the older (decision 0014), so an end is told as what it is: whoever has the
key all the same, because it was written again in time, answers by all that it has of it, and then nobody has ended it.

What is said of a key's end is joined like a state, so that it does not matter in which order it is heard: of two stamps the later counts,
and of an end and a life as of one stamp the life. Workers that compare what they have compare ends, too: who is complete has heard of all.

Two bodies of links, both of cells (`anna.kvs.cells`). Ends: u8 2, cells without a state, whose `last` is the stamp of the write that has
outlived its time. Lives: u8 7, of each key that goes on such a cell with the end that is void, and the key's cells as in repair, which has ends
among its cells, too. Source: docs/decisions/0014.
"""

from libc.stdint cimport uint64_t

from anna.kvs.cells cimport CellReader, end_cell
from anna.kvs.clock cimport epoch_of
from anna.kvs.comparing cimport Comparing
from anna.kvs.store cimport Piece
from anna.lattices.lww cimport LWW

BODY_ENDS = 2
BODY_LIVES = 7


cdef class Endings(Comparing):
    """What this worker has ended since the last epoch, or keeps alive, and what the other owners say of theirs."""

    def expire(self, now_us, limit):
        """End at most `limit` keys whose time has come; return them."""
        gone = self.store.over(now_us, limit)
        for key in gone:
            self.end_life(key)
        return gone

    cdef int turn(self, uint64_t epoch) except -1:
        self.tell()
        return Comparing.turn(self, epoch)

    cdef int tell(self) except -1:
        """Tell the other owners what ended here, and send them what lives on. Behind what they were sent until now."""
        if not self.ends and not self.lives:
            return 0
        self.cut()
        ends, self.ends = self.ends, {}
        lives, self.lives = self.lives, {}
        self.send_to_owners(BODY_ENDS, {key: end_cell(key, stamp) for key, stamp in ends.items()})
        self.lives_prolonged += len(lives)
        cells = {key: self.cell_of(key) for key in lives}
        return self.send_to_owners(BODY_LIVES, {key: end_cell(key, lives[key]) + cell for key, cell in cells.items() if cell})

    cdef int send_to_owners(self, int kind, dict cells) except -1:
        """Send each key's cells to its other owners, in one body for each of those."""
        bodies = {}
        for key, cell in cells.items():
            for peer in self.peers_of(key):
                bodies.setdefault(peer, [bytes([kind])]).append(cell)
        for peer, parts in bodies.items():
            self.pending[peer].append((self.changes.round - 1, self.epoch, self.links[peer].send(b"".join(parts))))
        return 0

    # -- what the others say

    def take_ends(self, bytes body, Py_ssize_t place):
        """Keys have ended at another owner: they do here too, unless a later write was to keep them alive. Other cells are not looked at."""
        cdef CellReader reader = CellReader(body, place)
        while reader.next():
            if is_end(reader):
                self.take_end(reader.key[:reader.head.key_bytes], reader.head.last)

    cdef int take_end(self, bytes key, uint64_t stamp) except -1:
        kind = self.store.kind_of(key)
        if kind is LWW or not self.keeps(key):
            return 0  # what is a register here was written with another time, or to another key by that name
        if stamp <= <uint64_t>self.store.ended.get(key, 0):
            return 0
        if self.was_prolonged(key, stamp):
            self.store.live_on(key, stamp)
            self.lives[key] = self.store.survived[key]
            self.busy_until = max(self.busy_until, self.epoch + 2)
            return 0
        if self.history is not None:
            self.history.blur(key, max(self.epoch, self.clock.epoch()))
        self.store.end(key, stamp)
        self.void_ended(key, stamp)
        if self.watching:
            self.touched.add(key)
        return 0

    cdef bint was_prolonged(self, bytes key, uint64_t stamp) except -1:
        """Whether the write of `stamp` is known not to have ended `key`: something later is here, or took its time away."""
        cdef Piece piece
        cdef uint64_t last = self.store.expiries.get(key, (0, 0))[1]
        if stamp <= <uint64_t>self.store.survived.get(key, 0):
            return True
        if self.store.kind_of(key) is None:
            return False
        if last:
            return last > stamp
        if any([(<Piece>piece).last > stamp for piece in self.store.pieces.get(key, ())]):
            return True
        # That write is here if it is not above the floor, and so is what it had to say of the key's time, unless something later took that
        # back. Above it all that is here is in pieces. A stable epoch says less: it was so among those who were not called dead.
        return epoch_of(stamp) <= self.floor

    def take_lives(self, bytes body):
        """Keys live on at another owner, so they do here, unless they have ended as of a later write."""
        cdef CellReader reader = CellReader(body, 1)
        while reader.next():
            if is_end(reader):
                self.store.live_on(reader.key[:reader.head.key_bytes], reader.head.last)
        if self.snapshot is not None:
            self.snapshot.spoil()
        waiting = self.lives.copy()
        self.take_cells(body, 1, self.epoch)
        # Two that keep the key alive are not to answer each other.
        self.lives = waiting


cdef bint is_end(CellReader reader) noexcept:
    """Whether a cell says that its key has ended."""
    return reader.head.type == 0 and reader.head.reset == 0 and reader.head.last != 0
