"""A plan from a seed: how large the cluster is, what its clients do, and what goes wrong.

The one rule: a plan is plain data and says everything; the run adds nothing but draws from streams of the plan's
seed. Each seed gets its own subset of the kinds of faults, because a run with all of them hides what a run with two
would show (swarm testing, Groce et al. 2012).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random
from typing import Any

from anna import wire
from tests.sim.client import COUNTER_SLOTS
from tests.sim.schedule import MS, SECOND, US

Plan = dict[str, Any]

KEYS_OF_TYPE = 3
"""Keys of each type without deletions; there are as many with."""


SAFETY_NS = 3 * SECOND
"""How long faults and operations go on, before all is healed."""

SKEW_US_MAX = 90_000_000
"""How far a host's wall clock is off at the start."""

DEADLINE_NS = 1 * SECOND


def plan_of(
    seed: int,
    planted: tuple[str, ...] = (),
    kinds: Collection[str] | None = None,
    deletes: bool = True,
) -> Plan:
    """Return the plan of a seed; `kinds` are the faults to choose from."""
    draw = Random(f"{seed}/plan")
    nodes = draw.choice((1, 2, 3, 3, 3, 4, 5))
    factor = min(nodes, draw.choice((1, 2, 2, 3)))
    spares = draw.choice((0, 0, 1, 2))
    if kinds is None:
        kinds = ORDINARY
    plan: Plan = {
        "seed": seed,
        "skews": [draw.choice((0, draw.randint(-SKEW_US_MAX, SKEW_US_MAX))) for _ in range(nodes + spares)],
        "spares": spares,
        "workers": draw.choice((1, 1, 2)),
        "factor": factor,
        "disks": draw.random() < 0.6,
        "clients": draw.randint(2, 5),
        "network": network_of(draw),
        "planted": list(planted),
        "faults": [],
    }
    plan["operations"] = operations_of(draw, plan, deletes)
    plan["faults"] = faults_of(draw, plan, kinds)
    return plan


def network_of(draw: Random) -> dict[str, Any]:
    """Draw how bad the network is all the time."""
    quality: dict[str, Any] = {"delay": draw.choice((50, 200, 1000)) * US, "jitter": draw.choice((0, 100, 2000)) * US}
    if draw.random() < 0.4:
        quality["loss"] = draw.choice((0.01, 0.05, 0.2))
    if draw.random() < 0.4:
        quality["repeat"] = draw.choice((0.01, 0.1))
    if draw.random() < 0.3:
        quality |= {"straggler": 0.02, "straggler_delay": 200 * MS}
    return quality


def operations_of(draw: Random, plan: Plan, may_delete: bool) -> list[dict[str, Any]]:
    """Draw what the clients do. Values are unique under their key; a key with a `d` may be deleted."""
    letters = draw.sample("rsco", draw.randint(2, 4))
    keys = [letter + mark + str(number) for letter in letters for mark in "kd" for number in range(KEYS_OF_TYPE)]
    slots = dict.fromkeys(keys, 0)
    acks = [0, 1, *([2, 3][: plan["factor"] - 1]), *([wire.DISK] if plan["disks"] else [])]
    deletes = draw.random() < 0.6 and may_delete
    operations: list[dict[str, Any]] = []
    for number in range(draw.randint(150, 350)):
        key = draw.choice(keys)
        kind = draw.choices(("put", "get", "delete", "remove", "mget", "mput"), (40, 40, 4 * deletes, 6, 5, 5))[0]
        if (kind == "delete" and key[1] != "d") or (kind == "remove" and key[0] != "o"):
            kind = "get"
        names = sorted(draw.sample(keys, 4)) if kind in ("mget", "mput") else [key]
        values: list[int] = []
        if kind in ("put", "mput"):
            names = [name for name in names if name[0] != "c" or slots[name] < COUNTER_SLOTS]
            for name in names:
                values.append(slots[name])
                slots[name] += 1
        elif kind == "remove":
            values = [draw.randrange(max(1, slots[key]))]
        if names:
            operations.append(
                {
                    "id": number,
                    "client": draw.randrange(plan["clients"]),
                    "at": draw.randrange(SAFETY_NS),
                    "kind": kind,
                    "keys": names,
                    "values": values,
                    "ack": draw.choice(acks),
                    "deadline": DEADLINE_NS,
                }
            )
    return sorted(operations, key=lambda operation: (operation["at"], operation["id"]))


def faults_of(draw: Random, plan: Plan, among: Collection[str]) -> list[dict[str, Any]]:
    """Draw a subset of the kinds, then some of each."""
    drawn = [kind for kind in KINDS if draw.random() < 0.35]
    kinds = [kind for kind in drawn if kind in among and (plan["disks"] or kind not in DISK_KINDS)]
    careful = draw.random() < 0.5
    faults = []
    for kind in kinds:
        for _ in range(draw.randint(1, 3)):
            fault = {"kind": kind, "at": draw.randrange(SAFETY_NS), "for": draw.randint(20, 1500) * MS}
            fault |= KINDS[kind](draw, plan)
            if careful and kind in ("crash", "wipe", "kill"):
                fault["careful"] = True
            faults.append(fault)
    return sorted(faults, key=lambda fault: fault["at"])


def some_node(draw: Random, plan: Plan) -> dict[str, Any]:
    return {"node": draw.randrange(len(plan["skews"]))}


def some_spare(draw: Random, plan: Plan) -> dict[str, Any]:
    hosts = len(plan["skews"])
    return {"node": hosts - 1 - draw.randrange(plan["spares"]) if plan["spares"] else draw.randrange(hosts)}


def some_side(draw: Random, plan: Plan) -> dict[str, Any]:
    hosts = len(plan["skews"]) + plan["clients"]
    return {"side": sorted(draw.sample(range(hosts), draw.randint(1, hosts - 1)))}


def some_link(draw: Random, plan: Plan) -> dict[str, Any]:
    source, target = draw.sample(range(len(plan["skews"]) + plan["clients"]), 2)
    return {"source": source, "target": target}


KINDS: dict[str, Callable[[Random, Plan], dict[str, Any]]] = {
    "crash": some_node,
    "wipe": some_node,
    "kill": lambda draw, plan: some_node(draw, plan) | {"seat": draw.randrange(plan["workers"])},
    "join": some_spare,
    "leave": some_node,
    "pause": some_node,
    "partition": some_side,
    "one-way": some_link,
    "ring": lambda draw, plan: {},
    "jump": lambda draw, plan: some_node(draw, plan) | {"seconds": draw.choice((-3600, 3600))},
    "break": lambda draw, plan: {"client": draw.randrange(plan["clients"])},
    "slow-disk": some_node,
    "full-disk": some_node,
    "fsync-error": some_node,
}
ORDINARY = tuple(KINDS)
"""The kinds that a run chooses from when it is told of none."""

DISK_KINDS = ("slow-disk", "full-disk", "fsync-error")
