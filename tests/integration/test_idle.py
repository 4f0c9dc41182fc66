"""Nobody asks for anything: a cluster then uses next to no processor time."""

from __future__ import annotations

import time
from pathlib import Path

import anna
from tests.anna.local.processes import children_of, eventually, processor_s, serving

WATCHED_S = 2.0

BUSY_MAX = 0.05
"""The share of a core that all processes of an idle node may use together: heartbeats, and little else. A worker that
looks for messages all the time uses the whole of one."""


def test_an_idle_node_waits_for_what_comes_and_does_not_look_for_it(directory: Path) -> None:
    """D23: each thread turned in a loop over its sockets, whether there was anything or not."""
    with serving("--workers", "2") as (process, _), anna.connect() as kvs:
        kvs.mput({f"k{number}": number for number in range(100)})
        pids = [process.pid, *children_of(process.pid)]
        stable = [worker["epoch"] for worker in kvs.status()]
        eventually(lambda: min(w["stable"] for w in kvs.status()) >= max(stable), "what was written has settled")
        before = processor_s(pids)
        time.sleep(WATCHED_S)
        assert processor_s(pids) - before < BUSY_MAX * WATCHED_S
        assert kvs.get("k1") == 1
