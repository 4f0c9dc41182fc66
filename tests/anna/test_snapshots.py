"""Reads at an epoch by the blocking client, of real workers: what sessions stand on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from anna import Client
from anna.errors import ProtocolError, RequestTimeout, SnapshotExpired
from anna.lattices import LWW, Counter, ORSet, Set
from anna.snapshots import Pinned
from tests.anna.conftest import running_workers

WAIT_S = 10.0


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def kvs(request: pytest.FixtureRequest) -> Iterator[Client]:
    with running_workers(request.param) as cluster, Client([cluster.unix()]) as client:
        yield client


def pinned(kvs: Client, least: int = 0) -> Pinned:
    """What can be read now; a store that nobody has asked before takes a moment."""
    end = time.monotonic() + WAIT_S
    while not (found := kvs.pin(least=least)).view:
        assert time.monotonic() < end
        time.sleep(0.001)
    return found


def test_an_epoch_holds_what_was_written_up_to_its_end_and_nothing_later(kvs: Client) -> None:
    pinned(kvs)
    written = kvs.put("register", "before").stamp
    kvs.put("set", ORSet({"a", "b"}))
    kvs.put("count", Counter(+3))
    at = pinned(kvs, kvs.pin().running + 1).snapshot
    kvs.put("register", "after")
    kvs.put("set", ORSet(remove={"a"}))
    kvs.put("count", Counter(+4))
    kvs.put("late", Set({1}))
    for _ in range(2):
        assert kvs.get_at("register", at) == "before"
        assert kvs.mget_at(["count", "late", "set", "nothing"], at, "none") == [3, "none", {"a", "b"}, "none"]
    assert kvs.get_at("late", at, None) is None
    with pytest.raises(KeyError):
        kvs.get_at("late", at)
    register = kvs.get_at("register", at, lattice=True)
    assert type(register) is LWW
    assert register.stamp == written
    assert kvs.mget_at(["register", "late"], at, lattice=True) == [register, None]
    assert kvs.get("register") == "after"


def test_what_is_not_kept_has_expired_and_what_has_not_come_is_awaited_no_longer_than_asked(kvs: Client) -> None:
    now = pinned(kvs)
    for ask in (kvs.get_at, lambda key, at: kvs.mget_at([key], at)):
        with pytest.raises(SnapshotExpired):
            ask("register", (now.oldest - 1000, now.view))
        with pytest.raises(SnapshotExpired, match="another view"):
            ask("register", (now.epoch, now.view ^ 1))
    with pytest.raises(SnapshotExpired):
        kvs.pin(now.oldest - 1000)
    with pytest.raises(RequestTimeout, match="has not become stable"):
        kvs.pin(least=now.epoch + 10**6, timeout=0.05)
    assert pinned(kvs, now.epoch + 2).epoch >= now.epoch + 2


def test_an_epoch_that_is_pinned_stays_readable(kvs: Client) -> None:
    kvs.put("kept", 1)
    first = pinned(kvs, kvs.pin().running + 1)
    assert kvs.pin(first.epoch, lease=5).epoch >= first.epoch
    kvs.put("kept", 2)
    pinned(kvs, first.epoch + 60)
    assert kvs.get_at("kept", first.snapshot) == 1


def test_all_workers_can_read_the_least_of_what_each_can() -> None:
    one, two = Pinned(5, 9, 2, 7), Pinned(6, 9, 4, 8)
    assert Pinned.of_all([one, two]) == Pinned(5, 9, 4, 8)
    assert Pinned.of_all([one, two]).snapshot == (5, 9)
    assert Pinned.of_all([one, Pinned(6, 8, 2, 7)]).view == 0, "two views"
    assert Pinned.of_all([one, Pinned(9, 9, 6, 9)]).view == 0, "the other begins later"
    with pytest.raises(ProtocolError):
        Pinned.from_wire(b"short")
