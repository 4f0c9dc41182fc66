"""Caches, executors and a node are killed while sessions commit: nothing wrong is read, and every call ends in time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloudburst as cb
from bench.killing import NODE_AFTER, Killer
from cloudburst import local
from cloudburst.client import Client
from cloudburst.cluster import Cluster
from cloudburst.judge.reading import read
from cloudburst.judge.verdict import judge
from cloudburst.membership import Membership
from tests.cloudburst.causal_load import read_all, register, transact

KILLS = NODE_AFTER + 3
BETWEEN_KILLS = 8
"""Transactions that end between two kills."""
CLIENTS = 3
TIMEOUT_S = 10.0


@pytest.fixture
def cluster(home: object) -> Iterator[Cluster]:
    started = Cluster(3, 1, 1)
    register(started.client)
    yield started
    started.down()


class Work:
    """Transactions of several clients, which go on until enough was killed."""

    def __init__(self, cluster: Cluster, history: Path) -> None:
        first = Path(cluster.hosts[0].address.removeprefix("unix:"))

        def join() -> Membership:
            lease = local.join(first)
            assert lease is not None
            return Membership(lease)

        self.over = threading.Event()
        self.ended = threading.Semaphore(0)
        self.committed = 0
        self.faults: list[BaseException] = []
        self.clients = [Client(join, history) for _ in range(CLIENTS)]
        self.threads = [threading.Thread(target=self.run, args=one, daemon=True) for one in enumerate(self.clients)]

    def run(self, number: int, client: Client) -> None:
        try:
            count = 0
            while not self.over.is_set():
                count += 1
                try:
                    transact(client, f"{number}-{count}", count + number, TIMEOUT_S)
                    self.committed += 1
                except cb.CloudburstError as fault:  # it says that it has failed, or that nobody knows
                    print(f"{number}-{count}: {type(fault).__name__}: {fault}")
                self.ended.release()
            read_all(client, TIMEOUT_S)
        except BaseException as fault:
            self.faults.append(fault)


def test_nothing_wrong_is_read_while_caches_executors_and_a_node_are_killed(cluster: Cluster, tmp_path: Path) -> None:
    work, killer = Work(cluster, tmp_path / "history"), Killer(cluster.hosts)
    for thread in work.threads:
        thread.start()
    while sum(killer.killed.values()) < KILLS and not work.faults:
        for _ in range(BETWEEN_KILLS):
            assert work.ended.acquire(timeout=6 * TIMEOUT_S), "a call has not ended long after its deadline"
        killer.strike()
    work.over.set()
    for thread in work.threads:
        thread.join(6 * TIMEOUT_S)
    assert not any(thread.is_alive() for thread in work.threads), "a call has not ended long after its deadline"
    killer.close()
    for client in work.clients:
        client.close()
    assert work.faults == []
    assert killer.killed["node"] == 1
    assert work.committed > KILLS
    verdict = judge(read(tmp_path / "history"))
    print(killer.words(), work.committed, "committed of", len(verdict.facts.transactions))
    for violation in verdict.found["causal"]:
        raise AssertionError("\n".join(verdict.explain(violation)))
