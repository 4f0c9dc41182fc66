"""One run of a plan: the safety phase with faults, the healing phase without, and the judgement.

The one rule: safety is judged always, liveness only after everything was mended: then all cores agree within a bound
of virtual time, every key can be read by every client, and all calls have ended. Source: TigerBeetle's two phases;
reliability E.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from traceback import format_exception
from typing import Any

from anna.kvs.faults import PLANTED
from tests.sim.checkers import Violation, judge, unequal
from tests.sim.cluster import Cluster
from tests.sim.epochs import judge_epochs
from tests.sim.faults import Nemesis
from tests.sim.history import FINAL, OK
from tests.sim.schedule import MS, SECOND
from tests.sim.surface import LATE_NS, judge_surface, lingering, watchers_are_behind
from tests.sim.swarm import SAFETY_NS, TTL_NS_MAX, Plan
from tests.sim.transactions import judge_transactions

STEP_NS = 100 * MS
LIVENESS_NS = 20 * SECOND
"""How long after the last call the cluster may take to be whole."""

CALLS_NS = 600 * SECOND
"""How long after healing clients may need for what they had begun; the least that ends a run that never would."""

AUDIT_NS = 2 * SECOND
"""How long the last reads may take."""

WATCHERS_NS = 10 * SECOND
"""How long watchers may then take to be shown what was read."""


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    plan: Plan
    digest: str = ""
    violations: list[Violation] = field(default_factory=list)
    recent: list[str] = field(default_factory=list)
    events: int = 0
    entries: int = 0
    succeeded: int = 0
    healed_in_ns: int = 0

    @property
    def checkers(self) -> list[str]:
        """The names of the checkers that found something."""
        return sorted({violation.checker for violation in self.violations})


def simulate(plan: Plan) -> Outcome:
    """Run a plan and judge it."""
    outcome = Outcome(plan)
    PLANTED.update(plan["planted"])
    cluster = Cluster(plan)
    nemesis = Nemesis(cluster)
    try:
        _safety(cluster)
        _healing(cluster, nemesis, outcome)
        _audit(cluster)
        cluster.check()
    except AssertionError as error:
        outcome.violations.append(Violation("check", "".join(format_exception(error))))
    except Exception as error:
        outcome.violations.append(Violation("exception", "".join(format_exception(error))))
    finally:
        PLANTED.clear()
        cluster.close()
    for client in cluster.clients:
        outcome.violations += [Violation("exception", str(failure)) for failure in client.loop.failures]
    outcome.violations += judge(cluster.history) + judge_surface(cluster.history) + judge_epochs(cluster.history)
    outcome.violations += judge_transactions(cluster.history)
    replicas = cluster.replicas()
    outcome.violations += [*unequal(replicas), *lingering(cluster.history, replicas)]
    outcome.digest = cluster.schedule.digest
    outcome.recent = list(cluster.schedule.recent)
    outcome.events = cluster.schedule.events
    outcome.entries = len(cluster.history.entries)
    outcome.succeeded = sum(entry.outcome == OK for entry in cluster.history.entries)
    return outcome


def _safety(cluster: Cluster) -> None:
    """Let faults and operations happen."""
    while cluster.schedule.now < cluster.plan.get("safety", SAFETY_NS):
        cluster.schedule.run(cluster.schedule.now + STEP_NS)
        cluster.watch()
    cluster.check()


def _healing(cluster: Cluster, nemesis: Nemesis, outcome: Outcome) -> None:
    """End all faults, let the clients end what they have begun, and wait until the cluster is whole."""
    nemesis.heal()
    begin = cluster.history.healed = cluster.schedule.now
    # Each call ends by its deadline, which is judged for itself; a client may have many left, one after the other.
    _wait(cluster, outcome, lambda: all(client.idle for client in cluster.clients), CALLS_NS)
    cluster.aim()
    _wait(cluster, outcome, cluster.whole, LIVENESS_NS)
    outcome.healed_in_ns = cluster.schedule.now - begin


def _wait(cluster: Cluster, outcome: Outcome, done: Callable[[], bool], bound_ns: int) -> None:
    """Let time pass until `done`, or until the bound."""
    begin = cluster.schedule.now
    while not done():
        if cluster.schedule.now - begin > bound_ns:
            outcome.violations.append(Violation("not-whole", cluster.report()))
            return
        cluster.schedule.run(cluster.schedule.now + STEP_NS)
        cluster.watch()


def _audit(cluster: Cluster) -> None:
    """Let every client read and list every key that was ever touched, once all that was to end has; watchers follow.

    A read and a scan after it differ by right while a key's time runs out, and so do two owners, who end it one by one.
    """
    if any("ttl" in operation for operation in cluster.plan["operations"]):
        # Clients end what they had begun after the healing: so many of these writes are as young as the last call.
        cluster.schedule.run(cluster.schedule.now + TTL_NS_MAX + LATE_NS)
    keys = sorted({entry.key for entry in cluster.history.entries})
    final: dict[str, Any] = {"id": FINAL, "kind": "mget", "keys": keys, "values": [], "ack": 0, "deadline": SECOND}
    for number, client in enumerate(cluster.clients):
        if keys:
            client.add({**final, "client": number, "at": cluster.schedule.now})
            client.add({**final, "kind": "scan", "prefix": "", "client": number, "at": cluster.schedule.now})
    end = cluster.schedule.now + WATCHERS_NS
    audited = cluster.schedule.now + AUDIT_NS
    while cluster.schedule.now < audited and not all(client.idle for client in cluster.clients):
        cluster.schedule.run(cluster.schedule.now + STEP_NS)
    while cluster.schedule.now < end and watchers_are_behind(cluster.history):
        cluster.schedule.run(cluster.schedule.now + STEP_NS)
