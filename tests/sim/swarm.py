"""A plan from a seed: how large the cluster is, what its clients do, and what goes wrong.

The one rule: a plan is plain data and says everything; the run adds nothing but draws from streams of the plan's
seed. Each seed gets its own subset of the kinds of faults, because a run with all of them hides what a run with two
would show (swarm testing, Groce et al. 2012).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random
from typing import Any, ClassVar

from anna import wire
from tests.sim.client import COUNTER_SLOTS
from tests.sim.epochs import with_epochs
from tests.sim.schedule import MS, SECOND, US
from tests.sim.transactions import with_transactions

Plan = dict[str, Any]
Operation = dict[str, Any]
Fault = dict[str, Any]

KEYS_OF_TYPE = 3
"""Keys of each type that are only written, and as many that are deleted, too. Fewer have times to live."""

SAFETY_NS = 3 * SECOND
"""How long faults and operations go on, before all is healed."""

LONG_SAFETY_NS = 9 * SECOND
"""The same in the runs in which nodes are away for so long that they are called dead, and copies are made up for."""

LONG_RUNS = 0.15
"""How many of the runs are long."""

FAULT_NS_MIN, FAULT_NS_MAX, LONG_FAULT_NS_MAX = 20 * MS, 1500 * MS, 6 * SECOND

TTL_NS_MAX = 400 * MS

SKEW_US_MAX = 90_000_000
"""How far a host's wall clock is off at the start."""

DEADLINE_NS = 1 * SECOND

NEVER_BYTES = 1 << 60

VECTORS_FROM = 1000
"""The first seed whose clients may give keys other numbers of copies; those before it are the plans that they were."""

VECTOR_CHANGES_MAX = 8

EPOCHS_FROM = 6000
"""The first seed whose clients read at epochs, too."""

TRANSACTIONS_FROM = 7000
"""The first seed whose clients write keys together, too."""


def plan_of(
    seed: int,
    planted: tuple[str, ...] = (),
    kinds: Collection[str] | None = None,
    deletes: bool = True,
    long: bool = True,
) -> Plan:
    """Return the plan of a seed; `kinds` are the faults to choose from. Unless `long`, nobody is called dead."""
    draw = Random(f"{seed}/plan")
    nodes = draw.choice((1, 2, 3, 3, 3, 4, 5))
    spares = draw.choice((0, 0, 1, 2))
    routers = draw.choice((0, 0, 1, 2))
    clients = draw.randint(2, 5)
    plan: Plan = {
        "seed": seed,
        "safety": LONG_SAFETY_NS if draw.random() < LONG_RUNS and long else SAFETY_NS,
        "skews": [draw.choice((0, draw.randint(-SKEW_US_MAX, SKEW_US_MAX))) for _ in range(nodes + spares)],
        "spares": spares,
        "seeds": draw.choice((0, 1, 2, 3)),
        "routers": routers,
        "contacts": [draw.randrange(-1, routers) for _ in range(clients)],
        "workers": draw.choice((1, 1, 2)),
        "factor": min(nodes, draw.choice((1, 2, 2, 3))),
        "disks": draw.random() < 0.6,
        "checkpoint_bytes": draw.choice((NEVER_BYTES, 2000, 10_000)),
        "clients": clients,
        "network": network_of(draw),
        "planted": list(planted),
        "faults": [],
    }
    operations = Operations(draw, plan, deletes)
    plan["operations"] = operations.drawn()
    if seed >= VECTORS_FROM:
        plan["operations"] = with_vectors(Random(f"{seed}/vectors"), plan, operations.keys)
    if seed >= EPOCHS_FROM:
        plan["operations"] = with_epochs(Random(f"{seed}/epochs"), plan["operations"], operations.keys, plan)
    if seed >= TRANSACTIONS_FROM:
        plan["operations"] = with_transactions(Random(f"{seed}/transactions"), plan, operations)
    plan["watched"] = [[client, draw.choice(operations.keys)] for client in range(clients) if draw.random() < 0.3]
    plan["faults"] = faults_of(draw, plan, ORDINARY if kinds is None else kinds)
    return plan


