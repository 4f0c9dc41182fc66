"""Planners as functions that share their best path while they run: all that a user would write.

The one rule: no planner waits for another. `plan/<task>/best` is a `Priority`, the cheapest path that anybody has
offered; each planner watches it, so a cheaper path is pushed to all of them, and looks at what has come between two
slices of work of about a quarter of a millisecond. Only "is there a cheaper one?" is asked, and the answer never goes
back from yes to no, so no order of messages, no repetition and no planner's death can do harm, and nobody has to
coordinate.

    plan/<task>/problem         the robot, the obstacles, start and goal, as bytes
    plan/<task>/best            Priority(cost, path)
    plan/<task>/first           Priority(microseconds since the epoch, path): the earliest that anybody had
    plan/<task>/stop            Bool: the deadline has passed, or the path is good enough
    plan/<task>/curve           OrderedSet of (-cost, microseconds since the epoch, planner), at most CURVE_MAX
    plan/<task>/planner/<seed>  what a planner has done: a register

`search` is the loop of every planner, whatever it shares its path by; `demos.motion.peers` has others.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

import cloudburst as cb
from anna.lattices import Bool, OrderedSet, Priority

SLICE_CHECKS = 200
"""Collision checks between two looks: about a quarter of a millisecond of work."""
CURVE_MAX = 512
CURVE_STEP = 1.01
"""Who first brings the cost below a power of this says so in the curve: steps of one per cent, each once or so."""
OFFER_GAIN = 0.001
"""What is offered is cheaper by this share than what is known: polishing a path makes it a little cheaper each time…"""
OFFER_S = 0.05
"""…and smaller gains are offered together, so often."""
REPORT_S = 0.25
"""How often a planner says what it has done."""
DEADLINE_MARGIN_S = 1.0


class Planner(Protocol):
    """What of `demos.motion.kernel.Planner` a search needs."""

    @property
    def cost(self) -> float:
        """The cost of its best path, infinity before the first."""

    @property
    def path(self) -> Any:
        """That path: an array with a row of joint angles for each waypoint."""

    @property
    def checks(self) -> int:
        """How much work it has done."""

    @property
    def nodes(self) -> int:
        """How many nodes its trees hold."""

    def run(self, checks: int) -> bool:
        """Work; return whether its own path became cheaper."""

    def adopt(self, path: Any) -> bool:
        """Take over somebody's cheaper path: what cannot become cheaper than that is dropped."""


class Sharing(Protocol):
    """What planners share their best path by."""

    def stopped(self) -> bool:
        """Whether all are to stop."""

    def newest(self) -> tuple[float, Any] | None:
        """Return the cheapest (cost, path) that has come since the last look, None when nothing has."""

    def offer(self, cost: float, path: Any) -> None:
        """Give a path to all; it is kept when this returns."""

    def report(self, trace: Trace) -> None:
        """Say what has been done so far."""


@dataclass(slots=True)
class Trace:
    """What one planner did: moments in microseconds since the epoch, costs in radians."""

    seed: int
    begun_us: int
    found: list[tuple[int, float]] = field(default_factory=list)
    """When its own work made a path cheaper than any that it knew of."""
    pruned: list[tuple[int, float]] = field(default_factory=list)
    """When it took over somebody else's path, and dropped what could not be cheaper."""
    ahead: list[tuple[int, float]] = field(default_factory=list)
    """When somebody's path came and its own, not yet offered, was cheaper."""
    cost: float = math.inf
    checks: int = 0
    nodes: int = 0
    cpu_s: float = 0.0


def now_us() -> int:
    """Return this machine's time in microseconds since the epoch."""
    return time.time_ns() // 1000


def step_of(cost: float) -> int:
    """Return the number of a cost's step in the curve."""
    return math.floor(math.log(max(cost, 1e-9), CURVE_STEP))


def search(planner: Planner, shared: Sharing, seed: int, until: float) -> Trace:
    """Run a planner until the monotonic clock says `until`, or all are stopped; return what it did."""
    trace, reported, begun_cpu = Trace(seed, now_us()), 0.0, time.thread_time()
    known, offered = math.inf, 0.0  # the cheapest cost that all are told of, and when it was offered here

    def offer() -> float:
        trace.found.append((now_us(), planner.cost))
        shared.offer(planner.cost, planner.path)
        return planner.cost

    while (now := time.monotonic()) < until and not shared.stopped():
        planner.run(SLICE_CHECKS)
        news = shared.newest()
        if news is not None:
            taken = news[0] < planner.cost and planner.adopt(news[1])
            (trace.pruned if taken else trace.ahead).append((now_us(), planner.cost))
        known = min(known, math.inf if news is None else news[0])
        gain = (known - planner.cost) / planner.cost if planner.cost < known < math.inf else planner.cost < known
        if gain > OFFER_GAIN or (gain and now - offered > OFFER_S):
            known, offered = offer(), now
        if now - reported >= REPORT_S:
            reported = now
            _sum_up(trace, planner, begun_cpu)
            shared.report(trace)
        os.sched_yield()  # planners beyond the machine's cores take turns by slices, not by the kernel's longer ones
    if planner.cost < known:
        offer()
    _sum_up(trace, planner, begun_cpu)
    shared.report(trace)
    return trace


