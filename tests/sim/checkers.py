"""What must be true of a history, whatever went wrong. No protocol code is imported here; a wrong rule there cannot
hide here.

The one rule: a checker counts only what is surely wrong. A write may be missing from a read when a deletion, or the
end of a time to live, may have covered it, or when more holders crashed than it had copies (`Losses.excuse`); it may be
present although nobody was told so. Everything else that is missing is lost, and everything else that is present was
made up. Sources: reliability B (P1, P2, P6, P10, P23), B2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from tests.sim.history import (
    COUNTER,
    DELETE,
    FAIL,
    FINAL,
    GET,
    OK,
    OPEN,
    ORSET,
    PUT,
    REGISTER,
    REMOVE,
    REPLICATE,
    UNKNOWN,
    Entry,
    History,
)

OVERTIME_NS = 500_000_000
"""How long after its deadline a call may end (P10)."""


class Violation(NamedTuple):
    """One broken promise: by which checker, and the entries that show it."""

    checker: str
    message: str


class KeyHistory:
    """The entries of one key, sorted by what they are."""

    def __init__(self, history: History, entries: list[Entry]) -> None:
        self.losses = history.losses
        self.epoch_stamps = history.epoch_stamps
        self.writes = {e.value: e for e in entries if e.kind == PUT}
        self.deletes = [e for e in entries if e.kind == DELETE and e.outcome != FAIL]
        self.endings = [e for e in entries if e.kind == PUT and e.ttl and e.outcome != FAIL]
        self.removes = [e for e in entries if e.kind == REMOVE and e.outcome != FAIL]
        self.vectors = [e for e in entries if e.kind == REPLICATE and e.outcome != FAIL]
        self.reads = [e for e in entries if e.kind == GET and e.outcome == OK]
        for read in self.reads:
            self._learn_stamp(read)

    def _learn_stamp(self, read: Entry) -> None:
        """A register's read tells the exact stamp of the write that it saw."""
        for value in read.seen or ():
            write = self.writes.get(value)
            if write is not None and read.type == REGISTER and not write.exact:
                write.high, write.exact = read.stamp, True

    def at_most(self, write: Entry) -> int | None:
        """Return the greatest stamp that the write can have, None when there is no bound."""
        if write.again:
            return None
        return write.high if write.exact or write.outcome == OK else None

    def at_least(self, write: Entry) -> int:
        """Return the least stamp that the write can have."""
        return write.high if write.exact and not write.again else write.low

    def lost(self, entry: Entry, read: Entry) -> bool:
        """Whether crashes excuse that `read` does not show what `entry` did, or, until all is healed, absences."""
        copies, durable = (entry.copies, entry.durable) if entry.outcome == OK else (1, 0)
        # Who gives a key fewer copies gives the others up: it is held no more often than that from then on. Who has not
        # heard of it counts them still; who has does not, even while they are there.
        vectors = [v for v in self.vectors if v.invoked < read.ended]
        factor = min([self.losses.factor, *(v.value for v in vectors)])
        copies = self.losses.spread(copies, entry.invoked, entry.ended)
        unheard = (v for v in vectors if v.outcome != OK or self.losses.unheard(v.ended, entry.invoked))
        copies = min([copies, *(v.value for v in unheard)])
        if read.operation != FINAL and self.losses.hide(copies, entry.invoked, entry.ended, read.ended, factor):
            return True
        return self.losses.excuse(copies, durable, entry.invoked, entry.ended, read.ended, factor)

    def covered(self, write: Entry, until: int) -> bool:
        """Whether a deletion, or a removal of the element, may have taken `write` away by `until`."""
        for delete in (*self.deletes, *self.endings):
            if delete.invoked < until:
                most = self.at_most(delete)
                if most is None or most >= self.at_least(write):
                    return True
        return any(r.value == write.value and r.invoked < until for r in self.removes)

    def shows(self, read: Entry, write: Entry) -> bool:
        """Whether `read` reflects `write`: it saw it, or, of a register, a later one."""
        if read.seen is None:
            return False
        return write.value in read.seen or (read.type == REGISTER and read.stamp >= self.at_least(write))

    def missing(self, read: Entry, write: Entry) -> bool:
        """Whether `write` is missing from `read` without an excuse."""
        return not (self.shows(read, write) or self.covered(write, read.ended) or self.lost(write, read))


def made_up(keys: Mapping[str, KeyHistory]) -> Iterator[Violation]:
    """A read sees only what somebody has begun to write and was not told to have failed; a counter counts each once."""
    for key in keys.values():
        for read in key.reads:
            for value in sorted(read.seen or ()):
                write = key.writes.get(value)
                if write is None:
                    yield Violation("made-up", f"{value} was never written: {read}")
                elif write.invoked > read.ended:
                    yield Violation("made-up", f"{value} was read before it was written: {read}; {write}")
                elif write.outcome == FAIL:
                    yield Violation("refused-write-seen", f"{write}; {read}")
            if read.repeats:
                yield Violation("counted-twice", f"{sorted(read.repeats)} in {read}")


