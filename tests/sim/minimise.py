"""The least plan that still goes wrong, found by leaving things out.

The one rule: a smaller plan counts only when one of the same checkers still finds something, so that one failure does
not turn into another on the way. Faults go first, then operations in halving chunks, then what makes the network bad.
What is left is written as a list, because a seed means nothing any more after the next change of the code. Source:
delta debugging (Zeller 2002), simplified.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.sim.run import Outcome, simulate
from tests.sim.swarm import Plan

REGRESSIONS = Path(__file__).parent / "regressions"
RUNS_MAX = 400
"""How many runs a minimisation may take."""


def minimise(outcome: Outcome, run: Callable[[Plan], Outcome] = simulate, runs: int = RUNS_MAX) -> Outcome:
    """Return the outcome of the least plan found that fails as `outcome` does."""
    wanted = set(outcome.checkers)
    improved = True
    while improved:
        improved = False
        for smaller in smaller_plans(outcome.plan):
            if runs <= 0:
                return outcome
            runs -= 1
            attempt = run(smaller)
            if wanted & set(attempt.checkers):
                outcome, improved = attempt, True
                break
    return outcome


def smaller_plans(plan: Plan) -> Iterator[Plan]:
    """Yield plans with less in them, the boldest first."""
    for part in ("faults", "operations"):
        yield from without_chunks(plan, part)
    for name in ("loss", "repeat", "straggler", "jitter"):
        if plan["network"].get(name):
            yield {**plan, "network": {**plan["network"], name: 0}}
    if any(plan["skews"]):
        yield {**plan, "skews": [0] * len(plan["skews"])}
    clients = 1 + max((operation["client"] for operation in plan["operations"]), default=0)
    if clients < plan["clients"] and not any(f["kind"] in ("partition", "one-way", "break") for f in plan["faults"]):
        yield {**plan, "clients": clients}


def without_chunks(plan: Plan, part: str) -> Iterator[Plan]:
    """Yield the plan without each half of a part, each quarter, and so on to each single one."""
    items: list[Any] = plan[part]
    size = len(items)
    while size:
        for begin in range(0, len(items), size):
            yield {**plan, part: items[:begin] + items[begin + size :]}
        size = size // 2


def keep(outcome: Outcome, about: str) -> Path:
    """Write a plan to the regressions, named by its checker and seed; return where."""
    name = f"{outcome.checkers[0]}-{outcome.plan['seed']}.json"
    found = {"about": about, "checkers": outcome.checkers, "plan": outcome.plan}
    path = REGRESSIONS / name
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path
