"""The rules of sessions that are broken on purpose, and by which level the judge has to notice.

The one rule: as in `tests.sim.planted`: what is not noticed is not kept. A rule of a core is broken by the core's own
switch (`anna.kvs.faults`), one of the runtime's by the runtime of the simulation. A plan is shaped only where a rule
matters in a corner.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from cloudburst.judge.history import READ, WRITE
from tests.sim.schedule import MS
from tests.sim.sessions.clients import DELETE
from tests.sim.sessions.swarm import SAFETY_NS, Plan, plan_of

REPEATABLE, READ_ATOMIC, CAUSAL = "repeatable", "read-atomic", "causal"


class Planted(NamedTuple):
    """A planted fault: its switches, the levels that it breaks for sure, and how a seed's plan is shaped for it."""

    name: str
    seen_by: tuple[str, ...]
    shape: Callable[[Plan, Random], Plan]
    switches: tuple[str, ...] = ()

    def plan(self, seed: int, on: bool = True) -> Plan:
        """Return the shaped plan of a seed; with `on` False the same plan without the fault."""
        plan = self.shape(plan_of(seed), Random(f"{seed}/{self.name}"))
        return {**plan, "planted": [*(self.switches or (self.name,))] if on else []}


def as_it_is(plan: Plan, draw: Random) -> Plan:
    """Leave a plan alone."""
    return plan


def at_level(plan: Plan, level: str) -> Plan:
    """Return the plan with all clients at one level."""
    return {**plan, "actors": [{**actor, "level": level} for actor in plan["actors"]]}


def all_causal(plan: Plan, draw: Random) -> Plan:
    """Let all clients be causal."""
    return at_level(plan, CAUSAL)


def unheard(plan: Plan, draw: Random) -> Plan:
    """Let no client hear of a commit before its invocation has run twice."""
    actors = [
        {"level": CAUSAL, "steps": [{**step, "unheard": True} for step in actor["steps"]]} for actor in plan["actors"]
    ]
    return {**plan, "actors": actors, "plain_singles": False}


def far_apart(plan: Plan, draw: Random) -> Plan:
    """Let what owners propose for one transaction differ by epochs: messages take up to two of them."""
    actors = apart(draw, 3)
    return {
        **plan, "skews": [0, 0, 0], "spares": 0, "workers": 1, "factor": 1, "ack": 1, "faults": [],
        "network": {"delay": MS // 10, "jitter": 20 * MS}, "plain_singles": False, "actors": actors,
    }  # fmt: skip


def much_deleted(plan: Plan, draw: Random) -> Plan:
    """Let clients without sessions write and delete a few keys that others read."""
    keys = ["d0", "d1"]
    actors = []
    for number in range(4):
        steps = []
        for at in range(number * MS, SAFETY_NS, 12 * MS):
            write = (draw.choice((WRITE, DELETE)), [draw.choice(keys)])
            steps.append(single(at, draw.randrange(8), [(READ, keys)] * 2 if number > 1 else [write]))
        actors.append({"level": CAUSAL if number > 1 else "eventual", "steps": steps})
    return {**plan, "actors": actors, "faults": []}


def cut_off_for_long(plan: Plan, draw: Random) -> Plan:
    """Let a node, and some caches, be cut off until each side calls the other dead."""
    return plan_of(plan["seed"], long_share=1.0)


def half_blind(plan: Plan, draw: Random) -> Plan:
    """Let writers reach both of two workers, and the cache of those who read only one of them."""
    cut = {"kind": "one-way", "at": 0, "for": 260 * MS, "source": READING, "target": 0}
    actors = apart(draw, 1)
    return {
        **plan, "skews": [0, 0], "spares": 0, "workers": 1, "cache_skews": [0, 0], "ack": 1, "plain_singles": True,
        "network": {"delay": MS // 10, "jitter": MS // 10}, "faults": [cut], "actors": actors,
    }  # fmt: skip


def slow_clock(plan: Plan, draw: Random) -> Plan:
    """Let the clock of the worker that readers do not reach run slow, and let it hear nothing of the other's."""
    shaped = half_blind(plan, draw)
    unheard = {"kind": "one-way", "at": 40 * MS, "for": 220 * MS, "source": 1, "target": 0}
    return {**shaped, "rates": [0.8, 1.0], "factor": 1, "plain_singles": False, "faults": [unheard, *shaped["faults"]]}


def late_copies(plan: Plan, draw: Random) -> Plan:
    """Let a fifth of all messages be late: what one worker has closed, another may not have yet."""
    shaped = half_blind(plan, draw)
    writers = [{"level": CAUSAL, "steps": writes(draw, number, 1, each=2)} for number in range(2)]
    network = {**shaped["network"], "straggler": 0.2, "straggler_delay": 60 * MS}
    return {**shaped, "factor": 2, "network": network, "actors": [*writers, *shaped["actors"][2:]]}


KEYS = [f"r{number}" for number in range(6)]
READING = 3
"""The host of the second cache, where there are two workers."""


def apart(draw: Random, most: int) -> list[dict[str, Any]]:
    """Return clients that only write, so many keys at a time, and others that only read."""
    steps = [writes(draw, number, most) if number < 2 else reads(number) for number in range(4)]
    return [{"level": CAUSAL, "steps": some} for some in steps]


def writes(draw: Random, number: int, most: int, each: int = 6) -> list[dict[str, Any]]:
    """Return the transactions of a client that only writes, some keys at a time, at the first cache."""
    times = range((60 + number) * MS, 260 * MS, each * MS)
    return [single(at, 0, [(WRITE, [key]) for key in draw.sample(KEYS, most)]) for at in times]


def reads(number: int) -> list[dict[str, Any]]:
    """Return the transactions of a client that only reads, all keys at a time, at the second cache."""
    return [single(at, 1, [(READ, KEYS)]) for at in range((50 + 4 * number) * MS, 260 * MS, 8 * MS)]


def single(at: int, node: int, operations: list[tuple[str, list[str]]]) -> dict[str, Any]:
    """Return a transaction of one function."""
    step = {"at": at, "shape": "single", "nodes": [node], "functions": [operations], "told": None}
    return {**step, "gives_up": False, "patience": 0, "unheard": False}


PLANTED = (
    Planted("own-epochs", (REPEATABLE, READ_ATOMIC, CAUSAL), as_it_is),
    Planted("epoch-too-early", (REPEATABLE, READ_ATOMIC, CAUSAL), as_it_is, ("epoch-too-early", "unstable-epoch")),
    Planted("newest-at-epoch", (REPEATABLE, READ_ATOMIC, CAUSAL), as_it_is),
    Planted("prepared-ignored", (READ_ATOMIC, CAUSAL), as_it_is),
    Planted("own-proposal", (READ_ATOMIC, CAUSAL), far_apart),
    Planted("own-closing-marks", (READ_ATOMIC, CAUSAL), late_copies),
    Planted("above-mark", (READ_ATOMIC, CAUSAL), as_it_is),
    Planted("epoch-forgotten", (CAUSAL,), all_causal),
    Planted("writes-forgotten", (CAUSAL,), all_causal),
    Planted("stamps-alone", (CAUSAL,), slow_clock),
    Planted("absence-forgotten", (REPEATABLE, READ_ATOMIC, CAUSAL), as_it_is),
    Planted("ids-forgotten", (CAUSAL,), unheard),
    Planted("part-for-whole", (READ_ATOMIC, CAUSAL), cut_off_for_long),
    Planted("forget-absent", (REPEATABLE, READ_ATOMIC, CAUSAL), much_deleted),
)
