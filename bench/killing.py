"""Kills processes of nodes while something else runs: a cache or an executor at a time, and once a whole node.

In a block a thread kills every so often; without one, whoever calls `strike` says when.

The one rule: whom to kill is what a node says are its processes, so nobody else's is. The node that clients have joined
first is not the one that dies.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import cloudburst as cb
from cloudburst import local
from cloudburst.client import Client
from cloudburst.cluster import Host
from cloudburst.membership import Membership

KILL_EVERY_S: Final = 0.4
NODE_AFTER: Final = 4
"""The whole node dies with this kill."""


class Killer:
    """Kills, while its block runs or when it is told to; `killed` says what, and how often."""

    def __init__(self, hosts: Sequence[Host], seed: int = 1) -> None:
        self.killed: Counter[str] = Counter()
        self._hosts = [(host.pid, client_of(host)) for host in hosts]
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    def _run(self) -> None:
        while not self._over.wait(KILL_EVERY_S):
            self.strike()

    def strike(self) -> None:
        """Kill one, if there is any."""
        if sum(self.killed.values()) == NODE_AFTER and len(self._hosts) > 1:
            pid, client = self._hosts.pop()
            client.close()
            self._kill(pid, "node")
            return
        found = forked(self._random.choice(self._hosts)[1])
        if found:
            pid, what = self._random.choice(found)
            self._kill(pid, what)

    def _kill(self, pid: int, what: str) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
            self.killed[what] += 1
        except ProcessLookupError:
            pass

    def words(self) -> str:
        """Return what was killed, for a table."""
        return ", ".join(f"{count} {what}{'s' * (count > 1)}" for what, count in sorted(self.killed.items()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.close()

    def close(self) -> None:
        """Leave the nodes."""
        for _, client in self._hosts:
            client.close()


def forked(client: Client) -> list[tuple[int, str]]:
    """Return the cache and the executors of a client's node, as (process, what it is); none when it has ended."""
    try:
        said = client.status()
    except cb.CloudburstError:
        return []
    found = [(one["pid"], "executor") for one in said["executors"] if one["pid"]]
    return found + ([(said["cache_pid"], "cache")] if said["cache_pid"] else [])


def client_of(host: Host) -> Client:
    """Return a client of one node, and of no other when that has ended."""

    def join() -> Membership:
        lease = local.join(Path(host.address.removeprefix("unix:")))
        if lease is None:
            raise cb.NodeLost(f"{host.name} has ended")
        return Membership(lease)

    return Client(join)
