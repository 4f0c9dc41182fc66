"""Sessions see what their level promises, whatever goes wrong; and where a rule is broken, the judge notices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.sessions.planted import PLANTED, Planted
from tests.sim.sessions.run import simulate
from tests.sim.sessions.swarm import plan_of

ROOT = Path(__file__).parent.parent.parent.parent
SEEDS = 2000
TWICE = 40
PLANTED_SEEDS = 60
CONTROLS = 5

DIGESTS = f"""
from tests.sim.sessions.run import simulate
from tests.sim.sessions.swarm import plan_of
for seed in range({TWICE}):
    outcome = simulate(plan_of(seed))
    print(outcome.digest, outcome.anomalies)
"""


def python(*arguments: str, hash_seed: str = "0") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.timeout(600)
def test_two_thousand_seeds_show_no_session_what_its_level_forbids_and_the_others_something() -> None:
    """Functions and graphs on the caches of several nodes, while messages are late and lost, connections break, workers
    die, join and leave, caches start again, clocks disagree, and coordinators die at any step of a commit."""
    with python("-m", "tests.sim.sessions", "--seeds", str(SEEDS), "--workers", "2") as run:
        said, _ = run.communicate()
    print("\n".join(said.strip().splitlines()[:6]))
    assert run.returncode == 0, said
    assert f"{SEEDS:,} seeds" in said


@pytest.mark.timeout(300)
def test_a_seed_is_the_same_history_under_any_hash_seed() -> None:
    with python("-c", DIGESTS, hash_seed="1") as one, python("-c", DIGESTS, hash_seed="2") as two:
        first, second = one.communicate()[0].splitlines(), two.communicate()[0].splitlines()
    assert len(set(first)) == TWICE
    assert first == second


def noticed_by(fault: Planted) -> set[str]:
    """Return what fails in the first seed in which a level fails that the fault breaks."""
    for seed in range(PLANTED_SEEDS):
        found = set(simulate(fault.plan(seed)).checkers)
        if found & set(fault.seen_by):
            return found
    return set()


@pytest.mark.parametrize("fault", PLANTED, ids=[fault.name for fault in PLANTED])
def test_a_rule_that_is_broken_is_noticed_by_the_judge(fault: Planted) -> None:
    assert noticed_by(fault) & set(fault.seen_by)


@pytest.mark.parametrize("fault", PLANTED, ids=[fault.name for fault in PLANTED])
def test_the_same_plans_with_the_rule_pass(fault: Planted) -> None:
    found = [simulate(fault.plan(seed, on=False)).violations for seed in range(CONTROLS)]
    assert found == [[]] * CONTROLS


def test_what_fails_in_a_seed_is_explained() -> None:
    outcome = simulate(plan_of(1, ("newest-at-epoch",)))
    assert outcome.checkers
    assert all("reads" in message for _, message in outcome.violations)
