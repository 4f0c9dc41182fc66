"""How many executors there are, in virtual time: the published load steps, and what must not happen on the way.

The load is a closed loop: so many clients, each with one call under way, which takes so long.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudburst.autoscaling import Load, Policy, Scaler

SECOND = 1_000_000


class Node:
    """Executors that take `start_s` to come, clients that call `call_s` long functions, and the scaler between them."""

    def __init__(self, scaler: Scaler, have: int, call_s: float, start_s: float = 0.002) -> None:
        self.scaler = scaler
        self.ready = have
        self.starting: list[int] = []
        self.call_us, self.start_us = int(call_s * SECOND), int(start_s * SECOND)
        self.clients = 0
        self.running: list[int] = []
        self.waiting = 0
        self.begun = 0
        self.done: deque[int] = deque()
        self.now = 0
        self.look_at = 0
        self.history: list[tuple[float, int]] = []
        self.rng = random.Random(1)

    def until(self, end_s: float, clients: int) -> None:
        """Let time pass with so many clients."""
        end = int(end_s * SECOND)
        self._set_clients(clients)
        while True:
            times = [*self.running[:1], *self.starting[:1], self.look_at]
            self.now = min(times)
            if self.now > end:
                self.now = end
                return
            self._advance()

    def _set_clients(self, clients: int) -> None:
        more = clients - self.clients
        self.clients = clients
        if more > 0:
            self.waiting += more
        self._begin()

    def _advance(self) -> None:
        while self.running and self.running[0] <= self.now:
            heapq.heappop(self.running)
            self.done.append(self.now)
            if len(self.running) + self.waiting < self.clients:
                self.waiting += 1
        while self.starting and self.starting[0] <= self.now:
            self.starting.pop(0)
            self.ready += 1
        self._begin()
        if self.look_at <= self.now:
            self._look()
            self._begin()

    def _begin(self) -> None:
        while self.waiting and len(self.running) < self.ready:
            self.waiting -= 1
            self.begun += 1
            heapq.heappush(self.running, self.now + int(self.call_us * self.rng.uniform(0.9, 1.1)))

    def _look(self) -> None:
        have = self.ready + len(self.starting)
        load = Load(have, len(self.starting), len(self.running), self.waiting, self.begun)
        self.begun = 0
        wanted = self.scaler.see(load, self.now)
        self.scaler.check()
        assert self.scaler.least <= wanted <= max(self.scaler.most, have)
        self.starting += [self.now + self.start_us] * (wanted - have)
        self.ready -= max(0, have - wanted)
        self.history.append((self.now / SECOND, self.ready + len(self.starting)))
        self.look_at = self.scaler.look_us(self.now) or self.now + SECOND

    @property
    def count(self) -> int:
        """How many executors there are, or will be."""
        return self.ready + len(self.starting)

    def rate(self, since_s: float) -> float:
        """Calls per second since then."""
        return sum(at >= since_s * SECOND for at in self.done) / (self.now / SECOND - since_s)

    def turns(self) -> int:
        """How often growing turned into shrinking, or the other way."""
        steps = [b - a for (_, a), (_, b) in pairwise(self.history) if b != a]
        return sum((a > 0) != (b > 0) for a, b in pairwise(steps))


def test_the_published_load_steps_are_reproduced() -> None:
    """180 threads, 400 clients of a function of 50 ms; 20 machines of 3 threads at a time, which take 2.5 minutes.

    Published: 3.3, 4.4, 5.6 and 6.7 thousand requests a second; then the load ends, and 360 threads become 2 in 20 s.
    Source: Cloudburst (VLDB 2020), figure of autoscaling.
    """
    policy = Policy(grow_step_max=60, shrink_under=0.2)
    node = Node(Scaler(2, 360, policy), 180, call_s=0.0545, start_s=150)
    for step, published in enumerate((3300, 4400, 5600, 6700)):
        node.until(150 * step + 20, 400)
        node.until(150 * step + 140, 400)
        assert node.rate(150 * step + 20) == pytest.approx(published, rel=0.05)
        assert node.ready == 180 + 60 * step
    node.until(600, 400)
    assert node.count == 360
    node.until(620, 0)
    assert node.count == 2


def test_with_executors_that_fork_at_once_the_same_load_is_met_in_seconds() -> None:
    node = Node(Scaler(2, 512), 2, call_s=0.0545)
    node.until(10, 400)
    assert node.waiting == 0
    assert node.rate(8) == pytest.approx(400 / 0.0545, rel=0.05)


def test_a_step_of_clients_is_followed_within_15_seconds_and_with_some_to_spare() -> None:
    """4 clients become 16 at 15 s: published, 3 replicas become 19 within 15 s, and stay.

    Source: Cloudflow (arXiv 2007.05832), fine-grained autoscaling.
    """
    node = Node(Scaler(1, 128), 1, call_s=0.1)
    node.until(15, 4)
    assert 4 <= node.count <= 6
    node.until(30, 16)
    assert 17 <= node.count <= 23
    before = node.count
    node.until(120, 16)
    assert node.count == before
    assert node.turns() == 0


def test_a_load_that_nobody_waits_for_changes_nothing() -> None:
    """D78: a published policy adds one executor too many at each look, and shrinks to no fewer than two."""
    node = Node(Scaler(1, 64), 10, call_s=0.1)
    node.until(300, 5)
    assert node.count == 10
    assert {count for _, count in node.history} == {10}


def test_the_last_executor_goes_only_after_idleness_and_comes_back_for_the_first_call() -> None:
    node = Node(Scaler(0, 8), 4, call_s=0.01)
    node.until(5, 2)
    node.until(25, 0)
    assert node.count == 1
    node.until(40, 0)
    assert node.count == 0
    assert node.scaler.look_us(node.now) is None, "nothing to look at: the node sleeps"
    node.until(41.5, 1)
    assert node.count >= 1
    assert node.waiting == 0


def test_many_calls_that_take_no_time_need_nobody() -> None:
    """Their number says nothing: two hundred no-ops are four milliseconds of work."""
    scaler = Scaler(1, 64)
    for n in range(40):
        assert scaler.see(Load(2, 0, int(n % 4 == 0), 200, 15_000), n * 250_000) <= 2


def test_nothing_more_is_asked_for_while_what_was_asked_for_is_coming() -> None:
    scaler = Scaler(1, 64)
    assert scaler.see(Load(2, 0, 2, 50, 0), 0) == 4
    for n in range(1, 40):
        assert scaler.see(Load(4, 2, 2, 50, 0), n * 250_000) == 4
    assert scaler.see(Load(4, 0, 4, 50, 10), 40 * 250_000) == 8


def test_a_load_that_comes_and_goes_is_not_chased() -> None:
    """A burst of one second every three: executors stay; the windows are longer than the gaps."""
    node = Node(Scaler(1, 64), 1, call_s=0.05)
    for n in range(40):
        node.until(3 * n + 1, 16)
        node.until(3 * n + 3, 0)
    late = {count for at, count in node.history if at > 30}
    assert len(late) == 1
    node.until(150, 0)
    assert node.count == 1


def test_what_is_long_past_says_nothing_about_now() -> None:
    """D35, D78: an hour of long calls does not make short ones look long."""
    node = Node(Scaler(1, 64), 1, call_s=2.0)
    node.until(3600, 8)
    node.until(3610, 0)
    node.call_us = 10_000
    node.until(3700, 2)
    assert node.count <= 3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(1, 40))
def test_whatever_comes_it_stays_within_bounds_and_settles(seed: int, least: int, most: int) -> None:
    rng = random.Random(seed)
    scaler = Scaler(least, max(least, most))
    node = Node(scaler, max(1, least), call_s=rng.choice([0.1, 0.3, 3.0]), start_s=rng.choice([0.002, 0.5, 20]))
    at = 0.0
    for _ in range(6):
        at += rng.uniform(0.1, 20)
        node.until(at, rng.randrange(20))
    at += 120  # what waits takes a minute at most, and then half a minute of idleness
    node.until(at, 0)
    assert node.count == scaler.least
    clients = rng.randrange(1, 20)
    at += 150  # twice as many each time: five times the 20 s that they may take
    node.until(at, clients)
    assert node.count >= min(clients, scaler.most)
    node.history.clear()
    node.until(at + 60, clients)
    assert node.turns() <= 1


@pytest.mark.parametrize(("least", "most"), [(-1, 3), (4, 3), (0, 0)])
def test_bounds_that_make_no_sense_are_refused(least: int, most: int) -> None:
    with pytest.raises(ValueError, match="executors; a node has 0 or more"):
        Scaler(least, most)


