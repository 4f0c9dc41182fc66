"""What must be true of times to live, puts that compare, scans and watchers. No protocol code is imported here.

The one rule: as in `checkers`, only what is surely wrong counts. Time is that of stamps, and a worker's clock may be
ahead of another's, so a write may end sooner than it was told; that it lives on is sure only when everybody has been up
for as long as it was to live. Source: docs/promises.md (time to live, compare by stamp), the surface of the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.sim.checkers import KeyHistory, Violation
from tests.sim.history import FAIL, FINAL, GET, OK, OPEN, REGISTER, WATCHERS, Entry, History, Scan

LATE_NS = 500_000_000
"""How much later than it should a write may end."""


def outlived(history: History, keys: Mapping[str, KeyHistory]) -> Iterator[Violation]:
    """What was to live for a while is gone after it, when nothing was written later."""
    for key in keys.values():
        for write in key.writes.values():
            for read in key.reads if write.ttl and write.outcome == OK and write.exact else ():
                over = max(write.ended, history.healed) + write.ttl + LATE_NS
                if read.operation != FINAL or read.invoked < over or read.seen is None:
                    continue
                if read.type == REGISTER:
                    is_there = write.value in read.seen
                else:
                    is_there = _is_last(key, write) and not key.lost(write, read)
                if is_there:
                    yield Violation("outlived-its-time", f"{write} for {write.ttl / 1e6:.0f} ms; {read}")


def _is_last(key: KeyHistory, write: Entry) -> bool:
    """Whether every other write of the key is surely earlier, so that all ends with this one."""
    others = [other for other in key.writes.values() if other is not write and other.outcome != FAIL]
    bounds = [key.at_most(other) for other in others]
    return not key.removes and all(most is not None and most < write.high for most in bounds)


def compared(history: History, keys: Mapping[str, KeyHistory]) -> Iterator[Violation]:
    """A put that compared is later than what it replaced; where one owner decides, nobody else replaced the same."""
    for name, key in keys.items():
        won: dict[int, Entry] = {}
        for write in key.writes.values():
            if write.compared is None or write.outcome != OK:
                continue
            if write.high <= write.compared:
                yield Violation("compared-with-later", f"{write} replaced {write.compared}")
            again = write.compared or name[1] == "k"  # a key that may be deleted may be new more than once
            if history.steady and again and write.compared in won:
                yield Violation("compared-twice", f"{won[write.compared]}; {write}: both replaced {write.compared}")
            won[write.compared] = write


def scans(history: History, keys: Mapping[str, KeyHistory]) -> Iterator[Violation]:
    """A scan gives keys in order, each once, and none that was not written; after healing, just those there are."""
    for scan in history.scans:
        if scan.outcome == OPEN:
            yield Violation("no-end", str(scan))
        if scan.keys != sorted(set(scan.keys)) or not all(name.startswith(scan.prefix) for name in scan.keys):
            yield Violation("scan-out-of-order", str(scan))
        for name in scan.keys:
            writes = [*keys[name].writes.values(), *keys[name].removes] if name in keys else []
            if not any(_begun(write, scan) for write in writes):
                yield Violation("scan-made-up", f"{name} was never written: {scan}")
        if scan.operation == FINAL:
            if scan.outcome != OK:
                yield Violation("unavailable-after-healing", str(scan))
                continue
            found = [r.key for k in keys.values() for r in k.reads if _final(r, scan.client) and r.seen is not None]
            if sorted(found) != scan.keys:
                yield Violation("scan-differs", f"{sorted(set(found) ^ set(scan.keys))} in one of: {scan}; {found}")


def _begun(write: Entry, scan: Scan) -> bool:
    return write.outcome != FAIL and write.invoked <= scan.ended


def _final(read: Entry, client: int) -> bool:
    return read.operation == FINAL and read.client == client


def behind(history: History, keys: Mapping[str, KeyHistory]) -> Iterator[Violation]:
    """After healing, a watcher has been shown all that its client reads."""
    for client, name in history.watched:
        key = keys.get(name)
        if key is None:
            continue
        shown = [read for read in key.reads if read.client == WATCHERS + client]
        for read in key.reads:
            if not _final(read, client) or not read.seen:
                continue
            lacking = [value for value in sorted(read.seen) if not (shown and key.shows(shown[-1], key.writes[value]))]
            if lacking:
                last = shown[-1] if shown else "nothing"
                yield Violation("watcher-behind", f"{lacking} not in {last}; {read}")


def lingering(history: History, replicas: Mapping[str, Mapping[int, bytes]]) -> Iterator[Violation]:
    """What no client finds after healing has been given up by every owner. `replicas`: key to (worker to state)."""
    for name, entries in history.by_key().items():
        reads = [entry for entry in entries if entry.kind == GET and entry.operation == FINAL]
        held = [f"{worker:x}" for worker, state in sorted(replicas.get(name, {}).items()) if state]
        if held and reads and all(read.known_missing for read in reads):
            yield Violation("held-on", f"{name} is missing, and still at {', '.join(held)}")


def judge_surface(history: History) -> list[Violation]:
    """Return all that is wrong with what a history shows of the store's surface."""
    keys = {key: KeyHistory(history, entries) for key, entries in history.by_key().items()}
    return [v for check in (outlived, compared, scans, behind) for v in check(history, keys)]


def watchers_are_behind(history: History) -> bool:
    """Whether some watcher has not been shown yet what its client has read after healing."""
    names = {name for _, name in history.watched}
    keys = {key: KeyHistory(history, entries) for key, entries in history.by_key().items() if key in names}
    return any(True for _ in behind(history, keys))

