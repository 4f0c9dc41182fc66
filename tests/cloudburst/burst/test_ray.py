"""Nodes in a Ray cluster: had, used, given back, and gone with whoever had them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudburst.burst.provider import PHASES
from cloudburst.burst.providers import provider_of
from cloudburst.burst.rayhosts import address_of, share
from cloudburst.errors import EnvironmentMismatch
from demos.wordcount import texts
from demos.wordcount.__main__ import alone
from tests.cloudburst.burst.miniature import check
from tests.cloudburst.burst.raylab import WAIT_S, NoRay, RayLab, ray_lab, until, why_not
from tests.cloudburst.burst.test_ssh import said_until


@pytest.fixture(scope="module")
def ray() -> Iterator[RayLab]:
    """A Ray cluster with two CPUs."""
    if (reason := why_not()) is not None:
        pytest.skip(f"NO RAY CLUSTER HERE: {reason}")
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(ray_lab())
        except NoRay as fault:
            pytest.skip(f"NO RAY CLUSTER HERE: {fault}")
        yield made
        assert made.client.pids() == [], "what was started on the client's host has ended"


def nothing_left(ray: RayLab) -> None:
    """Wait until nothing of any run is there."""
    until(lambda: ray.left() == [], "nothing of a run is left")


PROGRAM = """
import json, time
from pathlib import Path
import cloudburst as cb
from cloudburst.burst.terms import Terms
from demos.wordcount import __main__ as demo, texts
from tests.cloudburst.burst.miniature import retwis
with cb.up(2, on="{on}", insecure=True) as cluster:
    counted = demo.run(cluster.client, list(texts.pieces(texts.reference())), 5)
    row = retwis(cluster, "{on}", Path("{out}"))
    cb.register(time.sleep, name="rest")
    while not all("first-task" in one.reached for one in cluster.machines):  # it is fast enough for one of them
        list(cb.map("rest", [0.1] * 4))
    machines = [[one.place, one.executors, sorted(one.reached)] for one in cluster.machines]
    cluster._terms = Terms(ready_in_s=1)
    try:
        cluster.scale(9)
    except cb.MachinesNotObtained as fault:
        refused = str(fault)
    left = len(cluster.machines)
print(json.dumps([counted.checksum, row, machines, refused, left]))
"""


def test_program_runs_the_demos_in_places_of_a_ray_cluster(ray: RayLab, tmp_path: Path) -> None:
    program = ray.python("-c", PROGRAM.format(on=ray.on, out=tmp_path))
    out, err = program.communicate(timeout=WAIT_S)
    assert program.returncode == 0, err
    checksum, row, machines, refused, left = json.loads(out)
    assert checksum == alone(list(texts.pieces(texts.reference())), 5).checksum
    check(row)
    assert machines == [[f"Ray on {ray.host.address}", 1, sorted(PHASES)]] * 2
    assert "2 of 9 machines became ready: host-2" in refused
    assert "Ray's 1 nodes have 2 CPUs, 2 times the 1 of a place" in refused
    assert left == 2, "what did not come is given back"
    nothing_left(ray)


def test_killed_up_leaves_nothing_in_the_ray_cluster(ray: RayLab) -> None:
    up = ray.cb("up", "--hosts", "1", "--executors", "1", "--on", ray.inside, "--insecure", host=ray.host)
    said_until(up, "stdout", "end it")
    assert [name for name in ray.files(ray.host) if name.endswith("-host-0")]
    reap = ray.cb("reap", "--on", ray.inside, "--older", "1s", "--dry-run", host=ray.host)
    said, err = reap.communicate(timeout=WAIT_S)
    would = r"run \S+ on Ray on \S+: \d+ processes and /tmp/cloudburst-run-\S+-host-0 would be ended"
    assert re.search(would, said), err
    up.send_signal(signal.SIGKILL)
    up.communicate(timeout=WAIT_S)
    nothing_left(ray)


def test_address_is_what_ray_calls_it() -> None:
    assert address_of("") == "auto"
    assert address_of("//10.0.0.5:10001") == "ray://10.0.0.5:10001"
    assert address_of("10.0.0.5:6379") == "10.0.0.5:6379"


def test_places_have_as_many_cpus_as_fit_so_often() -> None:
    assert share([2], 2) == 1
    assert share([8, 8], 2) == 8
    assert share([8, 8], 3) == 4
    assert share([3, 3, 2], 2) == 3
    assert share([1, 1, 6], 2) == 3
    assert share([1], 4) == 1, "it has to grow"
    assert share([], 1) == 1


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMismatch, match=r"pip install 'ray\[client\]'"):
        provider_of("ray", Path("/nonexistent"), lambda _: None)