def lost_writes(keys: Mapping[str, KeyHistory]) -> Iterator[Violation]:
    """Every acknowledged write is in the reads after healing."""
    for key in keys.values():
        for read in key.reads:
            if read.operation == FINAL:
                for write in key.writes.values():
                    if write.outcome == OK and write.ended <= read.invoked and key.missing(read, write):
                        yield Violation("lost-write", f"{write}; {read}")


def own_writes(keys: Mapping[str, KeyHistory]) -> Iterator[Violation]:
    """A client reads what it has written (read-your-writes)."""
    for key in keys.values():
        for read in key.reads:
            for write in key.writes.values():
                told = write.outcome == OK and not write.again and write.ended + write.shown_after <= read.invoked
                mine = write.client == read.client and told
                if mine and read.operation != FINAL and key.missing(read, write):
                    yield Violation("own-write-unseen", f"{write}; {read}")


def monotonic_reads(keys: Mapping[str, KeyHistory]) -> Iterator[Violation]:
    """A client never reads less than it has read before (monotonic reads)."""
    for key in keys.values():
        before: dict[int, dict[int, Entry]] = {}
        for read in key.reads:
            known = before.setdefault(read.client, {})
            for value, earlier in known.items():
                write = key.writes.get(value)
                if write is not None and earlier.ended <= read.invoked and key.missing(read, write):
                    yield Violation("read-went-back", f"{value} was in {earlier}; not in {read}; written by {write}")
            known.update(dict.fromkeys(sorted(read.seen or ()), read))


def revived(keys: Mapping[str, KeyHistory]) -> Iterator[Violation]:
    """What was deleted or removed does not come back."""
    for key in keys.values():
        for read in key.reads:
            for delete in key.deletes:
                must = delete.outcome == OK and delete.exact and delete.ended <= read.invoked
                if must and (read.operation == FINAL or read.client == delete.client):
                    yield from outlived(key, read, delete)
            if read.operation == FINAL and read.type == ORSET:
                yield from _removed(key, read)


def outlived(key: KeyHistory, read: Entry, delete: Entry) -> Iterator[Violation]:
    """What `read` shows although it was surely written before `delete`. Deltas are dropped by whole epochs."""
    for value in sorted(read.seen or ()):
        write = key.writes.get(value)
        most = None if write is None else key.at_most(write)
        if write is None or most is None or key.lost(delete, read):
            continue
        epoch = key.epoch_stamps
        older = most < delete.high if read.type == REGISTER else most // epoch < delete.high // epoch
        if older and not (read.type == COUNTER and _counted_on(key, read, write, delete)):
            yield Violation("delete-undone", f"{write}; {delete}; {read}")


def _counted_on(key: KeyHistory, read: Entry, write: Entry, delete: Entry) -> bool:
    """Whether the worker that took an increment took another that the deletion spared: a worker's count is one sum."""
    others = (key.writes[value] for value in sorted(read.seen or ()) if value in key.writes)
    return any(other.worker == write.worker and key.at_least(other) > delete.high for other in others)


def _removed(key: KeyHistory, read: Entry) -> Iterator[Violation]:
    """Elements that are there although the worker that had taken them has taken their removal too."""
    for remove in key.removes:
        write = key.writes.get(remove.value)
        if write is None or remove.value not in (read.seen or ()) or remove.outcome != OK:
            continue
        ordered = write.ended <= remove.invoked and remove.ended <= read.invoked
        saw = write.outcome == OK and write.worker == remove.worker and ordered
        if saw and not key.lost(remove, read):
            yield Violation("remove-undone", f"{write}; {remove}; {read}")


def overdue(history: History) -> Iterator[Violation]:
    """Every call ends by its deadline and half a second, with an outcome; after healing, with success."""
    for entry in history.entries:
        if entry.outcome == OPEN:
            yield Violation("no-end", str(entry))
        elif entry.ended - entry.invoked > entry.deadline + OVERTIME_NS:
            yield Violation("too-late", str(entry))
        elif entry.operation == FINAL and entry.outcome != OK:
            if history.forgot_time and entry.why.startswith("StampAhead"):
                continue  # clocks were set back while nobody ran: the stamps that clients have seen are in the future
            yield Violation("unavailable-after-healing", str(entry))


def unequal(replicas: Mapping[str, Mapping[int, bytes]]) -> Iterator[Violation]:
    """After healing, all replicas of a key hold the same bytes. `replicas`: key to (worker to cell)."""
    for key in sorted(replicas):
        if len(set(replicas[key].values())) > 1:
            shown = {f"{worker:x}": cell[:80].hex() for worker, cell in sorted(replicas[key].items())}
            yield Violation("replicas-differ", f"{key}: {shown}")


CHECKERS: tuple[Callable[[Mapping[str, KeyHistory]], Iterator[Violation]], ...] = (
    made_up,
    lost_writes,
    own_writes,
    monotonic_reads,
    revived,
)


def judge(history: History) -> list[Violation]:
    """Return all that is wrong with a history."""
    keys = {key: KeyHistory(history, entries) for key, entries in history.by_key().items()}
    found = [violation for check in CHECKERS for violation in check(keys)]
    return found + list(overdue(history))


__all__ = ["COUNTER", "UNKNOWN", "Violation", "judge", "unequal"]
