"""Every planted fault is caught, by the checker that is meant for it; the same plans without it pass."""

from __future__ import annotations

import pytest

from tests.sim.planted import PLANTED, Planted
from tests.sim.run import simulate

SEEDS = 60
CONTROLS = 5


def caught_by(fault: Planted) -> set[str]:
    """Return the checkers that see the fault in the first seed in which any that is meant for it does."""
    for seed in range(SEEDS):
        found = set(simulate(fault.plan(seed)).checkers)
        if found & fault.seen_by:
            return found
    return set()


@pytest.mark.parametrize("fault", PLANTED, ids=[fault.name for fault in PLANTED])
def test_a_planted_fault_is_caught(fault: Planted) -> None:
    assert caught_by(fault) & fault.seen_by


@pytest.mark.parametrize("fault", PLANTED, ids=[fault.name for fault in PLANTED])
def test_the_same_plans_without_the_fault_pass(fault: Planted) -> None:
    found = [simulate(fault.plan(seed, on=False)).violations for seed in range(CONTROLS)]
    assert found == [[]] * CONTROLS
