"""The levels by their definitions, tried on every order of commits: for histories of a few transactions of registers.

The one rule: nothing of `cloudburst.judge` but the format is used here, and nothing is clever. Source: Biswas & Enea
2019, section 3, with the order of sessions only where DESIGN promises it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations, permutations

from cloudburst.judge.history import FAILED, OK, READ, UNKNOWN, WRITE, History, Transaction, Value

Pair = tuple[int, int]
Read = tuple[int, str, int]
"""Reader, key, and who wrote it, -1 for absent."""


class Small:
    """A few transactions, with those of unknown outcome that are taken to have happened."""

    def __init__(self, transactions: list[Transaction], happened: set[int]) -> None:
        self.transactions = transactions
        self.happened = {n for n, one in enumerate(transactions) if one.outcome == OK} | happened
        self.writes = [self._writes(one) for one in transactions]
        self.reads: list[Read] = []
        reads = [self._take_reads(number) for number in range(len(transactions))]
        self.clean = all(reads)
        self.reading = {(source, reader) for reader, _, source in self.reads if source >= 0}
        self.sessions = set(self._sessions())
        self.told = set(self._told())

    @staticmethod
    def _writes(one: Transaction) -> dict[str, list[Value]]:
        found: dict[str, list[Value]] = {}
        for _, (kind, key, value) in one.operations():
            if kind == WRITE:
                found.setdefault(key, []).append(value)
        return found

    def _take_reads(self, number: int) -> bool:
        """Note the external reads; return whether all values read were committed ones."""
        clean, written, known = True, set(), set()
        for _, (kind, key, value) in self.transactions[number].operations():
            if kind == WRITE:
                written.add(key)
            elif key not in written:
                sources = [
                    n
                    for n, wrote in enumerate(self.writes)
                    if n in self.happened and wrote.get(key, [None])[-1] == value
                ]
                if value is None:
                    sources = [-1]
                clean = clean and bool(sources) and sources != [number]
                if key not in known and sources and sources != [number]:
                    self.reads.append((number, key, sources[0]))
                known.add(key)
        return clean

    def _sessions(self) -> Iterator[Pair]:
        for later, one in enumerate(self.transactions):
            for earlier in range(later):
                if self.transactions[earlier].session == one.session and self.transactions[earlier].outcome == OK:
                    yield earlier, later

    def _told(self) -> Iterator[Pair]:
        names = {one.lines[0].invocation: n for n, one in enumerate(self.transactions)}
        for number, one in enumerate(self.transactions):
            for name in one.lines[0].told:
                if self.transactions[names[name]].outcome == OK and names[name] != number:
                    yield names[name], number

    def repeatable(self) -> bool:
        for one in self.transactions:
            last: dict[str, Value] = {}
            for _, (kind, key, value) in one.operations():
                if kind == READ and (last.setdefault(key, value) != value or self._early(one, key, value, last)):
                    return False
                last[key] = value
        return True

    def _early(self, one: Transaction, key: str, value: Value, last: dict[str, Value]) -> bool:
        """Whether a transaction reads a value that it writes only after the read."""
        for _, operation in one.operations():
            if operation == (WRITE, key, value):
                return False
            if operation == (READ, key, value):
                return value is not None and value in self._writes(one).get(key, [])
        return False

    def reads_the_future(self) -> bool:
        return any(a == b for a, b in closure(self.sessions | self.told | self.reading))

    def orders(self, level: str) -> bool:
        """Whether there is an order of commits that the level allows."""
        past = closure(self.sessions | self.told | self.reading)
        must = {
            "read-atomic": self.reading,
            "causal": past,
            "read-your-writes": self.sessions,
            "monotonic-reads": set(),
        }[level]
        kept = self.reading if level == "read-atomic" else past
        before: set[Pair] = set()
        for reader, key, source in self.reads:
            for other, wrote in enumerate(self.writes):
                if other in (source, reader) or other not in self.happened or key not in wrote:
                    continue
                seen = (other, reader) in must
                if level == "monotonic-reads":
                    seen = any(k == key and s == other and (r, reader) in self.sessions for r, k, s in self.reads)
                if seen:
                    before.add((other, source))
        return any(fits(order, kept | before) for order in permutations(range(len(self.transactions))))


def fits(order: tuple[int, ...], pairs: set[Pair]) -> bool:
    place = {one: at for at, one in enumerate(order)} | {-1: -1}
    return all(place[a] < place[b] for a, b in pairs)


def closure(pairs: set[Pair]) -> set[Pair]:
    found = set(pairs)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return found


def brute(history: History) -> dict[str, bool]:
    """Return for each level whether it holds, whichever of the unknown outcomes happened."""
    unknown = [n for n, one in enumerate(history.transactions) if one.outcome == UNKNOWN]
    subsets = chain.from_iterable(combinations(unknown, size) for size in range(len(unknown) + 1))
    worlds = [Small(history.transactions, set(subset)) for subset in subsets]
    repeatable = worlds[0].repeatable()
    found = {"repeatable": repeatable}
    for level in ("read-atomic", "causal"):
        found[level] = repeatable and any(world.clean and world.orders(level) for world in worlds)
    for level in ("read-your-writes", "monotonic-reads"):
        found[level] = any(world.clean and world.orders(level) for world in worlds)
    found["clean"] = any(world.clean and not world.reads_the_future() for world in worlds)
    return found


__all__ = ["FAILED", "brute"]
