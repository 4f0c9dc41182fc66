"""The registers workload: keys that exist from the first to the last moment, used while nodes come and go.

The one rule: every key is written by one client alone, with rising versions, so each read can be judged when it is
made: a key that was loaded is never missing, its value is one that was written to it, and a client never reads a
version older than one that it has seen or was acknowledged. The clients are a program (`python -m
tests.lab.registers`). Source: reliability.md B, P18.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Final

import anna
from tests.lab.programs import Program, Start, ack_of

BATCH_KEYS: Final = 1000
"""Keys in one write while loading, and in one read of the final look at all of them."""

SETTLED_S: Final = 3.0
"""When a read that was too old is made again, to tell what is late from what is lost."""

PADDING: Final = "x" * 80
"""So that a value has about 100 bytes."""


@dataclass(slots=True)
class Tally:
    """What became of the operations of some clients; `+` is that of all of them."""

    reads: int = 0
    writes: int = 0
    unacknowledged: int = 0
    """Writes that were refused or whose outcome is unknown."""
    failed: list[str] = field(default_factory=list)
    """Reads that ended with an error, and the error."""
    missing: list[str] = field(default_factory=list)
    """Keys that exist and were answered to be missing."""
    stale: list[str] = field(default_factory=list)
    """Reads of a version older than the client knew."""
    lost: list[str] = field(default_factory=list)
    """Keys that in the end held less than what was acknowledged."""
    read_s: list[tuple[float, float]] = field(default_factory=list)
    """When each read that was answered began, and how long it took."""

    def __add__(self, other: Tally) -> Tally:
        mine, others = asdict(self), asdict(other)
        return Tally(**{name: mine[name] + others[name] for name in mine})

    def wrong(self) -> dict[str, list[str]]:
        """Return whatever should not have happened, by name; empty is good."""
        found = {"failed": self.failed, "missing": self.missing, "stale": self.stale, "lost": self.lost}
        return {name: what[:5] for name, what in found.items() if what}

    def read_within_s(self, share: float, begun: float, ended: float) -> float:
        """Return the time within which this share of the reads that began in a span of time was answered."""
        taken = sorted(took for at, took in self.read_s if begun <= at < ended)
        return taken[min(int(share * len(taken)), len(taken) - 1)] if taken else 0.0


class Registers:
    """The workload's program, running."""

    def __init__(self, start: Start, addresses: Sequence[str], **options: object) -> None:
        """Return when every key is loaded. `options` are the program's, by name: keys, clients, ack, timeout, rate."""
        self._program = Program(start, "tests.lab.registers", "loaded", addresses, options)

    def stop(self) -> Tally:
        """End the load, read every key once more, and return what became of everything."""
        found = self._program.stop()
        return Tally(**found | {"read_s": [(at, took) for at, took in found["read_s"]]})


class _Client:
    """One client with keys of its own: number, number + clients, ..."""

    def __init__(self, number: int, options: argparse.Namespace) -> None:
        self.kvs = anna.Client(options.at, timeout=options.timeout)
        self.options = options
        self.tally = Tally()
        self.keys = [f"register-{n}" for n in range(number, options.keys, options.clients)]
        self.known = dict.fromkeys(self.keys, 0)
        self.chance = random.Random(number)

    def load(self) -> None:
        """Write version 0 of every key. Raises AnnaError."""
        for place in range(0, len(self.keys), BATCH_KEYS):
            keys = self.keys[place : place + BATCH_KEYS]
            self.kvs.mput({key: (key, 0, PADDING) for key in keys}, ack=self.options.ack, timeout=10)

    def run(self, over: threading.Event) -> None:
        """Read three keys for each one that is written, until `over`."""
        pause = self.options.clients / self.options.rate
        due = time.monotonic()
        while not over.wait(max(0.0, due - time.monotonic())):
            due = max(due + pause, time.monotonic() - 1.0)
            key = self.chance.choice(self.keys)
            if self.chance.random() < 0.25:
                self.write(key)
            else:
                self.read(key)

    def write(self, key: str) -> None:
        version = self.known[key] + 1
        self.tally.writes += 1
        try:
            self.kvs.put(key, (key, version, PADDING), ack=self.options.ack)
        except anna.AnnaError:
            self.tally.unacknowledged += 1
            # Perhaps written: the key is left alone, lest a later version be confused with it.
            self.keys.remove(key)
            del self.known[key]
        else:
            self.known[key] = version

    def read(self, key: str) -> None:
        begun = time.monotonic()
        self.tally.reads += 1
        try:
            value = self.kvs.get(key, None)
        except anna.AnnaError as error:
            self.tally.failed.append(f"{key}: {type(error).__name__}: {error}")
            return
        self.tally.read_s.append((begun, time.monotonic() - begun))
        self.look_at(key, value, self.tally.stale)

    def look_at(self, key: str, value: tuple[str, int, str] | None, older: list[str]) -> None:
        """Judge a value that was read; what is older than what is known goes to `older`."""
        if value is None:
            self.tally.missing.append(key)
        elif value[0] != key or value[1] < self.known[key]:
            older.append(f"{key}: {value[:2]!r}, known was version {self.known[key]}")

    def look_at_all(self) -> None:
        """Read every key once more; what is older than was acknowledged, and is so a little later still, is lost."""
        older: list[str] = []
        for place in range(0, len(self.keys), BATCH_KEYS):
            keys = self.keys[place : place + BATCH_KEYS]
            values = self.kvs.mget(keys, timeout=10)
            for key, value in zip(keys, values, strict=True):
                before = len(self.tally.stale) + len(self.tally.missing)
                self.look_at(key, value, self.tally.stale)
                older += [key] * (len(self.tally.stale) + len(self.tally.missing) - before)
        if older:
            time.sleep(SETTLED_S)
        for key in older:
            self.look_at(key, self.kvs.get(key, (key, -1, "missing"), timeout=10), self.tally.lost)


def main() -> None:
    """Load, print `loaded`, run until the end of standard input, look at every key, and print the tally."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--at", action="append", required=True)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--ack", type=ack_of, default=None)
    parser.add_argument("--timeout", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=500.0, help="operations a second, of all clients")
    options = parser.parse_args()
    clients = [_Client(number, options) for number in range(options.clients)]
    over = threading.Event()
    with ThreadPoolExecutor(options.clients) as pool:  # what a client raises is raised here
        list(pool.map(_Client.load, clients))
        print("loaded", flush=True)
        running = pool.map(lambda client: client.run(over), clients)
        sys.stdin.read()
        over.set()
        list(running)
        list(pool.map(_Client.look_at_all, clients))
    json.dump(asdict(sum((client.tally for client in clients), Tally())), sys.stdout)


if __name__ == "__main__":
    main()
