"""`cb doctor` names what is missing, what for and how to get it; it never shows what a credential holds."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloudburst import config

ROOT = Path(__file__).parents[2]
RUN_S = 60.0


def doctor(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(home)}
    return subprocess.run(
        [sys.executable, "-m", "cloudburst", "doctor", *words], env=clean | environment, cwd=home, capture_output=True,
        text=True, timeout=RUN_S, check=False,
    )  # fmt: skip


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(done.stdout)}


def test_what_nodes_need_is_here_where_the_tests_run(directory: Path) -> None:
    done = doctor(directory, "--json")
    found = findings(done)
    assert done.returncode == 0, done.stdout
    assert {name for name, one in found.items() if one["needed"]} == {
        "python", "modules", "run directory", "open files", "memory",
    }  # fmt: skip
    assert all(one["ok"] for one in found.values() if one["needed"])
    assert all(one["why"] and (one["ok"] or one["mend"]) for one in found.values())


def test_programs_that_are_not_there_are_named_with_what_gets_them(directory: Path) -> None:
    done = doctor(directory, PATH="/nowhere")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for name, mend in (
        ("sandbox", "apt install bubblewrap"), ("compiler", "apt install build-essential"),
        ("ssh", "apt install openssh-client"), ("redis", "apt install redis-server"),
    ):  # fmt: skip
        (at,) = (number for number, line in enumerate(lines) if line.startswith(f"{'without':<8} {name:<16} "))
        assert lines[at + 1].split()[0] == "for:"
        assert lines[at + 2].split(maxsplit=1) == ["get:", mend]


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, *_):
        if name in ("asyncssh", "boto3", "ray", "pex"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from cloudburst.cli import main
sys.exit(main(["doctor", "--json"]))
"""


def test_packages_that_only_some_commands_need_are_named_with_what_gets_them(directory: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], env=environment, cwd=directory, capture_output=True, text=True, timeout=RUN_S
    )
    assert done.returncode == 0, done.stderr
    mends = {name: one["mend"] for name, one in findings(done).items() if one["found"] == f"{name} not installed"}
    assert mends == {
        "asyncssh": "pip install asyncssh", "boto3": "pip install boto3", "ray": "pip install 'ray[client]'",
        "pex": "pip install pex packaging",
    }  # fmt: skip


def test_a_limit_under_which_nodes_do_not_work_ends_it_with_3(directory: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowered = f"ulimit -n {config.OPEN_FILES_MAX - 1}; exec {sys.executable} -m cloudburst doctor"
    done = subprocess.run(
        ["/bin/sh", "-c", lowered], env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=directory, capture_output=True,
        text=True, timeout=RUN_S, check=False,
    )  # fmt: skip
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
    assert done.returncode == 3
    assert f"missing  open files       at most {config.OPEN_FILES_MAX - 1:,}" in done.stdout
    assert "get: ulimit -Hn 4096" in done.stdout
    assert done.stdout.endswith("nodes do not work here without: open files\n")


def test_credentials_are_named_and_never_shown(directory: Path) -> None:
    (directory / ".aws").mkdir()
    (directory / ".aws/credentials").write_text("aws_secret_access_key = marker-in-a-file\n")
    done = doctor(directory, AWS_ACCESS_KEY_ID="marker-of-a-key", GOOGLE_APPLICATION_CREDENTIALS="/marker/of/a/path")
    assert "AWS ($AWS_ACCESS_KEY_ID), AWS (~/.aws/credentials), Google Cloud ($GOOGLE_APPLICATION" in done.stdout
    assert "marker" not in done.stdout + done.stderr
    assert "of no cloud" in doctor(directory, HOME=str(directory / "none")).stdout


@pytest.mark.parametrize(
    ("ahead_s", "ok", "says"), [(0, True, " s "), (3600, False, "s ahead"), (-3600, False, "s behind")]
)
def test_a_host_whose_clock_is_far_off_is_named(directory: Path, ahead_s: int, ok: bool, says: str) -> None:
    """`ssh` here is a program that says what the host's `date` would, and with which words it was asked."""
    script = f'#!/bin/sh\necho "$@" > {directory}/asked\necho $(($(date +%s) + {ahead_s})).$(date +%N)\n'
    (directory / "ssh").write_text(script)
    (directory / "ssh").chmod(0o755)
    done = doctor(directory, "--host", "far", "--json", PATH=f"{directory}:{os.environ['PATH']}")
    clock = findings(done)["clock of far"]
    assert (clock["ok"], says in clock["found"]) == (ok, True), clock
    assert (directory / "asked").read_text().endswith("-- far date +%s.%N\n")


def test_a_host_that_cannot_be_asked_is_not_known(directory: Path) -> None:
    host = "-oProxyCommand=touch ran"
    clock = findings(doctor(directory, "--host", host, "--json"))[f"clock of {host}"]
    assert not clock["ok"]
    assert clock["found"].startswith("not known: ")
    assert not (directory / "ran").exists()
