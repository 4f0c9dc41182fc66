"""Many seeds pass; a seed is one history, wherever it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.minimise import REGRESSIONS
from tests.sim.run import simulate
from tests.sim.swarm import plan_of

ROOT = Path(__file__).parent.parent.parent
SEEDS = 1000
TWICE = 50

DIGESTS = f"""
from tests.sim.run import simulate
from tests.sim.swarm import plan_of
print("\\n".join(simulate(plan_of(seed)).digest for seed in [*range({TWICE}), *range(7000, 7010)]))
"""


def python(*arguments: str, hash_seed: str = "0") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_seeds(seeds: int, *choice: str) -> None:
    """Run so many seeds on two processes, and assert that all pass."""
    with python("-m", "tests.sim", "--seeds", str(seeds), "--workers", "2", "--keep-nothing", *choice) as run:
        said, _ = run.communicate()
    print(said.strip().splitlines()[0])
    assert run.returncode == 0, said
    assert f"{seeds:,} seeds" in said


@pytest.mark.timeout(900)
def test_a_thousand_seeds_pass() -> None:
    """Every fault that there is, and every operation.

    Cuts, pauses, lost and repeated frames, clocks that jump, connections that break, disks that are slow, full or
    lost, nodes that join, leave, crash and come back, processes that die; deletes, times to live, compares, scans,
    watchers, routers. One run in seven takes so long that nodes are called dead, and copies are made up for.
    """
    run_seeds(SEEDS)


@pytest.mark.timeout(300)
def test_seeds_whose_clients_give_keys_other_numbers_of_copies_pass() -> None:
    """Copies of single keys move, in two plans of five, while everything else goes on that goes on in the thousand."""
    run_seeds(60, "--first", "5000")


@pytest.mark.timeout(300)
def test_seeds_whose_clients_read_at_epochs_pass() -> None:
    """What a key held at the end of an epoch is one thing, while everything goes wrong that goes wrong elsewhere."""
    run_seeds(60, "--first", "6000")


@pytest.mark.timeout(300)
def test_seeds_whose_clients_write_keys_together_pass() -> None:
    """All of a transaction is there or nothing, at whatever message its coordinator stops, and whoever else dies."""
    run_seeds(60, "--first", "7000")


@pytest.mark.timeout(300)
def test_a_seed_is_the_same_history_under_any_hash_seed() -> None:
    with python("-c", DIGESTS, hash_seed="1") as one, python("-c", DIGESTS, hash_seed="2") as two:
        first, second = one.communicate()[0].split(), two.communicate()[0].split()
    assert len(set(first)) == TWICE + 10
    assert first == second


def test_seeds_are_different_histories() -> None:
    assert simulate(plan_of(1)).digest != simulate(plan_of(2)).digest


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*.json")), ids=lambda path: path.stem)
def test_what_once_went_wrong_goes_right(path: Path) -> None:
    outcome = simulate(json.loads(path.read_text())["plan"])
    assert outcome.violations == []
