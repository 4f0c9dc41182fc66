"""Every planted fault is caught, by the checker that is meant for it; the same plans without it pass."""

from __future__ import annotations

import pytest

from anna.kvs.faults import IN_THE_CORE
from tests.sim.cluster import MODEL
from tests.sim.planted import PLANTED, Planted
from tests.sim.run import simulate

ON_THE_CORE = [fault for fault in PLANTED if fault.name in IN_THE_CORE]
SEEDS = 60
CONTROLS = 5
CORE = "anna"


def caught_by(fault: Planted, core: str) -> set[str]:
    """Return the checkers that see the fault in the first seed in which any that is meant for it does."""
    for seed in range(SEEDS):
        found = set(simulate(fault.plan(seed, core)).checkers)
        if found & fault.seen_by:
            return found
    return set()


@pytest.mark.parametrize("fault", PLANTED, ids=[fault.name for fault in PLANTED])
def test_a_planted_fault_is_caught_on_the_model(fault: Planted) -> None:
    assert caught_by(fault, MODEL) & fault.seen_by


@pytest.mark.parametrize("fault", PLANTED, ids=[fault.name for fault in PLANTED])
def test_the_same_plans_without_the_fault_pass(fault: Planted) -> None:
    found = [simulate(fault.plan(seed, MODEL, on=False)).violations for seed in range(CONTROLS)]
    assert found == [[]] * CONTROLS


@pytest.mark.parametrize("fault", ON_THE_CORE, ids=[fault.name for fault in ON_THE_CORE])
def test_a_planted_fault_is_caught_on_the_compiled_core(fault: Planted) -> None:
    assert caught_by(fault, CORE) & fault.seen_by


@pytest.mark.parametrize("fault", ON_THE_CORE, ids=[fault.name for fault in ON_THE_CORE])
def test_the_compiled_core_passes_the_same_plans_without_the_fault(fault: Planted) -> None:
    found = [simulate(fault.plan(seed, CORE, on=False)).violations for seed in range(CONTROLS)]
    assert found == [[]] * CONTROLS
