"""Short results, which come with the news that their tasks have ended, until it is said which of them count.

The one rule: of a task that was run more than once, what is given out is what the settled attempt wrote. The rest is
forgotten with it. Source: decision records 0038, 0045.
"""

from __future__ import annotations

from collections.abc import Iterable

from cloudburst.burst.tasks.facts import Ended, Fact, Settled
from cloudburst.burst.tasks.queue import Ledger


class Told:
    """What was told along with the ends of tasks that `ledger` knows to be unsettled, or settled by them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._data: dict[bytes, dict[tuple[int, str], bytes]] = {}

    def absorb(self, writer: str, facts: Iterable[Fact]) -> None:
        """Keep what a worker has told."""
        for fact in facts:
            if isinstance(fact, Ended) and fact.data:
                entry = self._ledger.entries.get(fact.key)
                settled = None if entry is None else entry.settled
                if settled is None or (settled.attempt, settled.worker) == (fact.attempt, writer):
                    self._data.setdefault(fact.key, {})[fact.attempt, writer] = fact.data

    def take(self, settled: Settled) -> bytes:
        """Return what the attempt wrote that counts, once; b"" when nothing was told along with its end."""
        return self._data.pop(settled.key, {}).get((settled.attempt, settled.worker), b"")