def with_vectors(draw: Random, plan: Plan, keys: list[str]) -> list[Operation]:
    """Return a plan's operations, in some of the plans with changes of how many copies single keys have."""
    operations: list[Operation] = list(plan["operations"])
    for number in range(draw.randint(1, VECTOR_CHANGES_MAX) if draw.random() < 0.4 else 0):
        common = {"id": len(plan["operations"]) * 2 + number, "ack": 0, "deadline": DEADLINE_NS}
        place = {"at": draw.randrange(plan["safety"]), "client": draw.randrange(plan["clients"])}
        copies = draw.randint(1, min(4, len(plan["skews"])))
        operations.append({**common, **place, "kind": "replicate", "keys": [draw.choice(keys)], "values": [copies]})
    return sorted(operations, key=lambda operation: (operation["at"], operation["id"]))


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


class Operations:
    """What the clients do. Values are unique under their key.

    The second letter of a key says what may become of it: `k` it is kept, `d` it may be deleted, `t` its writes may
    have a time to live.
    """

    KINDS: ClassVar[dict[str, int]] = {
        "put": 38, "get": 38, "delete": 4, "remove": 6, "mget": 5, "mput": 5, "compare": 3, "scan": 1
    }  # fmt: skip

    def __init__(self, draw: Random, plan: Plan, may_delete: bool) -> None:
        self.draw = draw
        self.plan = plan
        self.acks = [0, 1, *([2, 3][: plan["factor"] - 1]), *([wire.DISK] if plan["disks"] else [])]
        self.weights = self.KINDS | {"delete": 4 * (draw.random() < 0.6 and may_delete)}
        self.expires = draw.random() < 0.4 and may_delete
        marks = {"k": KEYS_OF_TYPE, "d": KEYS_OF_TYPE} | ({"t": 1} if self.expires else {})
        self.letters = draw.sample("rsco", draw.randint(2, 4))
        names = ((letter + mark, count) for letter in self.letters for mark, count in marks.items())
        self.keys = [f"{name}{number}" for name, count in names for number in range(count)]
        self.slots = dict.fromkeys(self.keys, 0)

    def drawn(self) -> list[Operation]:
        """Return all operations, by time."""
        operations: list[Operation] = []
        for number in range(self.draw.randint(150, 350)):
            operation = self._one(self.draw.choices(list(self.weights), list(self.weights.values()))[0])
            at, client = self.draw.randrange(self.plan["safety"]), self.draw.randrange(self.plan["clients"])
            if operation["keys"] or operation["kind"] == "scan":
                common = {"at": at, "ack": self.draw.choice(self.acks), "deadline": DEADLINE_NS}
                operations.append({"id": number, "client": client, **operation, **common})
            if operation["kind"] == "compare" and operation["keys"]:
                # Somebody else wants to be the one at the same moment.
                rival = {"client": (client + 1) % self.plan["clients"], "values": [self.slot(operation["keys"][0])]}
                operations.append(operations[-1] | rival)
        return sorted(operations, key=lambda operation: (operation["at"], operation["id"]))

    def _one(self, kind: str) -> Operation:
        """Return an operation of a kind, or a get where the key that was drawn is not one for it."""
        draw, key = self.draw, self.draw.choice(self.keys)
        needs = {"delete": key[1] == "d", "remove": key[0] == "o", "compare": key[0] == "r"}
        if not needs.get(kind, True):
            kind = "get"
        if kind == "scan":
            prefix = draw.choice(("", draw.choice(self.letters), key[:2]))
            return {"kind": kind, "keys": [], "values": [], "prefix": prefix}
        keys = sorted(draw.sample(self.keys, 4)) if kind in ("mget", "mput") else [key]
        values: list[int] = []
        if kind in ("put", "mput", "compare"):
            keys = [name for name in keys if self.has_room(name)]
            values = [self.slot(name) for name in keys]
        elif kind == "remove":
            values = [draw.randrange(max(1, self.slots[key]))]
        operation: Operation = {"kind": kind, "keys": keys, "values": values}
        if kind == "put" and key[1] == "t" and draw.random() < 0.6:
            operation["ttl"] = draw.choice((20 * MS, 100 * MS, TTL_NS_MAX))
        return operation

    def has_room(self, key: str) -> bool:
        """Whether the key may have one more value."""
        return key[0] != "c" or self.slots[key] < COUNTER_SLOTS

    def slot(self, key: str) -> int:
        """Return a value that the key has not had."""
        self.slots[key] += 1
        return self.slots[key] - 1


