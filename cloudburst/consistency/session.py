"""One session: where it reads, and what it has written that nobody else can see yet.

A pure core. The value of a key is its state at the end of the session's epoch, joined with what the client's earlier
sessions have committed above that epoch, joined with what this one has buffered. The one rule: an epoch is chosen once.
All functions of a session, on whatever node, read at that one, so they agree without a word; a context that names
another is refused. Source: DESIGN §4; decision record 0030.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from anna.config import EPOCH_US
from anna.lattices import Lattice
from anna.routing.hash import key_hash
from cloudburst.consistency.faults import PLANTED
from cloudburst.consistency.levels import Level
from cloudburst.consistency.own import CLOCK_MIN, SEES, WRITERS_MIN, Own, deleted, joined, written
from cloudburst.errors import ProtocolError

CARRIED_BYTES_MAX = 64 * 1024
"""Beyond this what a client has committed does not go along any more: its next session waits for the epoch instead."""


def epoch_of(stamp: int) -> int:
    """Return the epoch in which a worker's stamp is."""
    return (stamp >> 10) // EPOCH_US


def end_of(epoch: int) -> int:
    """Return the last stamp of an epoch."""
    return ((epoch + 1) * EPOCH_US << 10) - 1


def writer_of(high: int, low: int) -> int:
    """Return the writer under which an invocation's writes show in its session: a hash of its id."""
    mixed = (high * 0x9E3779B97F4A7C15 ^ (low + 0x7F4A7C15) * 0xC2B2AE3D27D4EB4F) & (1 << 64) - 1
    mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    return WRITERS_MIN | (mixed ^ mixed >> 32)


def writer_in_store(transaction: bytes) -> int:
    """Return the writer that a transaction's writes have at their owners."""
    return int(key_hash(transaction) >> 1 or 1)


class Snapshot(NamedTuple):
    """A stable epoch, and the digest of the view under which it became so; epoch 0: none."""

    epoch: int = 0
    view: int = 0


NOWHERE = Snapshot()


@dataclass(slots=True)
class Session:
    """A session's state. `writer` is whose writes are made; `last` the stamp of the last commit that it comes after.

    `begun`: it reads at `snapshot`; before that, `snapshot` is the least that it may begin at. `carried` are the
    client's earlier commits above that epoch, oldest first, as (commit stamp, {key: writes}); `buffered` are the writes
    of this one, and `commit` the stamp that they have got, 0 for none, or for several. `closes`: whoever ends the
    outermost function commits it. `recorded`: its client writes a history, in which it goes on from `parts`.
    """

    level: Level
    writer: int
    snapshot: Snapshot = NOWHERE
    last: int = 0
    begun: bool = False
    carried: list[tuple[int, dict[bytes, Own]]] = field(default_factory=list)
    buffered: dict[bytes, Own] = field(default_factory=dict)
    closes: bool = False
    recorded: bool = False
    clock: int = CLOCK_MIN
    parts: tuple[int, ...] = ()
    commit: int = 0

    # -- where it reads

    def begin(self, snapshot: Snapshot) -> None:
        """Read at this epoch from now on. What is committed up to there is not joined in any more: it is in it."""
        self.snapshot, self.begun = snapshot, True
        self.carried = [one for one in self.carried if epoch_of(one[0]) > snapshot.epoch]

    def wait_for(self, least: Snapshot) -> None:
        """Begin at no epoch below this one: an earlier one was lost, and is not to be tried again."""
        if least.epoch > self.snapshot.epoch:
            self.snapshot = least
            self.carried = [one for one in self.carried if epoch_of(one[0]) > least.epoch]

    @property
    def after(self) -> int:
        """The stamp that its commit must be later than: all that it can have read, and its client's own writes."""
        if "no-dependencies" in PLANTED:
            return 0
        return max(self.last, end_of(self.snapshot.epoch) if self.snapshot.epoch else 0)

    # -- values

    def owns(self, key: bytes) -> bool:
        """Whether a key's value is not simply that of the epoch."""
        return key in self.buffered or any(key in writes for _, writes in self.carried)

    def hides(self, key: bytes) -> bool:
        """Whether the value does not depend on the epoch's at all: the key was deleted in the session."""
        mine = self.buffered.get(key)
        if mine is not None and mine.deleted:
            return True
        return any(key in writes and writes[key].deleted for _, writes in self.carried)

    def value(self, key: bytes, state: Lattice | None) -> Lattice | None:
        """Return what a key holds in this session, whose state at the epoch is `state`. Raises LatticeTypeMismatch."""
        for _, writes in self.carried:
            if key in writes:
                state = writes[key].over(state)
        mine = self.buffered.get(key)
        return state if mine is None else mine.over(state)

    @staticmethod
    def must_see(value: Lattice) -> bool:
        """Whether a write of `value` has to be told what the key holds."""
        return value.NUMBER in SEES

    def put(self, key: bytes, value: Lattice, state: Lattice | None = None, lives_us: int = 0) -> None:
        """Write what lives so long (0: for ever); `state` is the key's at the epoch, as far as that is known.

        Raises LatticeTypeMismatch.
        """
        before = self.buffered.get(key)
        seen = self.value(key, state) if state is not None or self.owns(key) else None
        self.buffered[key] = written(before, seen, value, self.clock + 1, self.writer, lives_us)
        self.clock += 1

    def delete(self, key: bytes) -> None:
        """Delete a key."""
        self.clock += 1
        self.buffered[key] = deleted(self.clock)

    # -- branches

    def absorb(self, other: Session) -> None:
        """Take in what a branch has written: a function that has returned, or the next edge of a join.

        Raises ProtocolError when the branch read at another epoch, LatticeTypeMismatch when both wrote other types.
        """
        if other.snapshot != self.snapshot or other.level is not self.level:
            mine, theirs = self.snapshot.epoch, other.snapshot.epoch
            raise ProtocolError(f"a branch of a session at epoch {mine} was {other.level.name}, at {theirs}")  # S5
        both = {key: joined(self.buffered[key], one) for key, one in other.buffered.items() if key in self.buffered}
        self.buffered.update(other.buffered)
        self.buffered.update(both)
        self.last = max(self.last, other.last)
        self.clock = max(self.clock, other.clock)

    # -- the end

    def committed(self, stamp: int, writer: int = 0) -> None:
        """Take in that its writes have committed, under the transaction's `writer`; 0: one by one.

        The client's next session has them with it, as the owners have placed them, or begins where they are.
        """
        writes, self.buffered = self.buffered, {}
        self.last = max(self.last, stamp)
        self.commit = stamp if writer or len(writes) == 1 else 0
        if not self.level.carried:
            return
        if writer and writes and epoch_of(stamp) > self.snapshot.epoch:
            self.carried.append((stamp, {key: own.placed(stamp, writer) for key, own in writes.items()}))
        if not writer or self._carried_bytes() > CARRIED_BYTES_MAX:
            self._carry_none()

    def _carried_bytes(self) -> int:
        return sum(own.size_bytes + len(key) for _, kept in self.carried for key, own in kept.items())

    def _carry_none(self) -> None:
        """Have what is committed in the epoch that the next session begins at."""
        self.carried = []
        if self.last:
            self.snapshot = Snapshot(max(self.snapshot.epoch, epoch_of(self.last)), self.snapshot.view)

    def check(self) -> None:
        """Assert the invariants (docs/sessions.md)."""
        stamps = [stamp for stamp, _ in self.carried]
        assert stamps == sorted(stamps)
        assert all(stamp <= self.last for stamp in stamps), "S6: a commit that is carried is none of the client's"
        assert all(epoch_of(stamp) > self.snapshot.epoch for stamp in stamps), "S6: it is at the epoch already"
        assert not self.begun or self.snapshot.epoch, "S5: it has begun at no epoch"
        assert self.after >= max([self.last, *stamps]) or PLANTED, "S8: it may commit before what it has read"
        assert all(CLOCK_MIN < one.stamp <= self.clock for one in self.buffered.values())
        assert self.writer >= WRITERS_MIN


