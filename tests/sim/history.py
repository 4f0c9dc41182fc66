"""What clients did and saw, as plain data: the only thing that the checkers read.

The one rule: nothing here comes from the protocol. One entry is one key of one operation; a write's `value` is unique
under its key, so that a read names the writes that it saw. An outcome is `ok`, `fail` (definite: it has had no effect
and never will) or `unknown` (it may have). Source: reliability B2; the three outcomes are Jepsen's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

OK, FAIL, UNKNOWN, OPEN = "ok", "fail", "unknown", "open"
PUT, GET, DELETE, REMOVE, REPLICATE = "put", "get", "delete", "remove", "replicate"
REGISTER, SET, COUNTER, ORSET = "register", "set", "counter", "orset"

FINAL = -1
"""The operation number of the reads that come after healing."""

WATCHED = -2
"""The operation number of what a watcher was shown."""

WATCHERS = 1000
"""What is added to a client's number for what it was shown: that is in no order with what it reads meanwhile."""


@dataclass(slots=True, eq=False)
class Entry:
    """One key's part of an operation. Times are virtual ns; stamps are the store's, 0 when unknown.

    `low` is the greatest stamp that the client had seen when it asked, `high` the answer's; with `exact` the
    write's own stamp is `high`. `seen` is what a read found, None for a missing key; `repeats` the values that a
    counter had counted more than once. `worker` names the incarnation that answered. `copies` and `durable` are what
    the acknowledgement says. `ttl` is the time that a write was given to live, 0 for ever; `compared` the stamp that a
    put named as the one that it replaces. A write that was made `again` may have several stamps;
    one whose owners may be told late is shown so many ns after its end (`shown_after`). The `value` of a
    change of a key's vector is how many copies it is to have.
    """

    operation: int
    client: int
    kind: str
    key: str
    type: str
    value: int
    deadline: int
    invoked: int
    ended: int = -1
    outcome: str = OPEN
    low: int = 0
    high: int = 0
    exact: bool = False
    copies: int = 0
    durable: int = 0
    worker: int = 0
    seen: frozenset[int] | None = None
    repeats: tuple[int, ...] = ()
    stamp: int = 0
    ttl: int = 0
    compared: int | None = None
    again: bool = False
    shown_after: int = 0
    why: str = ""

    @property
    def known_missing(self) -> bool:
        """Whether a read found nothing."""
        return self.kind == GET and self.outcome == OK and self.seen is None

    def __str__(self) -> str:
        what = f"#{self.operation} client {self.client} {self.kind} {self.key}"
        if self.kind != GET:
            what += f"={self.value}"
        if self.kind == GET and self.outcome == OK:
            seen = "nothing" if self.seen is None else sorted(self.seen)
            what += f" saw {seen}" + (f"@{self.stamp}" if self.stamp else "")
        elif self.outcome == OK:
            what += f" copies {self.copies} durable {self.durable} stamp {self.high}"
        return f"{what} [{self.invoked / 1e6:.3f}..{self.ended / 1e6:.3f} ms {self.outcome} {self.why}]"


@dataclass(slots=True, eq=False)
class Scan:
    """One scan: the keys that it gave, in their order, of those that begin with `prefix`."""

    operation: int
    client: int
    prefix: str
    deadline: int
    invoked: int
    ended: int = -1
    outcome: str = OPEN
    keys: list[str] = field(default_factory=list)
    why: str = ""

    def __str__(self) -> str:
        what = f"#{self.operation} client {self.client} scan {self.prefix!r} gave {self.keys}"
        return f"{what} [{self.invoked / 1e6:.3f}..{self.ended / 1e6:.3f} ms {self.outcome} {self.why}]"


