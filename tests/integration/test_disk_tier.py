"""Nodes of the disk tier hold more than their memory, and lose nothing of it when they are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from random import Random
from typing import Any

import anna
from tests.anna.local.processes import Family, children_of, eventually, serving

MIB = 1 << 20
VALUE_BYTES = 100_000
MEMORY_BYTES = 64 * MIB
OVERHEAD_BYTES = 64 * MIB
"""What a worker takes beside its keys and values: its code, batches on their way to the disk, allocator's rests."""


def value_of(number: int) -> bytes:
    """Return the value of key `number`: no two are the same."""
    return number.to_bytes(4, "little") * (VALUE_BYTES // 4)


def anonymous_bytes(pid: int) -> int:
    """Return the memory of a process that no file backs."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def worst(pids: list[int]) -> int:
    return max(map(anonymous_bytes, pids))


def load(kvs: anna.Client, count: int, pids: list[int]) -> int:
    """Write `count` values, the last of them durably, in order; return the most memory that a worker took."""
    most = 0
    for number in range(count):
        kvs.put(f"key:{number}", value_of(number), ack="disk" if number % 100 == 99 or number > count - 20 else None)
        if number % 200 == 199:
            most = max(most, worst(pids))
    return most


def assert_all_is_there(kvs: anna.Client, count: int) -> None:
    """Read every key, in no order."""
    order = list(range(count))
    Random(count).shuffle(order)
    assert [number for number in order if kvs.get(f"key:{number}") != value_of(number)] == []


def figures(kvs: anna.Client) -> dict[str, int]:
    """Return the sums of the workers' figures."""
    found = kvs.status()
    return {name: sum(worker[name] for worker in found) for name in ("keys", "bytes", "memory_bytes", "cold")}


def options(place: Path, name: str) -> list[str]:
    return ["--dir", str(place / name), "--data", str(place / f"{name}-data"), "--tier", "disk", "--workers", "2"]


def whole(kvs: anna.Client) -> tuple[int, int]:
    """Return how many workers of the newest view are complete, and how many copies of keys they have."""
    kvs.refresh(time.monotonic_ns() + 1_000_000_000)
    answering = [worker for worker in kvs.status() if worker.get("complete")]
    return len(answering), sum(worker["keys"] for worker in answering)


def written(kvs: anna.Client, key: str) -> bool:
    """Whether a write went through; who was killed under it answers nothing."""
    with contextlib.suppress(anna.UnavailableError):
        kvs.put(key, value_of(9))
        return True
    return False


def client_of(started: dict[str, Any]) -> anna.Client:
    return anna.Client((started["workers"][0][-1],), timeout=10.0)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a node, all of it at once."""
    family = Family(process.pid)
    for pid in [process.pid, *children_of(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    family.assert_ended()


def test_a_disk_node_holds_more_than_its_memory_also_after_it_was_killed(place: Path) -> None:
    """400 MB in 64 MiB: D17, the memory of a node was the limit of what it held."""
    count = 4_000
    limit = MEMORY_BYTES // 2 + OVERHEAD_BYTES
    arguments = [*options(place, "one"), "--memory", "64M", "--listen", "tcp://127.0.0.1:0"]
    with serving(*arguments) as (process, started):
        pids = children_of(process.pid)
        with client_of(started) as kvs:
            assert load(kvs, count, pids) < limit
            found = figures(kvs)
            assert (found["keys"], found["bytes"] > 5 * MEMORY_BYTES) == (count, True)
            assert (found["memory_bytes"] <= MEMORY_BYTES, found["cold"] > count // 2) == (True, True)
            assert_all_is_there(kvs, count)
            assert worst(pids) < limit
        kill(process)
    with serving(*arguments) as (process, started):
        pids = children_of(process.pid)
        with client_of(started) as kvs:
            assert figures(kvs)["memory_bytes"] <= MEMORY_BYTES
            assert_all_is_there(kvs, count)
            assert worst(pids) < limit


def test_a_cluster_of_disk_nodes_alone_holds_more_than_its_memory_in_two_copies(place: Path) -> None:
    """A node that is killed comes back with what it had, and gets what was written meanwhile."""
    count = 1_200
    first = [*options(place, "first"), "--memory", "32M", "--listen", "tcp://127.0.0.1:0", "--factor", "2"]
    second = [*options(place, "second"), "--memory", "32M", "--listen", "tcp://127.0.0.1:0"]
    limit = 16 * MIB + OVERHEAD_BYTES
    with serving(*first) as (one, started):
        second += ["--join", started["workers"][0][-1]]
        with client_of(started) as kvs:
            with serving(*second) as (two, _):
                eventually(lambda: whole(kvs) == (4, 0), "both nodes are complete")
                assert load(kvs, count, [*children_of(one.pid), *children_of(two.pid)]) < limit
                eventually(lambda: whole(kvs) == (4, 2 * count), "each key has two copies")
                assert (figures(kvs)["memory_bytes"] <= 64 * MIB, figures(kvs)["cold"] > count) == (True, True)
                assert_all_is_there(kvs, count)
                kill(two)
            eventually(lambda: written(kvs, "meanwhile"), "the other node takes a write")
            with serving(*second) as (two, again):
                eventually(lambda: whole(kvs) == (4, 2 * count + 2), "the node is back with all keys")
                kill(one)
                with client_of(again) as other:
                    assert other.get("meanwhile") == value_of(9)
                    assert_all_is_there(other, count)
                assert worst(children_of(two.pid)) < limit
