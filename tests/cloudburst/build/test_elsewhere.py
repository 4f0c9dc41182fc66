"""Built files on an SSH host, which has nothing but Python: what comes there, how often, and what it is used for."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cloudburst.build.conftest import environment
from tests.cloudburst.burst.sshd import SshLab, ssh_lab, why_not
from tests.cloudburst.burst.test_ssh import gone_from, said_until

pytestmark = pytest.mark.timeout(400)  # the files are built and unpacked within, and a host's files removed
WAIT_S = 100.0
MARK = "550d7456"
"""Of "a", by a package that only the greeter brings."""


@pytest.fixture(scope="module")
def lab() -> Iterator[SshLab]:
    """A host, which does not see where files are unpacked here, and one for the client."""
    if (reason := why_not()) is not None:
        pytest.skip(f"NO SSH HOSTS HERE: {reason}")
    with ssh_lab(1) as made:
        yield made


def start(lab: SshLab, place: Path, *words: object, **more: str) -> subprocess.Popen[str]:
    """Start a program on the client's host."""
    pipe: Any = subprocess.PIPE
    given = environment(place) | lab.environment() | {"GREETER_KEY": "k", "CLOUDBURST_DIR": ""} | more
    del given["PYTHONPATH"]
    return lab.client.start(*map(str, words), stdout=pipe, stderr=pipe, cwd=place, env=given)


def kept(lab: SshLab) -> list[int]:
    """Return how many versions the host has."""
    homes = [lab.place / host.name / "home/.cache/cloudburst" for host in lab.hosts]
    return [len([one for one in home.iterdir() if re.fullmatch("[0-9a-f]{64}", one.name)]) for home in homes]


def test_what_up_has_brought_is_called_by_name_from_another_shell(lab: SshLab, place: Path, greeter: Path) -> None:
    words = ["up", "--hosts", 1, "--executors", 1, "--on", f"ssh:{lab.file}", "--insecure"]
    up = start(lab, place, greeter, *words)
    said_until(up, "stdout", "end it", WAIT_S)
    for _ in range(2):
        out, err = start(lab, place, greeter, "call", "mark", "a").communicate(timeout=WAIT_S)
        assert (out, err) == (f"{MARK}\n", "")
    assert start(lab, place, greeter, "down").communicate(timeout=WAIT_S)[0].endswith("has ended\n")
    up.communicate(timeout=WAIT_S)
    assert up.returncode == 0
    assert kept(lab) == [1]
    gone_from(lab)


def test_a_built_file_tests_a_host(lab: SshLab, place: Path, greeter: Path) -> None:
    """All steps of `cb selftest`, with the death of an executor among them; and nothing is left there."""
    words = ["selftest", "--on", f"ssh:{lab.file}", "--insecure", "--json"]
    out, err = start(lab, place, greeter, *words).communicate(timeout=WAIT_S)
    said = json.loads(out)
    assert [one["name"] for one in said if not one["ok"]] == [], (said, err)
    assert said[0]["said"] == f"a node with 2 executors: root@{lab.hosts[0].address}"
    assert (said[-1]["name"], said[-1]["said"]) == ("end", "nothing is left")
    gone_from(lab)


def test_a_pipeline_of_two_files_runs_on_a_host_that_has_neither(
    lab: SshLab, place: Path, wc: Path, greeter: Path
) -> None:
    """The first brings its nodes there by SSH; the second's archive, and the inputs, come through the store."""
    (place / "far.txt").write_text("a b a\n")
    (place / "near.txt").write_text("a\n")
    hosts = f"--hosts 1 --executors 2 --on ssh:{lab.file} --insecure"
    script = f"{wc} up {hosts} far.txt near.txt | {greeter} up; echo ${{PIPESTATUS[@]}}"
    out, err = start(lab, place, "bash", "-c", script).communicate(timeout=WAIT_S)
    *lines, codes = out.splitlines()
    assert codes == "0 0", err
    assert sorted(line for line in lines if " a " in line) == [f"Hello a 1 {MARK}", f"Hello a 2 {MARK}"]
    assert len(lines) == 3
    gone_from(lab)
    assert kept(lab) == [2]
