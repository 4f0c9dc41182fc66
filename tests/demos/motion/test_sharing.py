"""Planners that share their best path: what they do with news, and what is left when some of them are killed."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import cloudburst as cb
from demos.motion import problems
from demos.motion.functions import Lattice, Trace, race, search
from demos.motion.kernel import Robot, cost, path_collides

PROBLEM = "panda/cage/1"


class Scripted:
    """A planner whose path costs what the script says after each slice; it repeats the last line."""

    def __init__(self, costs: Sequence[float]) -> None:
        self.script = list(costs)
        self.cost, self.checks, self.nodes = math.inf, 0, 0
        self.adopted: list[float] = []

    @property
    def path(self) -> Any:
        return np.array([[self.cost]])

    def run(self, checks: int) -> bool:
        self.checks += checks
        before, found = self.cost, self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.cost = min(self.cost, found)
        return self.cost < before

    def adopt(self, path: Any) -> bool:
        self.adopted.append(float(path[0, 0]))
        self.cost = min(self.cost, self.adopted[-1])
        return True


class Board:
    """Sharing whose news come by a script, one line a look; it stops when they are out."""

    def __init__(self, news: Sequence[float | None]) -> None:
        self.news = list(news)
        self.offered: list[float] = []
        self.reported: Trace | None = None

    def stopped(self) -> bool:
        return not self.news

    def newest(self) -> tuple[float, Any] | None:
        found = self.news.pop(0)
        return None if found is None else (found, np.array([[found]]))

    def offer(self, cost: float, path: Any) -> None:
        assert path[0, 0] == cost
        self.offered.append(cost)

    def report(self, trace: Trace) -> None:
        self.reported = trace


def searched(costs: Sequence[float], news: Sequence[float | None]) -> tuple[Scripted, Board, Trace]:
    planner, board = Scripted(costs), Board(news)
    trace = search(planner, board, 7, time.monotonic() + 60)
    assert board.reported is trace
    return planner, board, trace


def test_a_planner_offers_what_is_cheaper_than_all_it_knows_and_takes_over_what_others_have() -> None:
    planner, board, trace = searched([9.0, 8.0, 8.0, 3.0], [None, 5.0, None, None, 4.0])
    assert board.offered == [9.0, 3.0]  # 8.0 came in the same look as the 5.0 of somebody else
    assert planner.adopted == [5.0]
    assert [found for _, found in trace.found] == [9.0, 3.0]
    assert [dropped for _, dropped in trace.pruned] == [5.0]
    assert (trace.cost, trace.seed) == (3.0, 7)


def test_small_gains_are_offered_together_and_the_last_of_them_at_the_end() -> None:
    _, board, _ = searched([9.0, 8.9999, 8.9998, 8.9997], [None] * 4)
    assert board.offered == [9.0, 8.9997]


def test_a_planner_that_finds_nothing_offers_nothing() -> None:
    _, board, trace = searched([math.inf], [None, None])
    assert board.offered == []
    assert math.isinf(trace.cost)


@pytest.fixture(scope="module")
def node() -> Any:
    """A client of a private node with four executors."""
    with cb.up(hosts=1, executors=4) as cluster:
        yield cluster.client


def test_kills_lose_no_path_and_no_reader_ever_sees_the_best_cost_rise(node: cb.Client) -> None:
    problem = problems.named(PROBLEM)
    run = race(node, "killed", problem, 4, 6.0)
    seen: list[float] = []
    over = threading.Event()

    def read() -> None:
        with node.watch("plan/killed/best") as watch:
            while not over.is_set():
                state = watch.lattice
                if state is not None and (not seen or state.priority != seen[-1]):
                    seen.append(state.priority)
                time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    next(run.watch)
    started = {one["pid"] for one in node.status()["executors"]}
    for pid in sorted(started)[:2]:
        next(run.watch)
        os.kill(pid, signal.SIGKILL)
        next(run.watch)  # the others go on
    end = time.monotonic() + 30
    while len(seen) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    run.stop()
    traces = run.traces()
    final, path = run.best()
    over.set()
    reader.join()
    run.watch.close()
    assert 1 <= len(traces) <= 2
    assert len(seen) >= 3
    assert seen == sorted(seen, reverse=True)
    offered = [-negated for negated, _, _ in node.store.get("plan/killed/curve")]  # by the killed ones, too
    assert final <= min(offered)
    assert all(final <= cost for trace in traces for _, cost in trace["found"])
    assert final <= min(seen)
    assert cost(path) == pytest.approx(final, abs=1e-9)
    assert not path_collides(Robot.named(problem.robot), problem.obstacles, path)
    assert path[0] == pytest.approx(problem.start)
    assert path[-1] == pytest.approx(problem.goal)


def test_a_path_that_is_offered_elsewhere_ends_in_the_trees_of_all(node: cb.Client) -> None:
    """One planner is given a cheap path from outside; the others take it over while they run."""
    problem = problems.named(PROBLEM)
    good = race(node, "good", problem, 4, 1.5, seed=40)
    began = min(trace["found"][0][0] for trace in good.traces() if trace["found"])
    cheap, path = good.best()
    first = node.store.get_lattice("plan/good/first")
    assert 0 <= first.priority - began < 1_000_000  # of several that found one before they heard, the earliest
    assert cost(first.value) > cheap
    run = race(node, "given", problem, 3, 60.0, seed=1)
    outside = Lattice("given", 99, node)
    outside.offer(cheap, path)
    end = time.monotonic() + 30
    while not all(one and one["cost"] <= cheap for one in node.mget([f"plan/given/planner/{n}" for n in (1, 2, 3)])):
        assert time.monotonic() < end
        time.sleep(0.02)
    run.stop()
    assert all(trace["cost"] <= cheap and trace["pruned"] for trace in run.traces())


def test_planners_that_do_not_share_look_at_nobody(node: cb.Client) -> None:
    run = race(node, "alone", problems.named(PROBLEM), 2, 1.0, sharing=False)
    traces = run.traces()
    assert all(not trace["pruned"] for trace in traces)
    assert run.best()[0] <= min(trace["cost"] for trace in traces)
