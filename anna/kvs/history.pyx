"""What the keys of one worker held at the end of recent epochs: what sessions read.

The one rule: the value of a key at epoch E is the join of what was written in epochs up to E, wherever it was written, and nothing else; so
every owner gives the same for it, and gives it again. Beside the state itself, which goes on, a key that changes has a `Past`: its state
as it was up to the `floor`, and what each later epoch changed. A change belongs to the epoch in which the owner that took it was, as for a
backup (`anna.kvs.snapshot`). A key without a past has not changed since the floor.

There is no history while nobody reads at epochs. Whoever first asks begins it, and its first epoch is the one that runs then; it ends when no lease
is left. Kept are the last epochs before the stable one, and those that are pinned; between two of them the changes are joined into one. What cannot
be known, because it came whole from another worker, or took more room than there is, is `blurred`: to read it is refused, and the session begins
again with a later epoch. Nothing else than the state at E is ever given for it. Source: DESIGN §4; docs/decisions/0027.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

cimport cython

from anna.kvs.cells cimport CELL_WHOLE, CellReader
from anna.kvs.store cimport Piece, Store
from anna.lattices.base cimport Lattice
from anna.lattices.lww cimport LWW
from anna.routing.hash cimport hash64
from anna.routing.placement cimport Placement

from bisect import bisect_left

from anna import config
from anna.errors import SnapshotExpired
from anna.kvs.faults import PLANTED
from anna.lattices import REGISTRY

cdef uint64_t EPOCH_US = config.EPOCH_US
cdef uint64_t RECENT_EPOCHS = config.RECENT_EPOCHS
cdef Py_ssize_t BYTES_MAX = config.HISTORY_BYTES_MAX
cdef Py_ssize_t BLURRED_MAX = config.HISTORY_BLURRED_MAX

cdef enum:
    # What a past takes beside its states, and a state beside its bytes, about.
    PAST_COST = 400
    PIECE_COST = 200
    ALWAYS = 0x7FFFFFFFFFFFFFFF


@cython.final
cdef class Past:
    """The past of one key: `base`, which nobody changes, and what came later, in no order."""

    def __init__(self):
        self.pieces = []
        self.resets = []
        self.expiries = []

    cdef uint64_t reset_at(self, uint64_t epoch) except? 0xFFFFFFFFFFFFFFFF:
        """Return the stamp of the key's last delete up to the end of `epoch`."""
        cdef uint64_t reset = self.reset
        for taken, stamp in self.resets:
            if taken <= epoch:
                reset = max(reset, <uint64_t>stamp)
        return reset

    cdef Lattice joined_at(self, uint64_t epoch):
        """Return a state of what was written up to `epoch` and not deleted by then, whether its time is over or not; None for nothing."""
        cdef uint64_t reset = self.reset_at(epoch)
        cdef Lattice state = None
        cdef Piece piece
        # All of the base is older than any later delete, but a register that its client had stamped.
        if self.base is not None and (reset == self.reset or (type(self.base) is LWW and (<LWW>self.base).stamp > reset)):
            state = self.base.copy()
        for piece in self.pieces:
            if piece.epoch > epoch or piece.last <= reset:
                continue
            if state is None:
                state = piece.state.copy()
            else:
                state.merge(piece.state)
        return state

    def expiry_at(self, uint64_t epoch):
        """Return (time, stamp of the write that set it) at the end of `epoch`; time 0: the key stays."""
        expires, stamp = self.expires, self.expires_of
        for taken, written, time in self.expiries:
            if taken <= epoch and written >= stamp:
                expires, stamp = time, written
        return expires, stamp

    cdef Lattice at(self, uint64_t epoch):
        """Return the state at the end of `epoch`, None when the key was not there."""
        cdef Lattice state = self.joined_at(epoch)
        if state is None or not (self.expires or self.expiries):
            return state
        expires, stamp = self.expiry_at(epoch)
        # A register that was written anew after its end says nothing of a time that was over by then.
        if is_over(expires, epoch) and not (type(state) is LWW and (<LWW>state).stamp > <uint64_t>stamp):
            return None
        return state

    cdef int note_register(self, uint64_t epoch, LWW written) except -1:
        """A register was written in `epoch`. Of one epoch the last write is enough."""
        cdef Piece piece
        cdef Py_ssize_t index
        self.bytes += PIECE_COST + PyBytes_GET_SIZE(written.payload)
        for index in range(len(self.pieces) - 1, -1, -1):
            piece = <Piece>self.pieces[index]
            if piece.epoch == epoch and type(piece.state) is LWW:
                self.bytes -= PIECE_COST + PyBytes_GET_SIZE((<LWW>piece.state).payload)
                if (<LWW>piece.state).loses_to(written.stamp, written.writer, PyBytes_AS_STRING(written.payload), PyBytes_GET_SIZE(written.payload)):
                    self.pieces[index] = Piece(epoch, written.stamp, written)
                return 0
        self.pieces.append(Piece(epoch, written.stamp, written))
        return 0

    cdef int note_state(self, uint64_t epoch, uint64_t last, Lattice delta) except -1:
        """The only owner of a key that is no register has changed it by `delta`."""
        cdef Piece piece = self.own
        self.bytes += <Py_ssize_t>delta.size_bytes
        if piece is None or piece.epoch != epoch or piece.last <= self.reset_at(epoch) or type(piece.state) is not type(delta):
            self.own = Piece(epoch, last, delta.copy())
            self.pieces.append(self.own)
            self.bytes += PIECE_COST
        else:
            piece.state.merge(delta)
            piece.last = last
        return 0

    cdef int note_piece(self, Piece piece) except -1:
        """Somebody has changed the key by `piece`, which may grow while its epoch lasts, but is not this object's."""
        if not self.pieces or self.pieces[len(self.pieces) - 1] is not piece:
            self.pieces.append(piece)
            self.bytes += PIECE_COST + <Py_ssize_t>piece.state.size_bytes
        return 0

    cdef int note_reset(self, uint64_t epoch, uint64_t stamp) except -1:
        """The key was deleted at `stamp`, in `epoch` or, where that was heard from another than who did it, earlier."""
        if stamp <= self.reset:
            return 0
        for taken, known in self.resets:
            if known == stamp and taken <= epoch:
                return 0
        self.resets = [entry for entry in self.resets if entry[1] != stamp]
        self.resets.append((epoch, stamp))
        return 0

    cdef bint settle_registers(self, uint64_t floor) except -1:
        """`settle` with nothing pinned, of a key that was only ever put; False, and nothing is done, for any other."""
        cdef Piece piece
        cdef list rest = []
        cdef LWW state
        if self.resets or self.expiries or self.expires or (self.base is not None and type(self.base) is not LWW):
            return False
        for piece in self.pieces:
            if type(piece.state) is not LWW:
                return False
        self.bytes = PAST_COST
        for piece in self.pieces:
            state = <LWW>piece.state
            if piece.epoch > floor:
                rest.append(piece)
                self.bytes += PIECE_COST + PyBytes_GET_SIZE(state.payload)
            elif state.stamp > self.reset and (self.base is None or (<LWW>self.base).loses_to(
                    state.stamp, state.writer, PyBytes_AS_STRING(state.payload), PyBytes_GET_SIZE(state.payload))):
                self.base = state
        self.pieces = rest
        if self.base is not None:
            self.bytes += PIECE_COST + PyBytes_GET_SIZE((<LWW>self.base).payload)
        return True

    cdef int settle(self, list bounds, uint64_t window) except -1:
        """Join what nobody tells apart any more: of the epochs up to `window` only those in `bounds` are read. The first becomes the base."""
        cdef Piece piece
        cdef uint64_t floor = bounds[0]
        cdef list groups
        if len(bounds) == 1 and self.settle_registers(floor):
            return 0
        base = self.joined_at(floor)
        expires = self.expiry_at(floor)
        reset = self.reset_at(floor)
        later = [piece for piece in self.pieces if piece.epoch > floor]
        groups = [[] for _ in range(len(bounds))]
        pieces = []
        for piece in later:
            if piece.epoch > window:
                pieces.append(piece)
            elif piece.last > self.reset_at(bounds[bisect_left(bounds, piece.epoch)]):
                groups[bisect_left(bounds, piece.epoch)].append(piece)
        self.pieces = [joined(group) for group in groups if group] + pieces
        self.own = None
        self.base, self.reset = base, reset
        self.expires, self.expires_of = expires
        self.resets = [entry for entry in self.resets if entry[0] > floor]
        self.expiries = [entry for entry in self.expiries if entry[0] > floor]
        self.bytes = PAST_COST + (PIECE_COST + <Py_ssize_t>self.base.size_bytes if self.base is not None else 0)
        for piece in self.pieces:
            self.bytes += PIECE_COST + <Py_ssize_t>piece.state.size_bytes
        return 0


