"""Repair: what two workers both hold becomes equal, whichever of them lacks what.

The one rule: a worker says DONE only when all that its peer lacked has been sent to it, so who has heard DONE from each
peer is complete. Hand-off to a worker that joins or from one that leaves, filling up after a crash, and the check that
nothing was lost on the way are this one exchange. They differ in the keys that are in scope: those that are here and
that the peer should have, by the rings that are or by those before. Both ends must count the same, or nothing looks
equal (docs/decisions/0012).

A round is one comparison under one view. Both ends do the same at the same time:

    DIGESTS   256 sums over the keys in scope; which buckets differ is known to both ends from these two messages
    CELLS     the keys of each bucket of which the peer has none, at once
    KEYS      of each other bucket that differs, the list of (key hash, cell hash); it is answered with the cells that
              the list lacks or has otherwise
    DONE      every list of the peer's is answered

Work comes in slices: `poll` looks at a bounded number of keys and gives a bounded number of bytes, so that a million
keys move beside the service of others. Lists are exchanged in groups of buckets, the same at both ends, which bounds
what is held. Cells are joined, so they may come twice, or from a round that is over. Writes go on meanwhile, and are
told by deltas.

A round belongs to (view version, view digest, number). What an end hears of another round is void, except the cells,
and the peer's latest DIGESTS: those of a view that this end has not seen yet are kept until it has. Of two rounds under
one view both ends go on to the later. Pure; nothing here reads a clock. Source: DESIGN §5 (membership); D10 of the
defects: a move of more than 50 keys sent the same 50 for ever.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NamedTuple

from anna import config
from anna.errors import ProtocolError
from anna.kvs.digest import Digests, Entry, bucket_of, decode_keys, differing, encode_keys, missing

DIGESTS: Final = 3
KEYS: Final = 4
CELLS: Final = 5
DONE: Final = 6

HEADER: Final = struct.Struct("<BQQI")
"""Kind, version and digest of the view, number of the round."""

Scan = Callable[[int, int], tuple[list[Entry], int | None]]
"""`scan(cursor, limit)` looks at no more than `limit` keys from a cursor on, 0 at first. It returns the entries of
those in scope, and where to go on, None at the end. A key that is there all the time is met at least once."""

Cell = Callable[[bytes], bytes]
"""`cell(key)` returns the key's cell, or cells, as they are sent; nothing when it is gone."""


class Round(NamedTuple):
    """What a comparison is about."""

    version: int
    digest: int
    number: int

    def is_of_view(self, other: Round) -> bool:
        """Whether both are under one view."""
        return self[:2] == other[:2]


class Phase(Enum):
    """What an end does next."""

    DIGESTING = auto()
    WAITING = auto()
    COLLECTING = auto()
    ANSWERING = auto()
    ENDING = auto()
    OVER = auto()


@dataclass(slots=True)
class Progress:
    """What repair with one peer has cost so far, over all rounds."""

    rounds: int = 0
    keys_scanned: int = 0
    cells_sent: int = 0
    bytes_sent: int = 0


@dataclass(slots=True)
class Comparison:
    """One round at one end: what is known of both sides, and what is still to be sent."""

    cursor: int = 0
    sums: Digests = field(default_factory=Digests)
    mine: bytes | None = None
    theirs: bytes | None = None
    bare: set[int] = field(default_factory=set)
    """Buckets of which the peer has no key; all go there during the first scan."""
    groups: deque[list[int]] = field(default_factory=deque)
    """Buckets that differ, yet to be listed, in runs that are held at once."""
    held: dict[int, list[Entry]] = field(default_factory=dict)
    """The keys of the present group's buckets whose lists the peer's have not been compared with."""
    lists: dict[int, bytes] = field(default_factory=dict)
    """The peer's lists that wait for ours."""
    listing: deque[int] = field(default_factory=deque)
    """Buckets of `held` whose lists are to be sent."""
    owed: deque[bytes] = field(default_factory=deque)
    """Keys whose cells are to be sent."""


