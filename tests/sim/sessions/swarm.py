"""Plans of sessions: what a seed does, drawn as data.

The one rule: everything that is drawn is in the plan, and each seed has its own subset of the kinds of faults. Seeds
are small, a third of a second of virtual time and some thirty transactions: many short histories show more than a few
long ones, and are told apart.
"""

from __future__ import annotations

from random import Random
from typing import Any

from cloudburst.judge.history import READ, REMOVE, WRITE
from tests.sim.schedule import MS, SECOND, US
from tests.sim.sessions.clients import DELETE, EDGES, Step

Plan = dict[str, Any]
Fault = dict[str, Any]

SAFETY_NS = 300 * MS
"""How long sessions begin and faults go on."""

LONG_SAFETY_NS = 4500 * MS
LONG_SHARE = 0.05
"""So many seeds, of those with three nodes and copies, are so long that a node which is cut off is called dead."""
LONG_CUT_NS = (200 * MS, 4 * SECOND)
"""When it is cut off, and for how long."""

SIBLINGS_SHARE = 0.15
"""So many seeds have keys with siblings, too."""

SKEW_US_MAX = 20_000
NEVER_BYTES = 1 << 60
CACHE_BYTES = (600, 1 << 20)
"""Room in a cache: for a few keys, or for all."""

MIXES: tuple[tuple[tuple[str, ...], int], ...] = (
    (("causal",), 45),
    (("read-atomic",), 15),
    (("repeatable",), 8),
    (("causal", "read-atomic"), 8),
    (("causal", "repeatable", "eventual"), 12),
    (("eventual",), 12),
)
"""Which levels the clients of a seed run at, and how often."""


