"""What a process of the swarm runs. In a module of its own: a process that is spawned cannot find what is in the
package's `__main__`."""

from __future__ import annotations

from tests.sim.sessions.run import Tally, simulate
from tests.sim.sessions.swarm import plan_of


def run_seeds(first: int, count: int, planted: tuple[str, ...]) -> list[Tally]:
    """Run some seeds in this process."""
    return [simulate(plan_of(seed, planted)).tally() for seed in range(first, first + count)]
