"""The faults that are planted in the protocol, and for each the plans that bring it to light.

The one rule: a suite that does not see a broken rule does not keep the rule. Most faults show in the plans of ordinary
seeds; a plan is shaped where the rule only matters in a corner: equal stamps need two writes at one moment, a batch
that counts as durable too soon needs a power cut before it is. Source: reliability E (planted-fault gate).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from anna import wire
from tests.sim.epochs import with_epochs
from tests.sim.schedule import MS, SECOND
from tests.sim.swarm import DEADLINE_NS, LONG_SAFETY_NS, SAFETY_NS, Operations, Plan, plan_of
from tests.sim.transactions import COMMIT, with_transactions

FAULT_FREE_NETWORK = {"delay": 100_000, "jitter": 0}


class Planted(NamedTuple):
    """A planted fault: who has to see it, and how a seed's plan is shaped for it."""

    name: str
    seen_by: frozenset[str]
    shape: Callable[[Plan, Random], Plan]

    def plan(self, seed: int, on: bool = True) -> Plan:
        """Return the shaped plan of a seed; with `on` False the same plan without the fault."""
        plan = self.shape(plan_of(seed), Random(f"{seed}/{self.name}"))
        return {**plan, "planted": [self.name] if on else []}


def as_it_is(plan: Plan, draw: Random) -> Plan:
    """Leave a plan alone."""
    return plan


def frames_lost(plan: Plan, draw: Random) -> Plan:
    """Lose some frames, and let nothing happen after which replicas would be compared."""
    return {**small(plan, 3, 2), "faults": [], "network": {**FAULT_FREE_NETWORK, "loss": 0.02}}


def much_deleted(plan: Plan, draw: Random) -> Plan:
    """Delete instead of reading, and lose some frames, so that what was deleted arrives after the delete."""
    operations = [
        {**operation, "kind": "delete"} if operation["kind"] == "get" and operation["keys"][0][1] == "d" else operation
        for operation in plan["operations"]
    ]
    network = {**FAULT_FREE_NETWORK, "loss": 0.05}
    return {**small(plan, 3, 2), "operations": operations, "faults": [], "network": network}


def copies_lost(plan: Plan, draw: Random) -> Plan:
    """Ask for two copies of every write, and let hosts lose power one at a time, so that one copy is not enough."""
    hosts = 3
    operations = [{**operation, "ack": 2} for operation in plan["operations"]]
    crashes: list[dict[str, Any]] = [
        {"kind": "wipe", "at": at * 100 * MS, "for": 300 * MS, "node": draw.randrange(hosts), "careful": True}
        for at in range(2, 29, 3)
    ]
    cuts = [
        {"kind": "one-way", "at": crash["at"] - 100 * MS, "for": 150 * MS, "source": crash["node"], "target": target}
        for crash in crashes
        for target in range(hosts)
        if target != crash["node"]
    ]
    return {**small(plan, hosts, 2), "operations": operations, "faults": sorted(cuts + crashes, key=lambda f: f["at"])}


def at_one_moment(plan: Plan, draw: Random) -> Plan:
    """Let two clients write each register at the same moment, each to the one owner that it can reach; clocks agree."""
    operations = []
    for number in range(0, 200, 2):
        at = number * SAFETY_NS // 250
        for client in (0, 1):
            put = {"id": number + client, "client": client, "at": at, "kind": "put", "keys": [f"rk{number % 20}"]}
            operations.append(put | {"values": [number + client], "ack": 1, "deadline": DEADLINE_NS})
    cuts = [{"kind": "one-way", "at": 0, "for": SAFETY_NS, "source": 2 + c, "target": 1 - c} for c in (0, 1)]
    return {**small(plan, 2, 2), "clients": 2, "operations": operations, "faults": cuts}


