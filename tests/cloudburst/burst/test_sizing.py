"""How many machines there are, decided from loads and times alone; and once with real nodes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cloudburst as cb
from cloudburst.burst.sizing import Bounds, Load, Sizes, Sizing
from cloudburst.cluster import Cluster
from cloudburst.errors import RequestError

LOOK_S = 0.5
SIZES = Sizes(grow_s=2.0, shrink_s=10.0, rest_s=5.0)


class Run:
    """Machines with `each` executors, and calls that keep as many busy as there are; machines come at once."""

    def __init__(self, bounds: Bounds, hosts: int, each: int) -> None:
        self.sizing, self.bounds, self.hosts, self.each, self.now = Sizing(SIZES), bounds, hosts, each, 0.0
        self.had = [hosts]

    def look(self, demand: int, after_s: float = LOOK_S) -> None:
        """Let so many calls run or wait for a while, and do what is decided."""
        executors = self.hosts * self.each
        self.now += after_s
        load = Load(executors, min(demand, executors), max(0, demand - executors))
        wanted, why = self.sizing.see(self.bounds, self.hosts, load, self.now)
        assert (wanted != self.hosts) == bool(why)
        self.sizing.check()
        if wanted != self.hosts:
            self.hosts = wanted
            self.had.append(wanted)

    def last(self, seconds: float, demand: int) -> None:
        """Let so many calls run or wait for so long."""
        for _ in range(int(seconds / LOOK_S)):
            self.look(demand)


some_bounds = st.tuples(st.integers(1, 5), st.integers(0, 15)).map(lambda pair: Bounds(pair[0], sum(pair)))


@given(some_bounds, st.integers(1, 8), st.lists(st.tuples(st.integers(0, 200), st.floats(0, 20)), max_size=60))
def test_number_stays_within_its_bounds_and_steps_at_most_double_or_halve(
    bounds: Bounds, each: int, demands: list[tuple[int, float]]
) -> None:
    run = Run(bounds, bounds.least, each)
    for demand, after_s in demands:
        before = run.hosts
        run.look(demand, after_s)
        assert bounds.least <= run.hosts <= bounds.most
        assert before - max(1, before // 2) <= run.hosts <= 2 * before


@settings(max_examples=40)
@given(some_bounds, st.integers(1, 8), st.integers(0, 100), st.integers(0, 100))
def test_lasting_demand_gets_what_it_needs_and_never_turns_round(
    bounds: Bounds, each: int, before: int, demand: int
) -> None:
    run = Run(bounds, bounds.least, each)
    run.last(200, before)
    run.had = [run.hosts]
    run.last(200, demand)
    assert run.hosts * each >= min(demand, bounds.most * each)
    assert run.had in (sorted(run.had), sorted(run.had, reverse=True)), "up and down for one demand"
    settled = run.hosts
    run.last(100, demand)
    assert run.hosts == settled
    assert run.hosts <= max(bounds.least, -(-demand // each), -(-demand * 10 // (9 * each))), "no more than it needs"


def test_calls_that_wait_for_less_than_the_window_need_nobody() -> None:
    run = Run(Bounds(1, 4), 1, 2)
    for _ in range(20):
        run.last(1.5, 50)
        run.last(0.5, 1)
    assert run.had == [1]


def test_calls_that_wait_beside_executors_with_nothing_to_do_need_nobody() -> None:
    sizing = Sizing(SIZES)
    for tick in range(40):
        assert sizing.see(Bounds(1, 4), 1, Load(4, 2, 9), tick * LOOK_S) == (1, "")


def test_it_grows_when_all_were_busy_and_shrinks_when_little_was_done() -> None:
    run = Run(Bounds(1, 5), 1, 2)
    run.last(2.5, 100)
    assert run.had == [1, 2]
    run.last(10, 100)
    assert run.had == [1, 2, 4, 5]
    run.last(9.5, 0)
    assert run.had == [1, 2, 4, 5]
    run.last(40, 3)
    assert run.had == [1, 2, 4, 5, 3, 2]


def test_after_machines_were_not_obtained_it_asks_again_later() -> None:
    run = Run(Bounds(1, 4), 1, 1)
    run.last(2, 9)
    run.sizing.rest(run.now)
    run.last(4.5, 9)
    assert run.had == [1]
    run.last(5, 9)
    assert run.had[:2] == [1, 2]


def test_machine_that_was_lost_is_asked_for_again() -> None:
    run = Run(Bounds(3, 4), 3, 1)
    run.look(0)
    run.hosts = 2
    run.look(0)
    assert run.hosts == 3


def test_bounds_are_read() -> None:
    assert Bounds.of(3) == Bounds.of("3") == Bounds(3, 3)
    assert Bounds.of("2..10") == Bounds(2, 10)
    assert (str(Bounds(2, 10)), str(Bounds(3, 3))) == ("2..10", "3")
    for wrong, why in (
        ("0", "at least 1"),
        ("3..2", "3..2 hosts"),
        ("a", "no number"),
        ("..3", "no number"),
        (-1, "-1"),
    ):
        with pytest.raises(RequestError, match=why):
            Bounds.of(wrong)


def test_cluster_grows_while_calls_wait_and_shrinks_after(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    with Cluster("1..2", 1, 1, sizes=Sizes(grow_s=0.5, shrink_s=2.0)) as cluster:
        cluster.client.register(time.sleep, name="work")
        assert len(cluster.hosts) == 1
        calls = [cluster.client.spawn("work", 0.2) for _ in range(400)]
        done = 0
        while len(cluster.hosts) < 2:
            calls[done].result(60)  # it must have grown before all are done
            done += 1
        assert "calls or more waited for 0.5 s" in cluster.sized
        for call in calls[done:]:
            call.cancel()
        deadline = time.monotonic() + 60
        while len(cluster.machines) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [host.name for host in cluster.hosts] == ["host-0"]
        assert cluster.client.call("work", 0) is None
    assert list(directory.iterdir()) == []


def test_up_takes_bounds_and_scale_changes_them(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    with cb.up("1..3", executors=1) as cluster:
        assert (len(cluster.hosts), str(cluster.bounds)) == (1, "1..3")
        cluster.scale("2..3")
        assert (len(cluster.hosts), str(cluster.bounds)) == (2, "2..3")
        cluster.scale(1)
        assert (len(cluster.hosts), str(cluster.bounds)) == (1, "1")
