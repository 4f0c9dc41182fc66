"""Sessions on several nodes, writers beside readers, and the judge decides: nothing is wrong at the level that was
promised, something at none; and when a rule is broken on purpose, the judge says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb
from anna.lattices import ORSet
from cloudburst import local
from cloudburst.cluster import Cluster
from cloudburst.consistency.faults import PLANTED
from cloudburst.judge.reading import read
from cloudburst.judge.verdict import Verdict, judge
from cloudburst.membership import Membership

KEYS = [f"k{number}" for number in range(6)]
SECONDS = 1.5


def follow(planted: list[str], reads: list[str], writes: dict[str, Any], pause: float = 0.0) -> list[Any]:
    """Read keys, one by one, and write others."""
    import time

    import cloudburst
    from cloudburst.consistency.faults import PLANTED

    PLANTED.clear()
    PLANTED.update(planted)
    found = []
    for key in reads:
        found.append(cloudburst.get(key, None))
        time.sleep(pause)
    for key, value in writes.items():
        cloudburst.put(key, value)
    return found


def meet(*parts: Any) -> list[Any]:
    """Read again what branches have read: the last argument says which keys."""
    import cloudburst

    *_, planted, keys = parts
    from cloudburst.consistency.faults import PLANTED

    PLANTED.clear()
    PLANTED.update(planted)
    return [cloudburst.get(key, None) for key in keys]


@pytest.fixture(scope="module", params=[2, 3])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Nodes with one executor each."""
    started = Cluster(request.param, 1, 1)
    for function in (follow, meet):
        started.client.register(function)
    functions = {"left": "follow", "right": "follow", "end": "meet"}
    started.client.dag("fork", {"left": [], "right": [], "end": ["left", "right"]}, functions=functions)
    yield started
    started.down()


def clients_of(cluster: Cluster, path: Path) -> list[cb.Client]:
    """Two clients of each node, who record into one history."""

    def join(address: str) -> Membership:
        lease = local.join(address.removeprefix("unix:"))
        assert lease is not None
        return Membership(lease)

    return [
        cb.Client(lambda host=host: join(host.address), path)  # type: ignore[misc]
        for host in cluster.hosts
        for _ in range(2)
    ]


def work(client: cb.Client, name: str, keys: list[str], level: str, until: float, planted: list[str]) -> None:
    """Do transactions of several kinds, each value written once, until the time is over."""
    number = 0
    while time.monotonic() < until:
        number += 1
        value = f"{name}-{number}"
        one, two = keys[number % len(keys)], keys[(3 * number + 1) % len(keys)]
        kind = number % 4
        if kind == 0:
            with client.session(level) as session:
                session.mget([one, two])
                session.call("follow", planted, [two, one], {one: value, two: value})
                session.mget([two, one])
        elif kind == 1:
            client.options(session=level).call("follow", planted, [one, two], {one: value, two: value})
        elif kind == 2:
            args = {
                "left": (planted, [one, two], {one: value}), "right": (planted, [two, one], {two: value}),
                "end": (planted, [one, two]),
            }  # fmt: skip
            client.options(session=level).call("fork", args)
        else:
            with client.session(level) as session:
                session.mget([two, one])
                session.put(two, value)
                session.put(f"{one} set", ORSet({value}))
                session.get(f"{one} set")


def judged(
    cluster: Cluster, path: Path, level: str, keys: list[str], planted: tuple[str, ...] = (), seconds: float = SECONDS,
    work: Callable[..., None] = work,
) -> Verdict:  # fmt: skip
    clients, faults = clients_of(cluster, path), []
    until = time.monotonic() + seconds

    def run(number: int, client: cb.Client) -> None:
        try:
            work(client, f"{path.stem}{number}", keys, level, until, list(planted))
        except BaseException as fault:
            faults.append(fault)

    PLANTED.update(planted)
    try:
        threads = [threading.Thread(target=run, args=one) for one in enumerate(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        PLANTED.clear()
        for client in clients:
            client.close()
    if faults:
        raise faults[0]
    return judge(read(path))


def fresh(path: Path, what: str) -> list[str]:
    """Keys that nobody has written to yet."""
    return [f"{what} {path.name} {key}" for key in KEYS]


@pytest.mark.parametrize("level", ["repeatable", "read-atomic", "causal"])
def test_nothing_is_wrong_at_the_level_that_was_promised(cluster: Cluster, tmp_path: Path, level: str) -> None:
    verdict = judged(cluster, tmp_path / "history", level, fresh(tmp_path, level))
    assert len(verdict.facts.transactions) > 40
    for violation in verdict.found[level]:
        raise AssertionError("\n".join(verdict.explain(violation)))
    assert verdict.held(level)


def test_without_a_level_the_same_work_has_anomalies(cluster: Cluster, tmp_path: Path) -> None:
    verdict = judged(cluster, tmp_path / "history", "eventual", fresh(tmp_path, "eventual"))
    assert verdict.found["repeatable"]
    assert verdict.found["causal"]


def hop(client: cb.Client, name: str, keys: list[str], level: str, until: float, planted: list[str]) -> None:
    """Do short transactions, one after the other, wherever an executor is free."""
    number = 0
    while time.monotonic() < until:
        number += 1
        key = keys[number % 2]
        writes = {key: f"{name}-{number}"} if number % 3 else {}
        client.options(session=level).call("follow", planted, keys[:2], writes)


def look_twice(client: cb.Client, name: str, keys: list[str], level: str, until: float, planted: list[str]) -> None:
    """Read keys that are new, twice in one transaction, while others write them for the first time."""
    number = 0
    while time.monotonic() < until:
        number += 1
        key = f"{keys[0]} {number // 4}"
        with client.session(level) as session:
            session.get(key, None)
            session.put(f"{key} {name}", number)
            time.sleep(0.002)
            session.call("follow", planted, [key], {key: f"{name}-{number}"} if number % 4 == 2 else {})


PLANTS = [("own-epoch", "repeatable", work), ("forget-own", "causal", hop), ("forget-absent", "repeatable", look_twice)]


@pytest.mark.parametrize(("fault", "level", "work"), PLANTS, ids=[fault for fault, _, _ in PLANTS])
def test_a_rule_that_is_broken_is_noticed(
    cluster: Cluster, tmp_path: Path, fault: str, level: str, work: Callable[..., None]
) -> None:
    keys = fresh(tmp_path, fault)
    assert not judged(cluster, tmp_path / "whole", "causal", keys, (), SECONDS / 2, work).found[level]
    again = fresh(tmp_path, f"{fault} broken")
    verdict = judged(cluster, tmp_path / "broken", "causal", again, (fault,), SECONDS, work)
    judged(cluster, tmp_path / "mended", "causal", keys, (), 0.05, work)  # which takes the fault out of the executors
    assert verdict.found[level]
