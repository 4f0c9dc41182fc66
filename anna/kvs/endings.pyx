"""How owners come to the same about keys whose time is over.

The one rule: what one owner ended and another had kept alive, all have again. An owner ends a key by its own clock, and may not have heard by
then of a write that was to keep the key alive. Of a register that does no harm: what ended is one write, and a later one has taken its place
everywhere. Of any other type the later write is a part alone: who had ended the key would be left with that part, and the others with the
whole. No reset says which part of a joined state is the older (decision 0014), so an end is told as what it is: whoever has the
key all the same, because it was written again in time, answers by all that it has of it, and then nobody has ended it.

Two bodies of links, both of cells (`anna.kvs.cells`). Ends: u8 2, cells without a state, whose `last` is the stamp of the write that has
outlived its time. Lives: u8 7, the cells of keys that go on, as in repair. Source: docs/decisions/0014.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t

from anna.buffer cimport Buffer
from anna.kvs.cells cimport CellReader, append_cell
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
        cdef Buffer buffer
        cdef bytes key
        cdef dict cells
        if not self.ends and not self.lives:
            return 0
        self.cut()
        ends, self.ends = self.ends, {}
        lives, self.lives = self.lives, {}
        cells = {}
        for key, stamp in ends.items():
            buffer = Buffer()
            append_cell(buffer, key, None, 0, stamp, 0, 0)
            cells[key] = PyBytes_FromStringAndSize(buffer.data, buffer.size)
        self.send_to_owners(BODY_ENDS, cells)
        self.lives_prolonged += len(lives)
        return self.send_to_owners(BODY_LIVES, {key: self.cell_of(key) for key in lives})

    cdef int send_to_owners(self, int kind, dict cells) except -1:
        """Send each key's cells to its other owners, in one body for each of those."""
        bodies = {}
        for key, cell in cells.items():
            for peer in self.peers_of(key) if cell else ():
                bodies.setdefault(peer, [bytes([kind])]).append(cell)
        for peer, parts in bodies.items():
            self.pending[peer].append((self.changes.round - 1, self.epoch, self.links[peer].send(b"".join(parts))))
        return 0

    # -- what the others say

    def take_ends(self, bytes body):
        """Keys have ended at another owner: they do here too, unless a later write was to keep them alive."""
        cdef CellReader reader = CellReader(body, 1)
        cdef bytes key
        cdef uint64_t stamp
        while reader.next():
            key, stamp = reader.key[:reader.head.key_bytes], reader.head.last
            kind = self.store.kind_of(key)
            if kind is LWW or not self.keeps(key):
                continue  # what is a register here was written with another time, or to another key by that name
            if kind is not None and self.was_prolonged(key, stamp):
                self.store.doubted[key] = max(stamp, self.store.doubted.get(key, 0))
                self.lives[key] = None
                self.busy_until = max(self.busy_until, self.epoch + 2)
                continue
            self.store.end(key, stamp)
            self.void_ended(key, stamp)
            if self.watching:
                self.touched.add(key)

    cdef bint was_prolonged(self, bytes key, uint64_t stamp) except -1:
        """Whether something is here of `key` that is later than the write of `stamp`, or took its time away."""
        cdef Piece piece
        cdef uint64_t last = self.store.expiries.get(key, (0, 0))[1]
        if last:
            return last > stamp
        if any([(<Piece>piece).last > stamp for piece in self.store.pieces.get(key, ())]):
            return True
        # That write is here if its epoch is stable, and so is what it had to say of the key's time, unless something later took that back.
        return epoch_of(stamp) <= self.stable or self.stable == 0

    def take_lives(self, bytes body):
        """Keys live on at another owner, so they do here."""
        cdef CellReader reader = CellReader(body, 1)
        cdef bytes key
        cdef dict doubted = {}
        while reader.next():
            key = reader.key[:reader.head.key_bytes]
            self.store.revive(key)
            # Two that keep the key alive are not to answer each other.
            if key in self.store.doubted:
                doubted[key] = self.store.doubted.pop(key)
        if self.snapshot is not None:
            self.snapshot.spoil()
        self.take_cells(body, 1, self.epoch)
        self.store.doubted.update(doubted)