def _sum_up(trace: Trace, planner: Planner, begun_cpu: float) -> None:
    trace.cost, trace.checks, trace.nodes = planner.cost, planner.checks, planner.nodes
    trace.cpu_s = time.thread_time() - begun_cpu


class Lattice:
    """Sharing by the store: one `Priority`, pushed to all who watch it."""

    def __init__(self, task: str, seed: int, store: Any = cb) -> None:
        self._store, self._task, self._seed = store, task, seed
        self._best = store.watch(f"plan/{task}/best")
        self._stop = store.watch(f"plan/{task}/stop")
        self._known: Any = None
        self._step = math.inf  # of the curve, the lowest that is known

    def stopped(self) -> bool:
        return bool(self._stop.value)

    def newest(self) -> tuple[float, Any] | None:
        state = self._best.lattice
        if state is self._known or state is None:
            return None
        self._known = state
        self._step = min(self._step, step_of(state.priority))
        return state.priority, state.value

    def offer(self, cost: float, path: Any) -> None:
        writes: dict[str, Any] = {f"plan/{self._task}/best": Priority(cost, path)}
        if self._step == math.inf:
            writes[f"plan/{self._task}/first"] = Priority(now_us(), path)
        if (step := step_of(cost)) < self._step:
            self._step = step
            writes[f"plan/{self._task}/curve"] = OrderedSet([(-cost, now_us(), self._seed)], limit=CURVE_MAX)
        self._store.mput(writes)

    def report(self, trace: Trace) -> None:
        said = {"cost": trace.cost, "checks": trace.checks, "nodes": trace.nodes, "cpu_s": trace.cpu_s}
        said |= {"seed": trace.seed, "found": len(trace.found), "pruned": len(trace.pruned)}
        said["won_us"] = trace.found[-1][0] if trace.found else 0
        self._store.put(f"plan/{self._task}/planner/{self._seed}", said)


class Alone(Lattice):
    """The same without looking at what others found: each for itself, the cheapest counts in the end."""

    def newest(self) -> tuple[float, Any] | None:
        return None


def plan(task: str, seed: int, until_us: int, sharing: bool = True) -> dict[str, Any]:
    """Plan until the machine's time `until_us`, or until all are stopped; return the trace as plain data."""
    from demos.motion.kernel import Planner as Kernel
    from demos.motion.problems import Problem

    problem = Problem.decode(cb.get(f"plan/{task}/problem"))
    left_s = min((until_us - now_us()) / 1e6, cb.ctx().remaining - DEADLINE_MARGIN_S)
    shared = (Lattice if sharing else Alone)(task, seed)
    return asdict(search(Kernel(problem, seed), shared, seed, time.monotonic() + left_s))


@dataclass(slots=True)
class Race:
    """Planners that run: `futures` are theirs, `watch` sees the best path as it gets cheaper."""

    task: str
    begun_us: int
    futures: list[cb.Future]
    watch: Any
    _store: Any

    def stop(self) -> None:
        """Let all planners stop within a slice of work."""
        self._store.put(f"plan/{self.task}/stop", Bool(True))

    def traces(self) -> list[dict[str, Any]]:
        """Wait for the planners, and return what each did; one that was lost is left out."""
        done = []
        for future in self.futures:
            try:
                done.append(future.result())
            except (cb.ExecutorLost, cb.NodeLost):
                continue
        return done

    def best(self) -> tuple[float, Any]:
        """Return the cheapest path that was ever offered, (infinity, no rows) when none was."""
        state = self._store.store.get_lattice(f"plan/{self.task}/best", None)
        return (math.inf, np.empty((0, 0))) if state is None else (state.priority, state.value)


def race(
    client: Any, task: str, problem: Any, functions: int, seconds: float, sharing: bool = True, seed: int = 0
) -> Race:
    """Begin `functions` planners of a problem on the client's node, for so many seconds; none of them is waited for."""
    client.register(plan)
    client.put(f"plan/{task}/problem", problem.encode())
    watch = client.watch(f"plan/{task}/best")
    begun = now_us()
    until = begun + int(seconds * 1e6)
    calls = client.options(timeout=seconds + 60, retries=0)
    futures = [calls.spawn("plan", task, seed + number, until, sharing) for number in range(functions)]
    return Race(task, begun, futures, watch, client)