class Past:
    """What one client's sessions have seen and committed, for those that come after them.

    Sessions that end beside each other are joined: the later epoch, all that is committed above it.
    """

    def __init__(self) -> None:
        self.snapshot = NOWHERE
        self.last = 0
        self.clock = CLOCK_MIN
        self.carried: list[tuple[int, dict[bytes, Own]]] = []

    def next(self, level: Level, writer: int) -> Session:
        """Return the state of a session that begins now."""
        if not level.carried:
            return Session(level, writer)
        snapshot = self.snapshot if "forget-epoch" not in PLANTED else NOWHERE
        carried = list(self.carried) if "forget-own" not in PLANTED else []
        return Session(level, writer, snapshot, self.last, carried=carried, clock=self.clock)

    def learn(self, session: Session) -> None:
        """Take in a session that has ended."""
        known = {stamp for stamp, _ in self.carried}
        self.carried = sorted([*self.carried, *(one for one in session.carried if one[0] not in known)], key=_stamp)
        self.last, self.clock = max(self.last, session.last), max(self.clock, session.clock)
        self.saw(session.snapshot)

    def join(self, other: Past) -> None:
        """Come after what another client's sessions have seen and committed, too."""
        self.last = max(self.last, other.last)
        self.saw(other.snapshot)

    def saw(self, snapshot: Snapshot) -> None:
        """Begin no session below this epoch any more."""
        self.snapshot = max(self.snapshot, snapshot)
        self.carried = [one for one in self.carried if epoch_of(one[0]) > self.snapshot.epoch]

    def wrote(self, stamp: int) -> None:
        """Take in a write outside of sessions, of which only the stamp is known."""
        self.last = max(self.last, stamp)
        self.saw(Snapshot(epoch_of(stamp), self.snapshot.view))


def _stamp(one: tuple[int, dict[bytes, Own]]) -> int:
    return one[0]


def joined_branches(sessions: Iterable[Session]) -> Session:
    """Return the session of a step that comes after several, in the order of its edges. Raises as `absorb`."""
    found, *others = sessions
    for one in others:
        found.absorb(one)
        found.parts += one.parts
    return found