def plan_of(seed: int, planted: tuple[str, ...] = (), long_share: float = LONG_SHARE) -> Plan:
    """Return the plan of a seed."""
    draw = Random(f"{seed}/sessions")
    nodes = draw.choice((1, 2, 2, 3, 3, 4))
    factor = min(nodes, draw.choice((1, 2, 2, 3)))
    spares = int(factor > 1 and draw.random() < 0.2)
    caches = draw.choice((1, 2, 2, 3, 3))
    skew = draw.choice((0, 2000, SKEW_US_MAX))
    plan: Plan = {
        "seed": seed,
        "skews": [draw.randint(-skew, skew) // 2 for _ in range(nodes + spares)],
        "spares": spares,
        "workers": draw.choice((1, 1, 2)) if nodes < 3 else 1,
        "factor": factor,
        "ack": min(factor, 2),
        "disks": False,
        "network": network_of(draw),
        "cache_skews": [draw.randint(-skew, skew) // 2 for _ in range(caches)],
        "cache_bytes": draw.choice(CACHE_BYTES),
        "plain_singles": draw.random() < 0.5,
        "caches_commit": draw.random() < 0.6,
        "planted": list(planted),
    }
    apart = Random(f"{seed}/long")
    long = nodes > 2 and factor > 1 and apart.random() < long_share
    plan["safety"] = LONG_SAFETY_NS if long else SAFETY_NS
    plan["actors"] = Actors(draw, plan).drawn()
    plan["faults"] = [cut_off(apart, plan)] if long else faults_of(draw, plan)
    return plan


def cut_off(draw: Random, plan: Plan) -> Fault:
    """Draw a node that is cut off until the others call it dead, and caches with it."""
    nodes, (begin, time) = len(plan["skews"]) - plan["spares"], LONG_CUT_NS
    caches = [len(plan["skews"]) + number for number in range(len(plan["cache_skews"])) if draw.random() < 0.3]
    return {"kind": "cut-off", "at": begin, "for": time, "side": [draw.randrange(nodes), *caches]}


def network_of(draw: Random) -> dict[str, Any]:
    """Draw how bad the network is all the time."""
    quality: dict[str, Any] = {"delay": draw.choice((50, 200, 1000)) * US, "jitter": draw.choice((0, 200, 3000)) * US}
    if draw.random() < 0.3:
        quality["loss"] = draw.choice((0.01, 0.05))
    if draw.random() < 0.2:
        quality["repeat"] = 0.05
    if draw.random() < 0.4:
        quality |= {"straggler": draw.choice((0.02, 0.1)), "straggler_delay": 40 * MS}
    return quality


class Actors:
    """What the clients do.

    Keys are `r` registers, `d` those that may be deleted, `s` sets, `o` sets with removals, `c` those with siblings.
    """

    def __init__(self, draw: Random, plan: Plan) -> None:
        self.draw = draw
        self.plan = plan
        kinds = draw.choice(("r", "r", "rs", "ro", "rso", "rd"))
        if Random(f"{plan['seed']}/siblings").random() < SIBLINGS_SHARE:
            kinds += "c"
        self.keys = [f"{kind}{number}" for number in range(draw.randint(2, 8)) for kind in kinds]
        self.weights = [1 / (1 + place) ** draw.choice((0.0, 0.7, 1.5)) for place in range(len(self.keys))]
        self.reading = draw.choice((0.4, 0.6, 0.8))
        self.readers = draw.choice((0.0, 0.3))

    def drawn(self) -> list[dict[str, Any]]:
        """Return each client: its level and its transactions."""
        mix = self.draw.choices([levels for levels, _ in MIXES], [weight for _, weight in MIXES])[0]
        count = max(len(mix), self.draw.randint(2, 5))
        return [{"level": mix[number % len(mix)], "steps": self.steps()} for number in range(count)]

    def steps(self) -> list[Step]:
        """Return one client's transactions, by time."""
        draw, safety = self.draw, self.plan["safety"]
        only_reads = draw.random() < self.readers
        times = sorted(draw.randrange(safety) for _ in range(draw.randint(4, 12)))
        return [self.step(at, only_reads or draw.random() < 0.2) for at in times]

    def step(self, at: int, only_reads: bool) -> Step:
        """Return one transaction."""
        draw = self.draw
        shape = draw.choices(list(EDGES), (50, 25, 10, 15))[0]
        taken: set[str] = set()
        functions = [self.operations(only_reads, taken) for _ in EDGES[shape]]
        nodes = [draw.randrange(len(self.plan["cache_skews"])) for _ in functions]
        told = draw.randrange(8) if draw.random() < 0.25 else None
        step: Step = {"at": at, "shape": shape, "nodes": nodes, "functions": functions, "told": told}
        patience = draw.choice((0, 0, 2 * MS, 10 * MS))
        return step | {"gives_up": draw.random() < 0.3, "patience": patience, "unheard": draw.random() < 0.1}

    def operations(self, only_reads: bool, taken: set[str]) -> list[tuple[str, list[str]]]:
        """Return what one function does; no two functions of a transaction write one register."""
        draw = self.draw
        found: list[tuple[str, list[str]]] = []
        for _ in range(draw.randint(1, 4)):
            key = draw.choices(self.keys, self.weights)[0]
            if only_reads or draw.random() < self.reading:
                several = draw.random() < 0.25
                found.append((READ, draw.sample(self.keys, min(3, len(self.keys))) if several else [key]))
            elif key[0] == "o" and draw.random() < 0.4:
                found.append((REMOVE, [key]))
            elif key[0] == "d" and draw.random() < 0.4 and key not in taken:
                taken.add(key)
                found.append((DELETE, [key]))
            elif key not in taken:
                taken.add(key)
                found.append((WRITE, [key]))
        return found


# -- faults


def faults_of(draw: Random, plan: Plan) -> list[Fault]:
    """Draw a subset of the kinds, then some of each; a quarter of the seeds has none."""
    if draw.random() < 0.25:
        return []
    faults: list[Fault] = []
    for kind, drawn in KINDS.items():
        if draw.random() < 0.3:
            can_leave = len(plan["skews"]) - plan["spares"] - plan["factor"]
            for _ in range(min(draw.randint(1, 3), can_leave if kind == "leave" else 3)):
                fault = {"kind": kind, "at": draw.randrange(plan["safety"]), "for": draw.randint(10, 120) * MS}
                more = drawn(draw, plan)
                faults += [] if more is None else [fault | more]
    return sorted(faults, key=lambda fault: fault["at"])


def some_node(draw: Random, plan: Plan) -> Fault:
    return {"node": draw.randrange(len(plan["skews"]) - plan["spares"])}


def some_seat(draw: Random, plan: Plan) -> Fault | None:
    """A worker dies only where another has a copy, and only while all copies are there."""
    if plan["factor"] < 2:
        return None
    return some_node(draw, plan) | {"seat": draw.randrange(plan["workers"]), "careful": True}


def some_spare(draw: Random, plan: Plan) -> Fault | None:
    return {"node": len(plan["skews"]) - 1} if plan["spares"] else None


def some_link(draw: Random, plan: Plan) -> Fault | None:
    """A link between two workers' hosts, or between a worker's and a cache's, in one direction."""
    nodes, caches = len(plan["skews"]), len(plan["cache_skews"])
    source, target = draw.sample(range(nodes + caches), 2)
    return {"source": source, "target": target} if min(source, target) < nodes else None


def some_cache(draw: Random, plan: Plan) -> Fault:
    return {"cache": draw.randrange(len(plan["cache_skews"]))}


def some_stream(draw: Random, plan: Plan) -> Fault:
    return some_cache(draw, plan) | {"owner": draw.randrange(8)}


def some_commit(draw: Random, plan: Plan) -> Fault:
    return some_cache(draw, plan) | {"frames": draw.randint(1, 6)}


KINDS = {
    "kill": some_seat,
    "join": some_spare,
    "leave": some_node,
    "pause": some_node,
    "one-way": some_link,
    "restart-cache": some_cache,
    "break-owner": some_stream,
    "die-in-commit": some_commit,
}