@dataclass(slots=True)
class Losses:
    """When memory or disks were lost, and when redundancy was whole again. `factor` is the copies of each key.

    An acknowledgement counts workers, and a node dies with all of its own (`seats`): other nodes are waited for where
    there are any to be asked (P1), so what is on fewer nodes than it has copies was written while there were none.
    """

    factor: int
    crashes: list[int] = field(default_factory=list)
    wipes: list[int] = field(default_factory=list)
    restored: list[tuple[int, int]] = field(default_factory=list)
    """(up to when, moment): from that moment on all that was acknowledged up to then had all its copies."""
    nodes: list[tuple[int, int]] = field(default_factory=list)
    """(moment, nodes that are left) of each departure: there are no more copies than nodes."""
    fallen: list[tuple[int, int]] = field(default_factory=list)
    """(moment, node) of each loss of a process's memory."""
    away: dict[int, list[list[int]]] = field(default_factory=dict)
    """[begin, end] of each time in which somebody called a node dead, by node."""
    seats: int = 1
    """How many workers a node has."""
    at_hand: list[tuple[int, int]] = field(default_factory=list)
    """(moment, nodes that were to serve and that nobody called dead) of each look."""
    vectors_known: list[int] = field(default_factory=list)
    """Moments at which all that ran knew of the same changes of single keys' vectors."""

    def unheard(self, changed: int, written: int) -> bool:
        """Whether a change taken at `changed` may have been news to the worker that took a write at `written`."""
        return not any(changed <= moment <= written for moment in self.vectors_known)

    def spread(self, copies: int, begin: int, end: int) -> int:
        """Return on how many nodes at least `copies` are that were waited for between two moments."""
        before = max((moment for moment, _ in self.at_hand if moment <= begin), default=begin)
        after = min((moment for moment, _ in self.at_hand if moment >= end), default=end)
        nodes = min((count for moment, count in self.at_hand if before <= moment <= after), default=copies)
        return max(min(copies, nodes), -(-copies // self.seats))

    def note_away(self, nodes: Collection[int], before: int, now: int) -> None:
        """Note who is called dead `now`, having looked `before`, too, and looking next as much later."""
        until = 2 * now - before
        for node in nodes:
            times = self.away.setdefault(node, [])
            if times and times[-1][1] >= now:
                times[-1][1] = until
            else:
                times.append([before, until])

    def marks(self, acknowledged: int, until: int) -> list[int]:
        """Return the moments up to `until` at which what was acknowledged so early had all its copies."""
        return [moment for up_to, moment in self.restored if acknowledged <= up_to and moment <= until]

    def hide(self, copies: int, since: int, acknowledged: int, until: int, factor: int) -> bool:
        """Whether so many nodes crashed or were called dead meanwhile that none of `copies` can be asked for now.

        What somebody could be asked for when redundancy was whole again is held as often as it can be since then.
        """
        marks = self.marks(acknowledged, until)
        held = copies
        for begin, end in zip([since, *marks], [*marks, until]):
            gone = {node for node, times in self.away.items() if any(b <= end and e >= begin for b, e in times)}
            gone |= {node for moment, node in self.fallen if begin < moment <= end}
            if len(gone) >= held:
                return True
            held = max(copies, factor)
        return False

    def excuse(self, copies: int, durable: int, since: int, acknowledged: int, until: int, factor: int) -> bool:
        """Whether what was held `copies` times (`durable` of them on disk) from `since` on may be gone at `until`.

        Each crash may have taken one holder. Once redundancy was whole again, there are `factor` copies.
        """
        if durable and sum(since < wipe <= until for wipe in self.wipes) < durable:
            return False
        marks = self.marks(acknowledged, until)
        nodes = min((count for moment, count in self.nodes if moment <= until), default=copies + self.factor)
        held = min(copies, nodes)
        for begin, end in zip([since, *marks], [*marks, until]):
            if sum(begin < crash <= end for crash in self.crashes) >= held:
                return True
            held = min(max(copies, factor), nodes)
        return False


@dataclass(slots=True)
class Together:
    """A transaction: its entries by key, how many clients tried it, and the stamps that those were told."""

    entries: dict[str, Entry]
    tries: int = 0
    stamps: list[int] = field(default_factory=list)

    def ended(self, outcome: str, why: str, stamp: int, now: int) -> None:
        """One of its coordinators has ended: committed says more than unknown, and unknown more than refused."""
        order = (OPEN, FAIL, UNKNOWN, OK)
        for entry in self.entries.values():
            if order.index(outcome) > order.index(entry.outcome):
                entry.outcome, entry.why, entry.ended = outcome, why, now
                entry.deadline = max(entry.deadline, now - entry.invoked)
                if stamp:
                    entry.high, entry.exact = stamp, True


@dataclass(slots=True)
class History:
    """Everything that the checkers need of one run."""

    losses: Losses
    epoch_stamps: int
    entries: list[Entry] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    read_at: list[Entry] = field(default_factory=list)
    """What was read at epochs; `value` is the epoch, `compared` the view under which it became stable."""
    transactions: dict[int, Together] = field(default_factory=dict)
    watched: list[tuple[int, str]] = field(default_factory=list)
    """(client, key) of each watcher."""
    steady: bool = False
    """Whether each key has one owner, and the same one all the time."""
    healed: int = 0
    forgot_time: bool = False
    """Whether there was a moment at which nobody ran, so that nobody but the clients knew what time it had been."""

    def by_key(self) -> dict[str, list[Entry]]:
        """Return the entries of each key, in the order of their invocations."""
        keys: dict[str, list[Entry]] = {}
        for entry in self.entries:
            keys.setdefault(entry.key, []).append(entry)
        return keys
