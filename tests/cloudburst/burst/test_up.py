"""`cb up` and what is asked of it from other shells: phases, more nodes, its terms, and machines that do not come."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb
from cloudburst.burst import providers
from cloudburst.burst.provider import PHASES
from cloudburst.burst.terms import Terms
from cloudburst.cli import main
from cloudburst.cluster import Cluster
from tests.anna.local.processes import eventually
from tests.cloudburst.burst.elsewhere import PRICE
from tests.cloudburst.conftest import WAIT_S

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(directory: Path) -> dict[str, str]:
    """Nobody else's runs and nodes are seen there."""
    return {
        **os.environ, "XDG_RUNTIME_DIR": str(directory), "CLOUDBURST_DIR": str(directory / "node"),
        "ANNA_DIR": str(directory / "store"), "PYTHONPATH": str(Path(__file__).parents[3]),
    }  # fmt: skip


@pytest.fixture
def begin(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a `cb up`; gives it once it has said how it is ended."""
    made: list[subprocess.Popen[str]] = []

    def started(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cloudburst", "up", "--executors", "1", *words]
        pipe = subprocess.PIPE
        made.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
        assert made[-1].stdout is not None
        while "end it" not in (line := made[-1].stdout.readline()):
            assert line, made[-1].communicate()
        return made[-1]

    yield started
    for one in made:
        one.kill()
        one.communicate()


@pytest.fixture
def shell(environment: dict[str, str]) -> Run:
    """Runs `cb` to its end."""
    return lambda *words: subprocess.run(
        [sys.executable, "-m", "cloudburst", *words], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """A provider that costs money, as one of another distribution would be found."""
    monkeypatch.setitem(providers.OURS, "elsewhere", "tests.cloudburst.burst.elsewhere:Elsewhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))


def test_running_cluster_tells_its_phases_grows_and_has_shells(begin: Any, shell: Run, directory: Path) -> None:
    command = begin("--hosts", "1")
    [node] = json.loads(shell("hosts", "--phases", "--json").stdout)["machines"]
    assert list(node["reached"]) == list(PHASES[:5])
    assert sorted(node["reached"].values()) == list(node["reached"].values())
    scaled = shell("scale", "2")
    assert scaled.returncode == 0
    header, *rows, last = scaled.stdout.splitlines()
    assert header.split() == ["host", *PHASES, "place"]
    assert [row.split()[0] for row in rows] == ["host-0", "host-1"]
    assert last.endswith("2 machines, $0.00 so far")
    said = shell("ssh", "host-1", "--", "sh", "-c", "echo $CLOUDBURST_DIR")
    [run] = directory.glob("cloudburst-run-*")
    assert said.stdout == f"{run}/host-1\n"
    assert "there is no machine 'host-9'; there are host-0, host-1" in shell("ssh", "host-9").stderr
    assert shell("down").returncode == 0
    assert command.wait(WAIT_S) == 0
    assert list(directory.iterdir()) == []
    assert shell("scale", "2").returncode == 2


def test_first_call_of_a_machine_is_among_its_phases(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    with Cluster(1, 1, 1) as cluster:
        assert [machine.phase for machine in cluster.machines] == ["agent"]
        cluster.client.register(len)
        cluster.client.call("len", "four")
        assert [machine.phase for machine in cluster.machines] == ["first-task"]
    assert list(directory.iterdir()) == []



def test_run_ends_by_itself_when_its_time_is_over(shell: Run, directory: Path) -> None:
    ended = shell("up", "--hosts", "1", "--executors", "1", "--ttl", "2s")
    assert (ended.returncode, "its time is over (ttl 2 s)" in ended.stderr) == (5, True), ended.stderr
    assert list(directory.iterdir()) == []


def test_run_ends_by_itself_when_nothing_runs_and_not_while_something_does(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    with cb.up(1, executors=1, idle_stop=1.5) as cluster:
        cluster.client.register(time.sleep, name="work")
        cluster.client.call("work", 3)
        assert not cluster.over.is_set()
        assert cluster.over.wait(WAIT_S)
        assert "idle_stop 1.5 s" in cluster.reason
    assert list(directory.iterdir()) == []


def test_run_ends_by_itself_when_its_money_is_spent(elsewhere: None, directory: Path) -> None:
    with Cluster(1, 1, 1, on="elsewhere:", terms=Terms(max_cost=PRICE / 60)) as cluster:
        cluster._meter.spent = PRICE / 60 - PRICE / 3600  # all but what a second costs
        assert cluster.over.wait(WAIT_S)
        assert re.fullmatch(r"its money is spent \(\$0\.6\d of max_cost \$0\.60\)", cluster.reason)
    assert list(directory.iterdir()) == []


def test_machines_that_do_not_come_are_named_and_the_others_are_given_back(
    elsewhere: None, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--hosts", "3", "--executors", "1", "--on", "elsewhere:2", "--ready-in", "20"]) == 4
    said = capsys.readouterr().err
    assert "2 of 3 machines became ready: late-0 (elsewhere) got as far as 'pending' within 20 s" in said
    assert "no room in zone 1" in said
    assert "--ready-in" in said
    assert list(directory.iterdir()) == [], "nothing was kept"


def test_cluster_that_cannot_grow_stays_as_it_was(elsewhere: None) -> None:
    with Cluster(1, 1, 1, on="elsewhere:1") as cluster:
        with pytest.raises(cb.MachinesNotObtained, match="1 of 2 machines became ready"):
            cluster.scale(2)
        assert [host.name for host in cluster.hosts] == ["host-0"]
        assert [machine.name for machine in cluster.machines] == ["host-0"]


def test_what_is_too_dear_is_refused_with_what_it_costs(
    elsewhere: None, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--hosts", "3", "--on", "elsewhere:", "--plan"]) == 0
    assert "3 machines, $108.00 an hour\n" in capsys.readouterr().out
    assert main(["up", "--hosts", "3", "--on", "elsewhere:", "--plan", "--price", "0.5"]) == 0
    assert "3 machines, $1.50 an hour (as --price says)\n" in capsys.readouterr().out
    assert main(["up", "--hosts", "3", "--on", "elsewhere:", "--max-cost", "0.5"]) == 5
    assert "3 machines cost $108.00 an hour" in capsys.readouterr().err
    assert main(["up", "--hosts", "3", "--max-cost", "0.5", "--price", "100"]) == 5
    assert "3 machines cost $300.00 an hour" in capsys.readouterr().err
    assert list(directory.iterdir()) == []


def test_what_a_killed_up_leaves_is_nothing(begin: Any, shell: Run, directory: Path) -> None:
    command = begin("--hosts", "2")
    command.kill()
    eventually(lambda: list(directory.iterdir()) == [], "its nodes and their directories are gone")
    assert "nothing is left" in shell("reap").stdout


SLOW = """
import os, sys, time
import cloudburst as cb
from cloudburst.cli import main

class UntilItIsOver:
    def __reduce__(self):
        while any(name.startswith("cloudburst-run-") for name in os.listdir(os.environ["XDG_RUNTIME_DIR"])):
            time.sleep(0.05)
        return str, ()

late = UntilItIsOver()
cb.function(lambda: late, name="late")
sys.exit(main(["up", "--hosts", "1", "--executors", "1", "--ttl", "1s"]))
"""


def test_run_whose_time_is_over_before_it_could_be_announced_says_so(environment: dict[str, str]) -> None:
    """It registers a function for longer than that; it said that a file was missing, and ended with 1."""
    command = [sys.executable, "-c", SLOW]
    up = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert up.returncode == 5, up.stderr
    assert up.stderr.splitlines()[-1] == "cb up: the run has ended: its time is over (ttl 1 s)"
    assert up.stdout == ""
