"""The set-full workload: clients add numbers that nobody adds twice to a few sets, and afterwards the sets are read.

The one rule: a number says what became of its write. One that was acknowledged and is not there was lost; one that was
surely refused, or never tried, and is there, was made up; how long after its acknowledgement reads still lacked it is
its time to be visible. Counting is pure (`judge`); the clients are a program (`python -m tests.lab.setfull`), so that
they run in any host. Source: Jepsen's set-full; reliability.md B.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import anna
from tests.lab.programs import Program, Start, ack_of

OK: Final = "ok"
REFUSED: Final = "refused"
UNKNOWN: Final = "unknown"
"""What a write ended with: acknowledged, surely without effect, or with an error that says that it may have had one."""


@dataclass(frozen=True, slots=True)
class Add:
    """One write of `element` into the set at `key`; times are seconds of one clock."""

    key: str
    element: int
    invoked: float
    ended: float
    outcome: str
    replicas: int = 0
    durable: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    """One read of the set at `key`."""

    key: str
    invoked: float
    ended: float
    elements: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class History:
    """What clients did and saw, in no order. Histories of clients with different elements can be added."""

    adds: tuple[Add, ...] = ()
    reads: tuple[Read, ...] = ()
    failed_reads: tuple[str, ...] = ()

    def __add__(self, other: History) -> History:
        return History(self.adds + other.adds, self.reads + other.reads, self.failed_reads + other.failed_reads)

    def acknowledged(self) -> tuple[Add, ...]:
        return tuple(add for add in self.adds if add.outcome == OK)

    def since(self, moment: float) -> History:
        """Return the writes that were begun after `moment`, and all reads."""
        return History(tuple(add for add in self.adds if add.invoked > moment), self.reads, self.failed_reads)

    def longest_call_s(self) -> float:
        """Return how long the longest write took to end, well or ill."""
        return max(add.ended - add.invoked for add in self.adds)

    def longest_gap_s(self, key: str, begun: float, ended: float) -> float:
        """Return the longest time between `begun` and `ended` in which no write to `key` was acknowledged."""
        moments = sorted(add.ended for add in self.acknowledged() if add.key == key and begun <= add.ended <= ended)
        return max(b - a for a, b in zip([begun, *moments], [*moments, ended]))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a history comes to, given what the sets hold in the end; elements are sorted."""

    attempted: int
    acknowledged: int
    lost: tuple[int, ...]
    """Acknowledged, and not there in the end."""
    vanished: tuple[int, ...]
    """Not acknowledged, seen by some read, and not there in the end."""
    never_read: tuple[int, ...]
    """Perhaps written, and never seen: the good end of an unknown outcome, like being seen is."""
    made_up: tuple[int, ...]
    """Seen, though its write was surely refused or was never tried."""
    visible_after_s: tuple[float, ...] = field(repr=False)
    """For each acknowledged element that is there: how long after its acknowledgement the last read without it was."""

    def visible_within_s(self, share: float) -> float:
        """Return the time within which this share of the elements was visible to every read; 0 when there are none."""
        ordered = sorted(self.visible_after_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def judge(history: History, final: Mapping[str, frozenset[int]]) -> Verdict:
    """Compare what clients were told with `final`, the sets as they are read when all is over."""
    held = {(key, element) for key, elements in final.items() for element in elements}
    seen = held | {(read.key, element) for read in history.reads for element in read.elements}
    tried = {(add.key, add.element): add for add in history.adds}
    acknowledged = {place for place, add in tried.items() if add.outcome == OK}
    refused = {place for place, add in tried.items() if add.outcome == REFUSED}
    return Verdict(
        attempted=len(tried),
        acknowledged=len(acknowledged),
        lost=_elements(acknowledged - held),
        vanished=_elements((seen & tried.keys()) - held - acknowledged),
        never_read=_elements(tried.keys() - refused - acknowledged - seen),
        made_up=_elements(seen - (tried.keys() - refused)),
        visible_after_s=tuple(_visibility(history, acknowledged & held)),
    )


def _elements(places: Iterable[tuple[str, int]]) -> tuple[int, ...]:
    return tuple(sorted(element for _, element in places))


def _visibility(history: History, places: set[tuple[str, int]]) -> Iterable[float]:
    """Give the time to be visible of each element at `places`. O(reads of its key) each."""
    reads: dict[str, list[tuple[float, frozenset[int]]]] = {}
    for read in history.reads:
        reads.setdefault(read.key, []).append((read.invoked, frozenset(read.elements)))
    for of_key in reads.values():
        of_key.sort(key=lambda read: read[0], reverse=True)
    for add in history.adds:
        if (add.key, add.element) in places:
            lacking = (invoked for invoked, elements in reads.get(add.key, ()) if add.element not in elements)
            yield max(next(lacking, add.ended) - add.ended, 0.0)


# -- the clients, as seen by a test


class Clients:
    """The workload's program, running."""

    def __init__(self, start: Start, addresses: Sequence[str], **options: object) -> None:
        """Run until `stop`. `options` are the program's, by name: keys, clients, ack, timeout, rate, reads, first."""
        self._program = Program(start, "tests.lab.setfull", "acknowledged", addresses, options)

    def stop(self) -> History:
        """End the workload and return its history."""
        return _load(self._program.stop())

    def close(self) -> None:
        """End the program, whether or not it was stopped: a test that fails leaves nothing to the next one."""
        self._program.close()


def _load(found: dict[str, Any]) -> History:
    adds = tuple(Add(**add) for add in found["adds"])
    reads = tuple(Read(**read | {"elements": tuple(read["elements"])}) for read in found["reads"])
    return History(adds, reads, tuple(found["failed_reads"]))


def read_all(addresses: Sequence[str], keys: int, patience_s: float = 20.0) -> dict[str, frozenset[int]]:
    """Return every set of the workload, as one client reads it; an absent set is empty. Waits for those who answer."""
    deadline = time.monotonic() + patience_s
    final: dict[str, frozenset[int]] = {}
    while len(final) < keys:
        key = key_of(len(final))
        try:
            with anna.Client(addresses) as kvs:
                final[key] = frozenset(kvs.get(key, frozenset()))
        except anna.UnavailableError:
            if time.monotonic() > deadline:
                raise
    return final


def key_of(number: int) -> str:
    """Return the key of the workload's set of this number."""
    return f"set-{number}"


# -- the program


class _Workload:
    """Threads with a client each, which go on until `over` is set."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.over = threading.Event()
        self.first_acknowledged = threading.Event()
        self.adds: list[Add] = []
        self.reads: list[Read] = []
        self.failed_reads: list[str] = []

    def run(self, number: int) -> None:
        """Be client `number`: add its numbers, one after the other, each at its time; read now and then."""
        options = self.options
        kvs = self._connect()
        pause = options.clients / options.rate
        due = time.monotonic() + pause * number / options.clients
        count = 0
        while kvs is not None and not self.over.wait(max(0.0, due - time.monotonic())):
            due = max(due + pause, time.monotonic() - 1.0)  # what was missed for more than a second is not made good
            element = options.first + number + count * options.clients
            key = key_of((number + count) % options.keys)
            self._add(kvs, key, element)
            count += 1
            if options.reads and count % options.reads == 0:
                self._read(kvs, key)
        if kvs is not None:
            kvs.close()

    def _connect(self) -> anna.Client | None:
        while not self.over.is_set():
            try:
                return anna.Client(self.options.at, timeout=self.options.timeout)
            except anna.UnavailableError:
                self.over.wait(0.05)
        return None

    def _add(self, kvs: anna.Client, key: str, element: int) -> None:
        invoked = time.monotonic()
        outcome, error, replicas, durable = OK, "", 0, 0
        try:
            ack = kvs.put(key, anna.Set({element}), ack=self.options.ack)
            replicas, durable = ack.replicas, ack.durable
        except anna.AnnaError as raised:
            outcome, error = (REFUSED if raised.definite else UNKNOWN), f"{type(raised).__name__}: {raised}"
        self.adds.append(Add(key, element, invoked, time.monotonic(), outcome, replicas, durable, error))
        if outcome == OK:
            self.first_acknowledged.set()

    def _read(self, kvs: anna.Client, key: str) -> None:
        invoked = time.monotonic()
        try:
            elements = tuple(kvs.get(key, ()))
        except anna.AnnaError as raised:
            self.failed_reads.append(f"{type(raised).__name__}: {raised}")
            return
        self.reads.append(Read(key, invoked, time.monotonic(), elements))


def main() -> None:
    """Run until the end of standard input; print `acknowledged` at the first success, and the history in the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--at", action="append", required=True)
    parser.add_argument("--keys", type=int, default=4)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--ack", type=ack_of, default=None)
    parser.add_argument("--timeout", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=400.0, help="writes a second, of all clients")
    parser.add_argument("--reads", type=int, default=20, help="each client reads after so many writes; 0: never")
    parser.add_argument("--first", type=int, default=0, help="the first element; others count up from it")
    workload = _Workload(parser.parse_args())
    threads = [threading.Thread(target=workload.run, args=(number,)) for number in range(workload.options.clients)]
    for thread in threads:
        thread.start()
    telling = threading.Thread(target=_tell, args=(workload,))
    telling.start()
    sys.stdin.read()
    workload.over.set()
    for thread in [*threads, telling]:
        thread.join()
    history = History(tuple(workload.adds), tuple(workload.reads), tuple(workload.failed_reads))
    json.dump(asdict(history), sys.stdout)


def _tell(workload: _Workload) -> None:
    while not workload.over.is_set():
        if workload.first_acknowledged.wait(0.05):
            print("acknowledged", flush=True)
            return
    print("nothing", flush=True)


if __name__ == "__main__":
    main()
