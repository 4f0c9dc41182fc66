"""One seed of sessions: the phase with faults, the healing, the last reads, and the judgement.

The one rule: at the level that a session was promised there is no violation, whatever went wrong; and once all is
healed every session ends within a bound of virtual time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from traceback import format_exception
from typing import Any, NamedTuple

from anna.kvs.faults import PLANTED
from cloudburst.consistency.levels import EVENTUAL
from cloudburst.judge.history import OK, READ
from tests.sim.checkers import Violation
from tests.sim.faults import BEGIN, END, Nemesis, links_between
from tests.sim.schedule import MS, SECOND
from tests.sim.sessions.cluster import SessionCluster
from tests.sim.sessions.judging import explained, verdicts
from tests.sim.sessions.swarm import Plan

LAST = {"told": None, "gives_up": False, "patience": 0, "unheard": False}

STEP_NS = 10 * MS

ENDS_NS = 3 * SECOND
"""How long after the healing sessions may take that had begun, and those that read all keys then."""

Fault = dict[str, Any]


class Tally(NamedTuple):
    """What is known of one seed."""

    seed: int
    digest: str
    checkers: list[str]
    anomalies: dict[str, int]
    counts: dict[str, int]


@dataclass(slots=True)
class Outcome:
    """What came of a run. `anomalies`: for each level, how many transactions saw what it forbids; `kinds` of what."""

    plan: Plan
    digest: str = ""
    violations: list[Violation] = field(default_factory=list)
    anomalies: dict[str, int] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    recent: list[str] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    healed_in_ns: int = 0

    @property
    def checkers(self) -> list[str]:
        """The names of what is wrong."""
        return sorted({violation.checker for violation in self.violations})

    def tally(self) -> Tally:
        """Return what is small of it."""
        return Tally(self.plan["seed"], self.digest, self.checkers, self.anomalies, self.counts)


def simulate(plan: Plan) -> Outcome:
    """Run a plan and judge it."""
    outcome = Outcome(plan)
    PLANTED.update(plan["planted"])
    try:
        cluster = SessionCluster(plan)
        _run(cluster, outcome)
    finally:
        PLANTED.clear()
    outcome.violations += cluster.violations
    outcome.lines = [line for _, line in cluster.lines]
    outcome.counts = _counts(cluster, outcome)
    outcome.digest = cluster.schedule.digest
    outcome.recent = list(cluster.schedule.recent)
    _judge(cluster, outcome)
    return outcome


def _run(cluster: SessionCluster, outcome: Outcome) -> None:
    """Let all happen; what ends it too early is a violation."""
    nemesis = Nemesis(cluster, BEGIN | SESSION_BEGIN, END | SESSION_END)
    try:
        while cluster.schedule.now < cluster.plan["safety"]:
            cluster.schedule.run(cluster.schedule.now + STEP_NS)
            cluster.watch()
        nemesis.heal()
        for cache in cluster.caches:
            cache.start()
        begin = cluster.schedule.now
        _end(cluster)
        outcome.healed_in_ns = cluster.schedule.now - begin
        _read_all(cluster)
        _end(cluster)
        cluster.check()
    except AssertionError as error:
        cluster.fail("check", "".join(format_exception(error)))
    except Exception as error:
        cluster.fail("exception", "".join(format_exception(error)))
    finally:
        for actor in cluster.actors:
            actor.task.drop()


def _end(cluster: SessionCluster) -> None:
    """Let time pass until all have ended, or until the bound."""
    begin, actors = cluster.schedule.now, cluster.actors
    while not all(actor.task.done for actor in actors):
        if cluster.schedule.now - begin > ENDS_NS:
            waiting = ", ".join(actor.name for actor in actors if not actor.task.done)
            cluster.fail("not-ended", f"{waiting} have not ended {ENDS_NS // MS} ms after the healing")
            return
        cluster.schedule.run(cluster.schedule.now + STEP_NS)
        cluster.watch()
    for actor in actors:
        actor.task.raise_error()


def _read_all(cluster: SessionCluster) -> None:
    """Let every client read every key once more, each at another cache."""
    keys = sorted({one[1] for _, line in cluster.lines for one in line["operations"]})
    for number, actor in enumerate(cluster.actors if keys else ()):
        actor.go_on([{"at": 0, "shape": "single", "nodes": [number], "functions": [[(READ, keys)]], **LAST}])


def _counts(cluster: SessionCluster, outcome: Outcome) -> dict[str, int]:
    """Return the figures of a run."""
    first = [line for line in outcome.lines if not line["function"]]
    figures = [cache.core.status() for cache in cluster.caches if cache.core is not None]
    return {
        "transactions": len(first),
        "ok": sum(line["outcome"] == OK for line in first),
        "again": sum(actor.began_again for actor in cluster.actors),
        "events": cluster.schedule.events,
        "hits": sum(one["hits_at"] for one in figures),
        "misses": sum(one["misses_at"] for one in figures),
    }


def _judge(cluster: SessionCluster, outcome: Outcome) -> None:
    """Ask the judge."""
    for level, verdict in verdicts(cluster.lines):
        promised = "causal" if level == EVENTUAL.name else level
        outcome.anomalies[level] = verdict.transactions(promised)
        if level == EVENTUAL.name:
            continue
        for violation in verdict.violations(promised):
            outcome.kinds[f"{level}: {violation.kind}"] += 1
        if outcome.anomalies[level]:
            outcome.violations.append(Violation(level, "\n".join(explained(verdict, promised))))


def _restart_cache(cluster: SessionCluster, fault: Fault) -> None:
    cluster.cache(fault["cache"]).restart()


def _break_owner(cluster: SessionCluster, fault: Fault) -> None:
    cluster.cache(fault["cache"]).break_owner(fault["owner"])


def _die_in_commit(cluster: SessionCluster, fault: Fault) -> None:
    cluster.cache(fault["cache"]).dies_after = fault["frames"]


def _cut_off(cluster: SessionCluster, fault: Fault) -> None:
    cluster.network.cut(_around(cluster, fault))


def _take_back(cluster: SessionCluster, fault: Fault) -> None:
    cluster.network.heal(_around(cluster, fault))


def _around(cluster: SessionCluster, fault: Fault) -> list[tuple[int, int]]:
    """Return the links between one side, of nodes and caches, and the other."""
    hosts, side = range(len(cluster.nodes) + len(cluster.caches)), set(fault["side"])
    return links_between(sorted(side), [host for host in hosts if host not in side])


def _live_on(cluster: SessionCluster, fault: Fault) -> None:
    cluster.cache(fault["cache"]).dies_after = 0


SESSION_BEGIN: dict[str, Any] = {
    "restart-cache": _restart_cache, "break-owner": _break_owner, "die-in-commit": _die_in_commit,
    "cut-off": _cut_off,
}  # fmt: skip
SESSION_END: dict[str, Any] = {"die-in-commit": _live_on, "cut-off": _take_back}