def connections_broken(plan: Plan, draw: Random) -> Plan:
    """Break each client's connections again and again, while it counts."""
    breaks = [
        {"kind": "break", "at": at * 10 * MS, "for": MS, "client": draw.randrange(plan["clients"])}
        for at in range(1, SAFETY_NS // (10 * MS))
    ]
    return {**small(plan, 3, 2), "faults": breaks}


def power_cut_before_sync(plan: Plan, draw: Random) -> Plan:
    """Ask for the disk, which is slow, and cut the power of everything."""
    operations = [{**operation, "ack": wire.DISK} for operation in plan["operations"]]
    slow = [{"kind": "slow-disk", "at": 0, "for": 10 * SECOND, "node": node} for node in range(2)]
    cuts = [{"kind": "crash", "at": SECOND + draw.randrange(SECOND), "for": 50 * MS, "node": node} for node in range(2)]
    return {**small(plan, 2, 1), "disks": True, "operations": operations, "faults": slow + cuts}


def read_at_epochs(plan: Plan, draw: Random) -> Plan:
    """Read at epochs, too, and lose some frames, so that what belongs to an epoch arrives late."""
    keys = sorted({key for operation in plan["operations"] for key in operation["keys"]})
    shaped = {**small(plan, 3, 2), "faults": [], "network": {**FAULT_FREE_NETWORK, "loss": 0.05}}
    return {**shaped, "operations": with_epochs(draw, plan["operations"], keys, plan)}


def two_sides(plan: Plan, draw: Random) -> Plan:
    """Read at epochs, too, while each of two nodes and its client take the others for dead."""
    keys = sorted({key for operation in plan["operations"] for key in operation["keys"]})
    shaped = {**small(plan, 2, 2), "clients": 2, "routers": 0, "contacts": [-1, -1], "safety": LONG_SAFETY_NS}
    late = [
        {**operation, "client": operation["client"] % 2, "at": 2 * SECOND + 2 * operation["at"]}
        for operation in plan["operations"]
    ]
    cut = {"kind": "partition", "side": [0, 2], "at": SECOND, "for": LONG_SAFETY_NS - SECOND}
    return {**shaped, "watched": [], "faults": [cut], "operations": with_epochs(draw, late, keys, shaped)}


def written_together(plan: Plan, draw: Random) -> Plan:
    """Write keys together and read them at epochs; lose some frames, let coordinators stop, let clocks differ."""
    shaped = {**small(plan, 4, 2), "faults": [], "network": {**FAULT_FREE_NETWORK, "jitter": 2 * MS, "loss": 0.02}}
    shaped |= {"disks": False, "skews": [0, 300_000, 600_000, 900_000]}
    operations = Operations(draw, shaped, False)
    shaped["operations"] = []
    return {**shaped, "operations": with_transactions(draw, shaped, operations)}


def coordinators_cut_off(plan: Plan, draw: Random) -> Plan:
    """Write keys together, by clients who have time and are cut off from nodes for longer than owners wait for them."""
    shaped = written_together(plan, draw)
    nodes, clients = len(shaped["skews"]), shaped["clients"]
    writes = [
        {**operation, "stops": None, "deadline": 6 * SECOND, "ack": 1}
        for operation in shaped["operations"]
        if operation["kind"] == COMMIT and operation["id"] < 30_000
    ]
    cuts = [
        {"kind": "one-way", "at": at * 400 * MS, "for": 1500 * MS} | some_way(draw, nodes + client, nodes)
        for at in range(7)
        for client in range(clients)
    ]
    return {**shaped, "operations": writes, "faults": cuts, "network": FAULT_FREE_NETWORK}


def tried_by_two(plan: Plan, draw: Random) -> Plan:
    """Write keys together, each time by two clients at once, under one id."""
    shaped = written_together(plan, draw)
    first = [one for one in shaped["operations"] if one["kind"] == COMMIT and one["id"] < 30_000]
    again = [
        {**one, "id": one["id"] + 10_000, "at": one["at"] + draw.randrange(2 * MS), "client": 1 - one["client"] % 2}
        for one in first
    ]
    both = [{**one, "stops": None, "client": one["client"] % 2} for one in [*first, *again]]
    return {**shaped, "clients": max(2, plan["clients"]), "operations": sorted(both, key=lambda one: one["at"])}


def some_way(draw: Random, source: int, nodes: int) -> dict[str, int]:
    """Return a way from a host to some node."""
    return {"source": source, "target": draw.randrange(nodes)}


def small(plan: Plan, nodes: int, factor: int) -> Plan:
    """Return the plan on so many nodes, with equal clocks and a good network."""
    return {**plan, "skews": [0] * nodes, "spares": 0, "workers": 1, "factor": factor, "network": FAULT_FREE_NETWORK}


PLANTED = (
    Planted("early-ack", frozenset({"lost-write"}), copies_lost),
    Planted("fire-and-forget", frozenset({"replicas-differ", "lost-write"}), frames_lost),
    Planted("tie-by-arrival", frozenset({"replicas-differ"}), at_one_moment),
    Planted(
        "repair-off", frozenset({"own-write-unseen", "read-went-back", "lost-write", "replicas-differ"}), copies_lost
    ),
    Planted("tombstone-early", frozenset({"replicas-differ", "delete-undone"}), much_deleted),
    Planted("unsynced-log", frozenset({"lost-write"}), power_cut_before_sync),
    Planted("duplicate-applied", frozenset({"counted-twice"}), connections_broken),
    Planted("newest-at-epoch", frozenset({"epoch-differs", "epoch-has-later"}), read_at_epochs),
    Planted("unstable-epoch", frozenset({"epoch-differs", "epoch-lacks"}), read_at_epochs),
    Planted("any-view", frozenset({"epoch-differs"}), two_sides),
    Planted("prepared-ignored", frozenset({"epoch-splits", "epoch-differs", "epoch-lacks"}), written_together),
    Planted("own-proposal", frozenset({"not-at-one-stamp", "epoch-splits"}), written_together),
    Planted("refusals-forgotten", frozenset({"lost-write", "half-committed"}), coordinators_cut_off),
    Planted("attempts-apart", frozenset({"not-at-one-stamp"}), tried_by_two),
    Planted("stale-owner", frozenset({"own-write-unseen", "read-went-back"}), as_it_is),
)
