"""When a node ends: unused, told to, told twice, and not before what runs there has ended or had its time."""

from __future__ import annotations

from cloudburst import config
from cloudburst.lifetime import FIRST_LEASE_US, Lifetime

DRAIN_US = int(config.DRAIN_S * 1e6)


def test_node_that_stays_ends_only_when_told() -> None:
    one = Lifetime(None, 0)
    one.leased()
    one.left(5)
    assert one.next_look_us(5) is None
    assert not one.unused(10**12)
    assert not one.over(10**12, empty=True, unwanted=True)


def test_node_without_users_is_unused_after_its_linger_and_not_while_it_is_used() -> None:
    one = Lifetime(300, 0)
    assert not one.unused(FIRST_LEASE_US - 1)
    one.leased()
    assert not one.unused(10**12)
    one.left(1000)
    assert not one.unused(1299)
    assert one.unused(1300)
    one.leased()
    assert not one.unused(10**12)


def test_node_that_could_not_end_for_its_lock_asks_again_later() -> None:
    one = Lifetime(300, 0)
    one.left(0)
    assert one.unused(300)
    assert not one.unused(301)
    assert (at_us := one.next_look_us(301)) is not None
    assert one.unused(at_us)


def test_node_that_stops_waits_for_what_runs_and_not_for_ever() -> None:
    one = Lifetime(None, 0)
    assert one.stop(0, leaves=True)
    assert one.stopping
    assert one.leaves
    assert not one.over(DRAIN_US - 1, empty=False, unwanted=False)
    assert one.over(1, empty=True, unwanted=False)
    assert one.over(DRAIN_US, empty=False, unwanted=False)


def test_node_that_is_told_twice_ends_at_once() -> None:
    one = Lifetime(None, 0)
    one.stop(0)
    assert not one.stop(7)
    assert one.over(7, empty=False, unwanted=False)


def test_node_does_not_wait_for_what_nobody_waits_for() -> None:
    one = Lifetime(300, 0)
    one.stop(0)
    assert not one.over(0, empty=False, unwanted=True), "it may be about to stop by itself"
    assert one.over(config.KILL_GRACE_US, empty=False, unwanted=True)