class Repair:
    """One worker's side of repair with one peer. Bodies travel on a link: in order, none lost.

    `sent_done` and `heard_done` are of the present round; `complete` says that DONE was heard under the present view,
    and stays while further rounds look for what was lost.
    """

    def __init__(self) -> None:
        self.round = Round(0, 0, 0)
        self.phase = Phase.OVER
        self.sent_done = False
        self.heard_done = False
        self.complete = False
        self.progress = Progress()
        self._early: tuple[Round, bytes] | None = None
        self._comparison = Comparison()
        self._bytes_left = 0
        self._keys_left = 0

    def start(self, version: int, digest: int, scan: Scan, cell: Cell) -> None:
        """Begin to compare under a view (`View.version`, `View.digest`); what was under way is dropped."""
        self._scan, self._cell = scan, cell
        first = Round(version, digest, 1)
        if first.is_of_view(self.round):
            self.again()
            return
        self.complete = False
        early, self._early = self._early, None
        if early is not None and early[0].is_of_view(first):
            self._begin(*early)
        else:
            # It may be of a view that is newer still.
            self._early = early
            self._begin(first)

    def again(self) -> None:
        """Begin another round under the same view: the link is a successor, or it is time to look for what was lost."""
        assert self.round.number > 0, "no view was begun with"
        self._begin(self.round._replace(number=self.round.number + 1))

    @property
    def busy(self) -> bool:
        """Whether `poll` has something to do now; otherwise it waits for the peer, or is done."""
        now = self._comparison
        if now.owed or now.listing or self.phase in (Phase.DIGESTING, Phase.COLLECTING, Phase.ENDING):
            return True
        return self.phase is Phase.ANSWERING and (not now.held or any(bucket in now.held for bucket in now.lists))

    def poll(self, budget_bytes: int, budget_keys: int) -> list[bytes]:
        """Look at up to `budget_keys` keys; return about `budget_bytes` of bodies to send: the last may exceed it."""
        bodies: list[bytes] = []
        self._bytes_left, self._keys_left = budget_bytes, budget_keys
        while self._bytes_left > 0 and self._keys_left > 0 and self.busy:
            body = self._work()
            if body is not None:
                bodies.append(body)
                self._bytes_left -= len(body)
                self.progress.bytes_sent += len(body)
        return bodies

    def hear(self, body: bytes) -> bytes:
        """Take a body of the peer's; return the cells to join, one after the other: nothing, mostly.

        They are not looked into here: who joins them does that. Raises ProtocolError for what no peer sends.
        """
        if len(body) < HEADER.size:
            raise ProtocolError(f"a body of repair has at least {HEADER.size} bytes, got {len(body)}")
        kind, *of_round = HEADER.unpack_from(body)
        heard, rest = Round(*of_round), body[HEADER.size :]
        if kind == CELLS:
            return rest
        if kind == DIGESTS:
            self._hear_digests(heard, rest)
        elif kind not in (KEYS, DONE):
            raise ProtocolError(f"a body of repair has the unknown kind {kind}")
        elif heard == self.round:
            if kind == KEYS:
                self._hear_keys(rest)
            else:
                self.heard_done = self.complete = True
        return b""

    def check(self) -> None:
        """Assert the invariants."""
        now = self._comparison
        assert all(bucket_of(entry[1]) == bucket for bucket, entries in now.held.items() for entry in entries)
        assert set(now.listing) <= now.held.keys()
        assert not now.bare & {bucket for group in now.groups for bucket in group}
        assert self.sent_done == (self.phase is Phase.OVER and self.round.number > 0)
        left = [*now.owed, *now.listing, *now.held, *now.groups, *now.lists]
        assert not (self.sent_done and left), f"DONE was said with {len(left)} things left to do"
        assert self.complete or not self.heard_done

    # -- rounds

    def _begin(self, begun: Round, theirs: bytes | None = None) -> None:
        self.round = begun
        self.phase = Phase.DIGESTING
        self.sent_done = self.heard_done = False
        self.progress.rounds += 1
        self._comparison = Comparison(theirs=theirs)

    def _hear_digests(self, heard: Round, theirs: bytes) -> None:
        differing(theirs, theirs)
        if not heard.is_of_view(self.round):
            self._early = (heard, theirs)
        elif heard.number > self.round.number:
            self._begin(heard, theirs)
        elif heard.number == self.round.number:
            if self._comparison.theirs is None:
                self._comparison.theirs = theirs
                self._compare()
            else:
                # The peer has forgotten that it was in this round: on to one that is new to both.
                self.again()

    def _compare(self) -> None:
        """Both digests are known: see which buckets differ, as the peer does, and plan."""
        now = self._comparison
        if now.mine is None or now.theirs is None:
            return
        keys = 0
        for bucket, mine, theirs in differing(now.mine, now.theirs):
            if not theirs:
                now.bare.add(bucket)
            elif mine:
                keys += max(mine, theirs)
                if not now.groups or keys > config.REPAIR_KEYS_HELD_MAX:
                    now.groups.append([])
                    keys = max(mine, theirs)
                now.groups[-1].append(bucket)
        if now.bare and not now.groups:
            now.groups.append([])
        self._collect_next()

    def _collect_next(self) -> None:
        now = self._comparison
        if not now.groups:
            self.phase = Phase.ENDING
            return
        now.held = {bucket: [] for bucket in now.groups.popleft()}
        now.cursor = 0
        self.phase = Phase.COLLECTING

    def _hear_keys(self, rest: bytes) -> None:
        now = self._comparison
        bucket, pairs = decode_keys(rest)
        if bucket in now.held or any(bucket in group for group in now.groups):
            now.lists[bucket] = pairs

    # -- work

    def _work(self) -> bytes | None:
        """Do one bounded piece of work; return what there is to send of it."""
        now = self._comparison
        if now.owed:
            return self._send_cells()
        if now.listing:
            bucket = now.listing.popleft()
            return self._body(KEYS, encode_keys(bucket, now.held[bucket]))
        if self.phase is Phase.DIGESTING:
            return self._digest()
        if self.phase is Phase.COLLECTING:
            self._collect()
        elif self.phase is Phase.ANSWERING:
            self._answer()
        else:
            self.phase = Phase.OVER
            self.sent_done = True
            return self._body(DONE, b"")
        return None

    def _look(self) -> tuple[list[Entry], bool]:
        """Return the next keys in scope, and whether they are the last."""
        limit = self._keys_left
        entries, cursor = self._scan(self._comparison.cursor, limit)
        self._keys_left -= limit if cursor is not None else len(entries)
        self.progress.keys_scanned += len(entries)
        self._comparison.cursor = cursor or 0
        return entries, cursor is None

    def _digest(self) -> bytes | None:
        now = self._comparison
        entries, last = self._look()
        now.sums.add_all(entries)
        if not last:
            return None
        now.mine = now.sums.encode()
        self.phase = Phase.WAITING
        self._compare()
        return self._body(DIGESTS, now.mine)

    def _collect(self) -> None:
        """Pick out of the scan what the peer has nothing of, and what is to be listed."""
        now = self._comparison
        entries, last = self._look()
        for entry in entries:
            bucket = bucket_of(entry[1])
            if bucket in now.bare:
                now.owed.append(entry[0])
            elif bucket in now.held:
                now.held[bucket].append(entry)
        if last:
            now.bare = set()
            now.listing.extend(now.held)
            self.phase = Phase.ANSWERING

    def _answer(self) -> None:
        """Compare one list of the peer's with ours; when all of a group are, go on to the next group."""
        now = self._comparison
        for bucket in now.held:
            if bucket in now.lists:
                now.owed.extend(missing(now.held.pop(bucket), now.lists.pop(bucket)))
                return
        assert not now.held
        self._collect_next()

    def _send_cells(self) -> bytes | None:
        now = self._comparison
        cells: list[bytes] = []
        size = 0
        while now.owed and size < min(config.REPAIR_BODY_BYTES, self._bytes_left) and self._keys_left > 0:
            cell = self._cell(now.owed.popleft())
            self._keys_left -= 1
            if cell:
                cells.append(cell)
                size += len(cell)
        self.progress.cells_sent += len(cells)
        return self._body(CELLS, b"".join(cells)) if cells else None

    def _body(self, kind: int, rest: bytes) -> bytes:
        return HEADER.pack(kind, *self.round) + rest
