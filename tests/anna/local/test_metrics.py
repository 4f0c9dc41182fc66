"""`anna serve --metrics`: the workers' figures, in Prometheus' text format, read with its own parser."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import anna
from anna.cli import main
from anna.kvs.clock import Clock
from anna.kvs.worker import Worker
from anna.messages import NodeInfo, View, WorkerInfo
from anna.metrics import COUNTERS, GAUGES, IDENTITY
from tests.anna.local.processes import PATIENCE_S, Family, children_of, eventually, serving

Samples = dict[str, dict[str, float]]


def scrape(address: str) -> Samples:
    """Return {metric: {seat: value}}; each must have a HELP and a TYPE."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
        assert answer.headers["Content-Type"].startswith("text/plain")
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge"), family.name
        for sample in family.samples:
            assert len(sample.labels["node"]) == 16
            found.setdefault(sample.name, {})[sample.labels["seat"]] = sample.value
    return found


def test_every_figure_of_a_worker_is_shown_under_one_name() -> None:
    worker = Worker(View(1, (NodeInfo(1, (WorkerInfo(1, ("unix:/w",), 0),)),)), 0, Clock(0, 0))
    names = [figure.figure for figure in (*COUNTERS, *GAUGES)]
    assert sorted([*names, *IDENTITY]) == sorted(worker.status())
    assert len({figure.name for figure in (*COUNTERS, *GAUGES)}) == len(names)


def test_a_node_serves_the_figures_of_all_its_workers(directory: Path) -> None:
    with serving("--workers", "2", "--metrics", "127.0.0.1:0") as (process, started):
        with anna.connect() as kvs:
            for number in range(40):
                kvs.put(f"k{number}", "value")
                kvs.get(f"k{number}")
            figures = kvs.status()
        found = scrape(started["metrics"])
        assert found["anna_worker_up"] == {"0": 1, "1": 1}
        for name, figure in (("anna_puts_total", "puts"), ("anna_gets_total", "gets"), ("anna_keys", "keys")):
            assert found[name] == {str(seat): worker[figure] for seat, worker in enumerate(figures)}
        assert sum(found["anna_puts_total"].values()) == 40
        assert 0 < found["anna_uptime_seconds"]["0"] < 600
        eventually(lambda: scrape(started["metrics"])["anna_complete"] == {"0": 1, "1": 1}, "the node is complete")
        assert found["anna_stable_lag_seconds"]["0"] < 5
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        eventually(lambda: not answers(started["metrics"]), "the metrics end with the node")


def serving_metrics(supervisor: int) -> list[int]:
    """Return the pids of the processes that serve a node's figures."""
    children = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children_of(supervisor)}
    return [pid for pid, command in children.items() if b"anna.metrics" in command]


def answers(address: str) -> bool:
    try:
        return bool(scrape(address))
    except OSError:
        return False


def test_a_worker_that_hangs_is_shown_as_down_and_the_others_with_their_figures(directory: Path) -> None:
    with serving("--workers", "2", "--metrics", "127.0.0.1:0") as (_, started):
        assert scrape(started["metrics"])["anna_worker_up"] == {"0": 1, "1": 1}
        names = {Path(f"/proc/{worker.pid}/comm").read_text(): worker.pid for worker in Family(started["pid"]).workers}
        pid = names["anna-worker-1\n"]
        os.kill(pid, signal.SIGSTOP)
        try:
            found = scrape(started["metrics"])
        finally:
            os.kill(pid, signal.SIGCONT)
        assert found["anna_worker_up"] == {"0": 1, "1": 0}
        assert list(found["anna_keys"]) == ["0"]


def test_metrics_end_when_the_node_is_killed(directory: Path) -> None:
    """D20: nothing of a node is left when it ends, however it ends."""
    with serving("--workers", "1", "--metrics", "127.0.0.1:0") as (process, started):
        assert answers(started["metrics"])
        process.kill()
        process.wait(PATIENCE_S)
        eventually(lambda: not answers(started["metrics"]), "the metrics end with the node")


def test_metrics_that_are_killed_are_started_again_at_the_same_address(directory: Path) -> None:
    """P11: any process may be killed; who asks meanwhile is answered by the next one."""
    with serving("--workers", "1", "--metrics", "127.0.0.1:0") as (process, started):
        for _ in range(3):
            (pid,) = serving_metrics(process.pid)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: pid not in children_of(process.pid), "the dead process is reaped")  # noqa: B023
            assert scrape(started["metrics"])["anna_worker_up"] == {"0": 1}
            eventually(lambda: serving_metrics(process.pid), "another one serves")
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        eventually(lambda: not answers(started["metrics"]), "the metrics end with the node")


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("192.0.2.1:0", "can be reached from other machines"),
        ("127.0.0.1", "tcp://127.0.0.1"),
        ("127.0.0.1:http", "tcp://127.0.0.1:http"),
    ],
)
def test_an_address_that_does_not_do_is_refused_before_anything_starts(
    directory: Path, address: str, complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """D43: options are checked before anything is done."""
    assert main(["serve", "--metrics", address]) == 2
    assert complaint in capfd.readouterr().err
    assert not directory.exists()
