"""A pipeline of three stages on three hosts, of which one is cut off, one frozen and one killed: the same output."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from cloudburst.secret import Secret
from tests.anna.local.processes import eventually
from tests.cloudburst.burst.tasks.mapped import environment
from tests.lab.hosts import Lab
from tests.lab.programs import ROOT

PORT: Final = 6460
INPUTS: Final = 90
STAGES: Final = (
    "$CB map -j 6 'sleep 0.15; tr a-z A-Z < {}' in/*.txt"
    " | $CB map -j 6 'sleep 0.15; sed s/LINE/Row/ {} > {out}'"
    " | $CB map -j 6 'sleep 0.15; cat {}'"
)
"""At least 90 * 3 * 0.15 / 6 = 6.75 s: the troubles below come while it runs."""
RUN_S: Final = 120.0


@pytest.fixture
def three_nodes(three_hosts: Lab, tmp_path: Path) -> Lab:
    """A node on each host, two copies of each key. Their directories are in sight of all, their networks are not."""
    secret = str(Secret.fresh().keep(tmp_path))
    started = []
    for name in ("h1", "h2", "h3"):
        host = three_hosts[name]
        words = ["--dir", str(tmp_path / name), "--executors", "2", "--workers", "1", "--factor", "2"]
        words += ["--secret", secret, "--listen", f"tcp://{host.address}:{PORT}", "--insecure"]
        words += ["--join", f"tcp://{three_hosts['h1'].address}:{PORT}"] if started else []
        log = tmp_path / f"{name}.log"
        with log.open("w") as said:
            started.append(
                host.start(
                    sys.executable, "-m", "cloudburst", "node", *words, stderr=said, cwd=ROOT,
                    env=environment(CLOUDBURST_HOST=name),
                )
            )  # fmt: skip
        eventually(lambda log=log: "runs in" in log.read_text(), f"the node on {name} runs")
    return three_hosts


def begin(lab: Lab, tmp_path: Path) -> subprocess.Popen[str]:
    """Start the pipeline on the first host."""
    (tmp_path / "in").mkdir()
    for number in range(INPUTS):
        (tmp_path / "in" / f"{number}.txt").write_text(f"line {number}\n")
    variables = {"CLOUDBURST_DIR": str(tmp_path / "h1"), "CLOUDBURST_HOST": "h1"}
    with (tmp_path / "out").open("w") as out, (tmp_path / "said").open("w") as said:
        return lab["h1"].start(
            "bash", "-c", f"set -o pipefail; {STAGES}", cwd=tmp_path, env=environment(**variables),
            stdin=subprocess.DEVNULL, stdout=out, stderr=said,
        )  # fmt: skip


def results(tmp_path: Path) -> list[str]:
    return (tmp_path / "out").read_text().splitlines()


def wait_for(count: int, pipeline: subprocess.Popen[str], tmp_path: Path) -> None:
    """Wait until so many results have been printed."""
    until = time.monotonic() + RUN_S
    while len(results(tmp_path)) < count:
        assert pipeline.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < until, f"{len(results(tmp_path))} results; {(tmp_path / 'said').read_text()}"
        time.sleep(0.05)


def test_hosts_that_are_cut_off_frozen_and_killed_change_nothing(three_nodes: Lab, tmp_path: Path) -> None:
    h1, h2, h3 = (three_nodes[name] for name in ("h1", "h2", "h3"))
    pipeline = begin(three_nodes, tmp_path)
    wait_for(2, pipeline, tmp_path)
    three_nodes.cut(h1, h2)
    time.sleep(1.5)
    three_nodes.heal()
    wait_for(12, pipeline, tmp_path)
    h3.freeze()
    time.sleep(1.5)
    h3.thaw()
    wait_for(24, pipeline, tmp_path)
    h2.crash()
    begun_before = len(results(tmp_path))
    assert pipeline.wait(RUN_S) == 0, (tmp_path / "said").read_text()
    assert begun_before < INPUTS, "all was done before the last host was killed: nothing was tested"
    assert sorted(results(tmp_path)) == sorted(f"Row {number}" for number in range(INPUTS))