def faults_of(draw: Random, plan: Plan, among: Collection[str]) -> list[Fault]:
    """Draw a subset of the kinds, then some of each."""
    drawn = [kind for kind in KINDS if draw.random() < 0.35]
    kinds = [kind for kind in drawn if kind in among and (plan["disks"] or kind not in DISK_KINDS)]
    kinds = [kind for kind in kinds if plan["routers"] or kind != "router"]
    longest = LONG_FAULT_NS_MAX if plan["safety"] > SAFETY_NS else FAULT_NS_MAX
    careful = draw.random() < 0.5
    faults: list[Fault] = []
    for kind in kinds:
        for _ in range(draw.randint(1, 3)):
            fault = {"kind": kind, "at": draw.randrange(plan["safety"]), "for": draw.randint(FAULT_NS_MIN, longest)}
            if careful and kind in ("crash", "wipe", "kill"):
                fault["careful"] = True
            faults += swizzle(draw, plan, fault) if kind == "swizzle" else [fault | KINDS[kind](draw, plan)]
    return sorted(faults, key=lambda fault: fault["at"])


def swizzle(draw: Random, plan: Plan, fault: Fault) -> list[Fault]:
    """Cut hosts off one after another, and heal them in another order (FoundationDB's swizzle-clogging)."""
    hosts = draw.sample(range(len(plan["skews"])), draw.randint(1, len(plan["skews"])))
    begins = sorted(draw.randrange(fault["for"]) for _ in hosts)
    ends = draw.sample([fault["for"] + draw.randrange(fault["for"]) for _ in hosts], len(hosts))
    return [
        {"kind": "partition", "side": [host], "at": fault["at"] + begin, "for": end - begin}
        for host, begin, end in zip(hosts, begins, ends)
    ]


def hosts_of(plan: Plan) -> int:
    """Return how many hosts there are: those of nodes, of clients, of routers."""
    return len(plan["skews"]) + int(plan["clients"]) + int(plan["routers"])


def some_node(draw: Random, plan: Plan) -> dict[str, Any]:
    return {"node": draw.randrange(len(plan["skews"]))}


def some_spare(draw: Random, plan: Plan) -> dict[str, Any]:
    hosts = len(plan["skews"])
    return {"node": hosts - 1 - draw.randrange(plan["spares"]) if plan["spares"] else draw.randrange(hosts)}


def some_side(draw: Random, plan: Plan) -> dict[str, Any]:
    hosts = hosts_of(plan)
    return {"side": sorted(draw.sample(range(hosts), draw.randint(1, hosts - 1)))}


def some_link(draw: Random, plan: Plan) -> dict[str, Any]:
    source, target = draw.sample(range(hosts_of(plan)), 2)
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
    "swizzle": lambda draw, plan: {},
    "router": lambda draw, plan: {"router": draw.randrange(plan["routers"])},
    "jump": lambda draw, plan: some_node(draw, plan) | {"seconds": draw.choice((-3600, 3600))},
    "break": lambda draw, plan: {"client": draw.randrange(plan["clients"])},
    "slow-disk": some_node,
    "full-disk": some_node,
    "fsync-error": some_node,
}
ORDINARY = tuple(KINDS)
"""The kinds that a run chooses from when it is told of none."""

DISK_KINDS = ("slow-disk", "full-disk", "fsync-error")
