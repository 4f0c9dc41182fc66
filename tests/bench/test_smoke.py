"""Runs every table with tiny counts, so that the benchmark cannot rot. Nothing here looks at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.memory import VALUE_BYTES
from bench.peers.memcached import Memcached
from bench.peers.redis_server import Redis

ROOT = Path(__file__).parents[2]
REDIS_MISSING = Redis().missing()
MEMCACHED_MISSING = Memcached().missing()
needs_redis = pytest.mark.skipif(REDIS_MISSING is not None, reason=f"no Redis to compare with: {REDIS_MISSING}")
needs_memcached = pytest.mark.skipif(
    MEMCACHED_MISSING is not None, reason=f"no memcached to compare with: {MEMCACHED_MISSING}"
)


def bench(out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run `python -m bench` with one tiny round; return its JSON and what it printed."""
    command = [sys.executable, "-m", "bench", *arguments, "--quick", "--rounds", "1", "--seconds", "0.002"]
    done = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    written: dict[str, Any] = json.loads((out / "bench.json").read_text())
    assert written["broken"] == {}
    tables = (out / "bench.md").read_text()
    assert all(f"| {row['name']} |" in tables for row in written["rows"])
    return written, done.stdout


def check_rows(written: dict[str, Any], subjects: set[str]) -> None:
    """Every row has one positive sample of each subject, and a ratio to each peer."""
    assert written["rows"]
    for row in written["rows"]:
        assert set(row["subjects"]) == subjects, row["name"]
        assert all(len(taken) == 1 and taken[0]["figure"] > 0 for taken in row["subjects"].values()), row
        assert set(row["ratios"]) == subjects - {"ours"}


@needs_redis
def test_store_compares_every_size_on_both_transports(tmp_path: Path) -> None:
    written, shown = bench(tmp_path, "store", "--only", "ours,redis-py")
    check_rows(written, {"ours", "redis-py"})
    assert [row["name"] for row in written["rows"]] == [
        f"{operation} {size} {transport}"
        for transport in ("tcp", "unix")
        for size in ("8 B", "256 B", "4 KiB", "1 MiB")
        for operation in ("get", "put")
    ]
    assert "pylibmc: skipped" in shown


@needs_memcached
def test_store_compares_with_memcached(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "store", "--only", "ours,pylibmc")
    check_rows(written, {"ours", "pylibmc"})


@needs_redis
def test_batches_are_written_and_read_back(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "batch", "--only", "ours,redis-py")
    check_rows(written, {"ours", "redis-py"})


@needs_redis
@pytest.mark.skipif(shutil.which("redis-benchmark") is None, reason="redis-benchmark is not installed")
def test_server_is_loaded_at_every_depth_without_a_miss(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "server", "--only", "ours,redis-py")
    memory, *limits = written["rows"]
    assert set(memory["subjects"]) == {"ours", "redis"}
    assert len(limits) == 2 * 3 * 2
    check_rows({"rows": limits}, {"ours", "redis", "redis-benchmark"})


@needs_redis
def test_durable_writes_are_compared_with_an_append_only_file(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "durable")
    check_rows(written, {"ours", "redis always", "redis everysec"})
    assert [row["name"] for row in written["rows"]] == [
        f"put depth {depth}{what}" for depth in (1, 16) for what in ("", ", processor time of a write")
    ]


@needs_redis
def test_two_workers_are_loaded_and_their_copies_are_equal_afterwards(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "scaling")
    *compared, differing = written["rows"]
    assert [set(row["subjects"]) for row in compared] == [{"ours", "one worker"}] * 2 + [{"ours", "redis"}] * 2
    assert differing["subjects"]["ours"][0]["figure"] == 0


def test_two_nodes_are_measured_at_rest_and_under_load(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "replication")
    rows = {row["name"]: row["subjects"] for row in written["rows"]}
    assert len(rows) == 5
    assert set(rows.pop("processor time of a write, all nodes")) == {"ours", "one copy"}
    assert all(subjects["ours"][0]["figure"] > 0 for subjects in rows.values())


def test_encrypted_figures_stand_beside_plain_ones(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "encrypted")
    check_rows(written, {"ours", "encrypted"})
    assert len(written["rows"]) == 13


def test_a_node_comes_back_with_its_keys_and_another_takes_its_share(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "recovery")
    assert len(written["rows"]) == 4
    assert "every read found its key" in written["rows"][2]["note"]


@needs_redis
def test_memory_of_a_key_is_measured_on_each_kind_of_node(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "memory")
    assert [set(row["subjects"]) for row in written["rows"]] == [{"ours", "redis"}] + [{"ours"}] * 3
    assert all(row["subjects"]["ours"][0]["figure"] > VALUE_BYTES for row in written["rows"])


def test_functions_and_methods_are_called(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "functions", "--only", "ours,ProcessPoolExecutor")
    methods = [row for row in written["rows"] if row["name"].startswith("method")]
    check_rows({"rows": methods}, {"ours"})
    check_rows({"rows": [row for row in written["rows"] if row not in methods]}, {"ours", "ProcessPoolExecutor"})


def test_reads_and_commits_of_sessions_are_compared_with_those_without(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "sessions")
    subjects = {row["name"]: set(row["subjects"]) for row in written["rows"]}
    assert subjects == {
        "read of a cached key in a causal session, p50": {"ours", "eventual"},
        "the same, p99": {"ours", "eventual"},
        "commit of 3 keys over 2 workers, p50": {"ours", "three puts in a pipeline"},
        "age of the stable epoch, p99": {"ours"},
    }


def test_clusters_start_idle_and_are_gone_with_their_last_user(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "start", "idle")
    rows = {row["name"]: row["subjects"]["ours"][0]["figure"] for row in written["rows"]}
    names = ("import to first result", "memory", "processor")
    assert rows.keys() == {f"{package}: {name}" for package in ("anna", "cloudburst") for name in names}
    assert all(figure > 0 for name, figure in rows.items() if "processor" not in name)


def test_a_built_file_starts_beside_plain_python(tmp_path: Path) -> None:
    written, _ = bench(tmp_path, "build")
    subjects = {row["name"]: set(row["subjects"]) for row in written["rows"]}
    assert subjects == {
        "first start, which unpacks it": {"ours"},
        "later start": {"ours", "python -c pass"},
        "more than python -c pass": {"ours"},
    }


def test_unknown_area_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "bench", "stroe"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such area: stroe" in done.stderr