cdef Piece joined(list pieces):
    """Return one piece of several that nobody tells apart any more."""
    cdef Piece piece
    cdef Lattice state
    if len(pieces) == 1:
        return pieces[0]
    state = (<Piece>pieces[0]).state.copy()
    for piece in pieces[1:]:
        state.merge(piece.state)
    return Piece(max([piece.epoch for piece in pieces]), max([piece.last for piece in pieces]), state)


cdef bint is_over(uint64_t expires_us, uint64_t epoch) noexcept:
    """Whether a time to live is over at the end of an epoch."""
    return 0 < expires_us < (epoch + 1) * EPOCH_US


@cython.final
cdef class History:
    """What the keys of `store` held at the end of `epoch`, which runs, and of later ones. `until` is when its lease ends, in monotonic ns."""

    def __init__(self, Store store, uint64_t epoch, int64_t until):
        self.store = store
        self.pasts = {}
        self.blurred = {}
        self.changed_in = {}
        self.pins = {}
        self.spans = []
        self.until = until
        self.since = 0
        self.told = 0
        self.unsure = set()
        self.forget(epoch)

    # -- leases

    def renew(self, int64_t until):
        """Somebody reads at recent epochs: keep them until then at least."""
        self.until = max(self.until, until)

    def pin(self, uint64_t epoch, int64_t until):
        """Keep what was at the end of `epoch` until then, at least."""
        self.pins[epoch] = max(until, <int64_t>self.pins.get(epoch, 0))
        self.renew(until)

    cdef int advanced(self, uint64_t before, uint64_t stable, uint64_t view) except -1:
        """The epochs after `before` up to `stable` have become stable under the view of this digest."""
        if self.spans and self.spans[len(self.spans) - 1][2] == view:
            self.spans[len(self.spans) - 1][1] = stable
        else:
            self.spans.append([before, stable, view])
        return 0

    cpdef uint64_t view_of(self, uint64_t epoch) except? 0xFFFFFFFFFFFFFFFF:
        """Return the digest of the view under which `epoch` became stable, 0 where that is not known.

        On the two sides of a partition that take each other for dead an epoch is stable twice, and holds different things.
        """
        for span in self.spans:
            if <uint64_t>span[0] < epoch <= <uint64_t>span[1]:
                return span[2]
        return 0

    def has_ended(self, int64_t now):
        """Whether nobody reads here any more."""
        return now > self.until

    # -- what changes

    cdef Past open(self, bytes key, uint64_t epoch):
        """`key` is about to be changed by a write of `epoch`: return where that is to be noted, None where it is nobody's past."""
        cdef Past past = self.pasts.get(key)
        if past is None:
            if epoch <= self.floor:
                return None
            if key in self.store.lost:
                self.blur(key, epoch)
                return None
            past = Past()
            state = self.store.look(key)
            past.base = None if state is None else state.copy()
            past.reset = self.store.reset_of(key)
            past.expires, past.expires_of = self.store.expiries.get(key, (0, 0))
            past.bytes = PAST_COST + (0 if state is None else PIECE_COST + <Py_ssize_t>state.size_bytes)
            self.pasts[key] = past
            self.count(past)
        changed = self.changed_in.get(epoch)
        if changed is None:
            changed = self.changed_in[epoch] = {}
        changed[key] = None
        if epoch <= self.told:
            self.unsure.add(key)
        return past

    cdef int count(self, Past past) except -1:
        """A past has grown, or become less."""
        self.size_bytes += past.bytes - past.counted
        past.counted = past.bytes
        return 0

    def note_expiry(self, bytes key, uint64_t epoch, uint64_t stamp, uint64_t expires_us):
        """The write of `stamp` gave the key a time to live; 0: took it away."""
        cdef Past past = self.pasts.get(key)
        if past is not None:
            past.expiries.append((epoch, stamp, expires_us))

    cdef int take(self, CellReader reader, uint64_t epoch, uint64_t reset) except -1:
        """A cell of `epoch` has arrived from another owner and is about to be joined into the store, as is its `reset`; 0: there is none."""
        cdef bytes key = reader.key[:reader.head.key_bytes]
        cdef Past past
        cdef Lattice state
        cdef uint64_t last = reader.head.last
        kind, present = REGISTRY.get(reader.head.type), self.store.kind_of(key)
        if reader.head.flags & CELL_WHOLE or (present is not None and kind is not None and present is not kind):
            return self.blur(key, epoch)
        if epoch <= self.floor and key not in self.pasts:
            return 0
        past = self.open(key, epoch)
        if past is None:
            return 0
        if reset > past.reset_at(ALWAYS) and self.is_mixed(key, past, epoch):
            return self.blur(key, epoch)
        if reset:
            past.note_reset(epoch, reset)
        if kind is None:
            return 0
        state = kind.decode(reader.payload[:reader.head.payload_bytes])
        if type(state) is LWW:
            last = (<LWW>state).stamp
            past.note_register(epoch, <LWW>state)
        else:
            past.note_piece(Piece(epoch, last, state))
        if reader.expires or past.expires or past.expiries:
            past.expiries.append((epoch, last, reader.expires))
        return self.count(past)

    cdef bint is_mixed(self, bytes key, Past past, uint64_t epoch) except -1:
        """Whether a delete of `epoch` may be older than a part of the base, which cannot be told from the rest."""
        if past.base is None or type(past.base) is LWW:
            return False
        return epoch <= max(self.kept_from, <uint64_t>self.blurred.get(key, 0))

    cdef int blur(self, bytes key, uint64_t epoch) except -1:
        """What `key` held before the end of `epoch` is not known any more."""
        cdef Past past = self.pasts.pop(key, None)
        if past is not None:
            self.size_bytes -= past.counted
        self.blurred[key] = max(epoch, <uint64_t>self.blurred.get(key, 0))
        if self.told:
            self.unsure.add(key)
        if len(self.blurred) > BLURRED_MAX:
            self.forget(epoch)
        return 0

    cdef int forget(self, uint64_t epoch) except -1:
        """Nothing is known of what was before the end of `epoch`, which runs."""
        self.kept_from = self.floor = self.window = epoch
        self.pasts = {}
        self.blurred = {}
        self.changed_in = {}
        self.pins = {}
        self.size_bytes = 0
        return 0

    def moved(self, Placement former, int place, uint64_t epoch):
        """This worker is complete for another view in `epoch`: it knows the past of those keys that it had before, by the placement `former`."""
        if former is None:
            self.forget(epoch)
            return
        if self.since > self.floor:
            self.kept_from = max(self.kept_from, self.since)
        self.former, self.former_place, self.since = former, place, epoch

    # -- what is forgotten

    def settle(self, uint64_t stable, uint64_t epoch, int64_t now):
        """Let go of what no lease holds any more. `stable` is the stable epoch, `epoch` the one that runs."""
        cdef Past past
        cdef bint released = False
        cdef uint64_t window = max(self.window, stable - min(stable, RECENT_EPOCHS))
        if self.size_bytes > BYTES_MAX:
            self.forget(epoch)
            return
        for pinned in [pinned for pinned, until in self.pins.items() if until < now]:
            del self.pins[pinned]
            released = True
        if window == self.window and not released:
            return
        bounds = sorted([pinned for pinned in self.pins if pinned < window]) + [window]
        settled = [changed for changed in self.changed_in if changed <= window]
        keys = {key: None for changed in settled for key in self.changed_in.pop(changed)}
        self.window = window
        self.floor = bounds[0]
        for key in list(self.pasts) if released else keys:
            past = self.pasts.get(key)
            if past is None:
                continue
            past.settle(bounds, window)
            self.count(past)
            if not past.pieces and not past.resets and not past.expiries and not self.is_to_change(key):
                del self.pasts[key]
                self.size_bytes -= past.counted
        for key in [key for key, known in self.blurred.items() if known <= self.floor]:
            del self.blurred[key]
        self.spans = [span for span in self.spans if <uint64_t>span[1] >= self.floor]

    def is_to_change(self, bytes key):
        """Whether a key has changed in an epoch that is not settled, though nothing of that is noted."""
        return any([key in changed for changed in self.changed_in.values()])

    # -- what is read

    cdef bint reads(self, uint64_t epoch) noexcept:
        """Whether the end of `epoch` can be read here, as far as that does not depend on the key."""
        return epoch >= self.kept_from and (epoch >= self.window or epoch in self.pins)

    @property
    def oldest(self):
        """The first epoch from which on all can be read."""
        return max(self.kept_from, self.window)

    cdef Lattice read(self, bytes key, uint64_t epoch):
        """Return the state of `key` at the end of `epoch`, which may be the store's own; None when it was not there. Raises SnapshotExpired."""
        cdef Past past
        cdef uint64_t expires
        if self.blurred and epoch < <uint64_t>self.blurred.get(key, 0):
            raise SnapshotExpired(f"what {key[:64]!r} held at epoch {epoch} is not known here any more")
        if epoch < self.since and not self.former.spans(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), self.former_place):
            raise SnapshotExpired(f"{key[:64]!r} was not this worker's at epoch {epoch}")
        past = self.pasts.get(key)
        if past is not None and "newest-at-epoch" not in PLANTED:
            return past.at(epoch)
        expires = self.store.expiry_of(key) if self.store.expiries else 0
        return None if is_over(expires, epoch) else self.store.read(key)

    cdef int held_for(self, bytes key, uint64_t epoch, uint64_t stable, uint64_t* first, uint64_t* last) except -1:
        """Write the first and the last epoch up to `stable` of which it is known that `key` held in them what it held at `epoch`, which can be read."""
        cdef Past past = self.pasts.get(key)
        cdef Piece piece
        if epoch < self.window:  # between those that are pinned nothing is told apart
            first[0] = last[0] = epoch
            return 0
        first[0], last[0] = max(self.oldest, <uint64_t>self.blurred.get(key, 0)), stable
        if self.since > first[0] and not self.former.spans(hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), self.former_place):
            first[0] = self.since
        for span in self.spans:
            if <uint64_t>span[0] < epoch <= <uint64_t>span[1]:
                first[0], last[0] = max(first[0], <uint64_t>span[0] + 1), min(last[0], <uint64_t>span[1])
        if past is None:
            return 0
        for changed in [piece.epoch for piece in past.pieces] + [entry[0] for entry in past.resets]:
            if <uint64_t>changed <= epoch:
                first[0] = max(first[0], <uint64_t>changed)
            else:
                last[0] = min(last[0], <uint64_t>changed - 1)
        return 0

    cdef bint is_mortal(self, bytes key) except -1:
        """Whether a key has, or had lately, a time to live: it may end without a change."""
        cdef Past past = self.pasts.get(key)
        return key in self.store.expiries or (past is not None and (past.expires or any([entry[2] for entry in past.expiries])))

    def take_changed(self, uint64_t after, uint64_t until, dict wanted):
        """Return those of the keys `wanted`, in order, that have changed in the epochs after `after` up to `until`, or may not be any more what they were."""
        changed, self.unsure = self.unsure, set()
        for epoch, keys in self.changed_in.items():
            if after < <uint64_t>epoch <= until:
                changed.update(keys if len(keys) < len(wanted) else [key for key in wanted if key in keys])
        return sorted([key for key in changed if key in wanted])

    def check(self):
        """Assert the invariants (S3 in docs/sessions.md): with all that came later, a past is what the store has."""
        cdef Past past
        assert self.floor <= self.window, (self.floor, self.window)
        assert self.size_bytes == sum([(<Past>past).counted for past in self.pasts.values()])
        for key, past in self.pasts.items():
            assert past is not None
            if key in self.store.lost or self.store.expiries or past.expiries or past.expires:
                continue
            state, present = past.joined_at(ALWAYS), self.store.look(key)
            assert (state is None) == (present is None), ("S3", key, state, present)
            assert state is None or state.encode() == present.encode(), ("S3", key, state, present)
